"""What the BM25 of a run depends on besides the texts: language, stemming, k1 and b."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from distill.config import AUTO, Bm25
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.languages import imported_language


@dataclass(frozen=True)
class Bm25Settings:
    """Language (a value of `data.language` but `auto`) and parameters of BM25."""

    language: str = "english"
    stemming: bool = True
    k1: float = 1.5
    b: float = 0.75

    @classmethod
    def of(cls, run: Run) -> Bm25Settings:
        """The settings of a run. Its language is found from the imported passages if none has been chosen yet."""
        return cls.chosen(run.recipe.bm25, run.recipe.data.language, run.folder)

    @classmethod
    def chosen(cls, parameters: Bm25, language: str, folder: RunFolder) -> Bm25Settings:
        """As `of`, from the parts of a recipe."""
        if language == AUTO:
            language = imported_language(folder).name
        return cls(language, parameters.stemming, parameters.k1, parameters.b)

    def fields(self) -> dict[str, Any]:
        """Fingerprint inputs: those that are not the defaults, the only ones before there was a choice."""
        defaults = asdict(Bm25Settings())
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


def bm25_fields(run: Run) -> dict[str, Any]:
    """`fields` under a name of their own, to be merged into fingerprint inputs; nothing for the defaults."""
    fields = Bm25Settings.of(run).fields()
    return {"bm25": fields} if fields else {}
