"""Where everything of one run lies: the only place that spells a path inside a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.config import Recipe

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, or of one of its further rounds. Paths only: it never looks at the disk.

    `first`: for a further round, the first round's folder, whose data and fine-tuned teachers it uses.
    """

    root: Path
    first: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    @classmethod
    def of(cls, recipe: Recipe) -> RunFolder:
        return cls(recipe.folder, recipe.follows.run if recipe.follows else None)

    @property
    def _shared(self) -> Path:
        return self.root if self.first is None else self.first

    def round(self, number: int) -> Path:
        """The folder of a further round, from 2."""
        return self.root / f"round-{number}"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def data(self) -> Path:
        return self._shared / "data"

    @property
    def passages(self) -> Path:
        return self.data / "passages.arrow"

    def queries(self, split: str) -> Path:
        return self.data / f"queries.{split}.arrow"

    def judgements(self, split: str) -> Path:
        return self.data / f"judgements.{split}.arrow"

    def tokens(self, key: str, store: str) -> Path:
        """`store`: "passages" or "queries.<split>"; `key`: `distill.data.tokens.token_key`."""
        return self.data / "tokens" / key / f"{store}.arrow"

    def index(self, key: str) -> Path:
        """What a miner searches: chunks of vectors, by `distill.mining.chunks.index_key`, or "bm25"."""
        return self.data / "index" / key

    def candidates(self, split: str) -> Path:
        return self.root / "candidates" / split

    def scores(self, teacher: str, split: str) -> Path:
        return self.root / "scores" / teacher / split

    def labels(self, split: str = "train") -> Path:
        return self.root / "labels" / split

    def teacher(self, name: str) -> Path:
        return self._shared / "teachers" / name

    def teacher_fold(self, name: str, fold: int) -> Path:
        return self.teacher(name) / f"fold-{fold}"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    @property
    def start(self) -> Path:
        """The student before any training, saved as a checkpoint."""
        return self.root / "start"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics"

    @property
    def train_log(self) -> Path:
        return self.logs / "train.jsonl"

    @property
    def lost_devices(self) -> Path:
        return self.logs / "lost-devices.jsonl"

    @property
    def stage_log(self) -> Path:
        return self.logs / "stages.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.metrics / "evaluation.json"

    def trec_run(self, name: str) -> Path:
        return self.metrics / f"{name}.run"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def jobs(self) -> Path:
        """A folder for each launch of `distill submit`."""
        return self.root / "jobs"


def run_at(path: Path) -> RunFolder:
    """The run that lies at a path: of a further round, with the data of the run that it lies in."""
    found = RunFolder(path)
    outer = RunFolder(found.root.resolve().parent)
    is_round = found.root.resolve().name.startswith("round-") and not found.data.exists() and outer.data.exists()
    return RunFolder(found.root, outer.root) if is_round else found
