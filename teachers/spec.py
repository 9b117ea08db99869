"""Which teacher: its name and section of the recipe, and the run that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from distill.config import FineTune, Teacher
from distill.retrieval.bm25_settings import Bm25Settings
from distill.run.layout import RunFolder
from distill.run.model_ref import ModelRef
from distill.run.run import Run


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher of a run: its name, its section of the recipe, the run folder, and the run's settings of BM25."""

    name: str
    config: Teacher
    folder: RunFolder
    bm25: Bm25Settings = field(default_factory=Bm25Settings)

    @classmethod
    def of(cls, run: Run, name: str) -> TeacherSpec:
        teacher = run.recipe.teachers[name]
        bm25 = Bm25Settings.of(run) if teacher.kind == "bm25" else Bm25Settings()
        return cls(name, teacher, run.folder, bm25)

    @property
    def model(self) -> ModelRef:
        """The model that the recipe names. Raises `RecipeError` for a package that is not installed."""
        assert self.config.model is not None, "every kind but bm25, imported and custom has a model"
        return ModelRef.parse(self.config.model, self.config.revision)

    @property
    def fine_tune(self) -> FineTune:
        """The recipe's settings for fine-tuning; only for teachers that have them."""
        assert self.config.fine_tune is not None
        return self.config.fine_tune

    @property
    def execution_record(self) -> Path:
        """File of the frozen execution record, see `teachers.execution`."""
        return self.folder.execution(self.name)
