"""Texts that a run's models do not read to their end: the share that each maximum length cuts, and its record.

Every stage with a model counts what it reads (`Stage.readers`); `distill.pipeline.truncation` collects the figures
before mining and records them in truncation.json, for the report and the model card.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from distill.config import Recipe
from distill.errors import StorageError
from distill.run.files import read_object, write_json
from distill.run.layout import RunFolder

ACCEPTED = 0.01  # share of texts that a sufficient length may cut
ALARMING = 0.05  # share from which a warning is due


@dataclass(frozen=True)
class Truncation:
    """The texts of one kind that one model reads.

    `cut`: share of texts that lose tokens to `max_length`, which `field` sets (None: the model itself); `sufficient`:
    length that would cut at most 1 %; `limit`: what the model takes, None if not known; `counted`: what was counted.
    """

    reader: str  # such as "student", "teacher minilm", "miner dense"
    texts: str  # such as "train queries", "passages", "pairs"
    field: str | None
    max_length: int
    cut: float
    sufficient: int
    limit: int | None
    counted: str

    @property
    def alarming(self) -> bool:
        """Whether more texts are cut than one would accept unasked."""
        return self.cut > ALARMING

    def sentence(self) -> str:
        """State the share and, if it is alarming, the remedy."""
        text = f"the {self.reader} reads at most {self.max_length} tokens: {_percent(self.cut)} of the {self.texts} "
        text += f"({self.counted}) are cut"
        return f"{text}; {self._remedy()}" if self.alarming else text

    def _remedy(self) -> str:
        fits = self.limit is None or self.sufficient <= self.limit
        if self.field is not None and fits:
            return f"set {self.field} to {self.sufficient} to cut at most {ACCEPTED:.0%}"
        split = f"at most {ACCEPTED:.0%} would be cut at {self.sufficient}: split the passages, or use another model"
        if self.field is not None and self.limit is not None and self.limit > self.max_length:
            return f"set {self.field} to {self.limit}, the most that its model takes ({split})"
        return f"its model takes no more, and {split}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


@dataclass(frozen=True)
class TruncationRecord:
    """All figures of a run. `unknown`: reader -> why its texts could not be counted; `made_from`: inputs."""

    figures: tuple[Truncation, ...]
    unknown: dict[str, str]
    made_from: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        """One sentence per alarming figure."""
        return [figure.sentence() for figure in self.figures if figure.alarming]


def read_truncation(folder: RunFolder) -> TruncationRecord | None:
    """Read the record of a run folder, None if there is none. Raises `StorageError` for a file that is no record."""
    path = folder.truncation
    if not path.exists():
        return None
    tree = read_object(path)
    try:
        figures = tuple(Truncation(**entry) for entry in tree["figures"])
        return TruncationRecord(figures, dict(tree["unknown"]), dict(tree["made_from"]))
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path}: damaged: {error}; remove it, and the texts are counted again") from None


def write_truncation(folder: RunFolder, record: TruncationRecord) -> None:
    """Write the record of a run folder."""
    write_json(folder.truncation, asdict(record))


def truncation_inputs(recipe: Recipe, data: str) -> dict[str, Any]:
    """Return what the figures depend on. `data`: fingerprint of the import."""
    tree = recipe.model_dump(mode="json")
    return {
        "data": data,
        "seed": recipe.seed,
        "student": tree["student"],
        "miners": {name: {key: miner[key] for key in _MINER} for name, miner in tree["mine"]["miners"].items()},
        "teachers": {name: {key: teacher[key] for key in _TEACHER} for name, teacher in tree["teachers"].items()},
    }


_MINER = ("kind", "model", "revision")
_TEACHER = (*_MINER, "max_length", "template")
