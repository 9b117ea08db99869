"""The recipe: all sections together, and what they must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from distill.config.base import Section
from distill.config.cluster import Cluster, Slurm
from distill.config.data import Data
from distill.config.evaluation import Evaluate, Tracking
from distill.config.ranking import Label, Mine, Score, Teacher
from distill.config.student import Student
from distill.config.train import Train


class Recipe(Section):
    """A whole run, from raw data to an evaluated model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    run_dir: Path | None = None  # None: runs/<name>
    seed: Annotated[int, Field(ge=0)] = 17
    data: Data
    mine: Mine = Mine()
    teachers: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Teacher]
    score: Score = Score()
    label: Label = Label()
    student: Student
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    slurm: Slurm = Slurm()
    tracking: Tracking = Tracking()

    @property
    def folder(self) -> Path:
        return self.run_dir if self.run_dir is not None else Path("runs") / self.name

    @model_validator(mode="after")
    def _references_exist(self) -> Recipe:
        if not self.teachers:
            raise ValueError("needs at least one teacher")
        if "ensemble" in self.teachers:
            raise ValueError("teachers.ensemble: the name belongs to the mean of all teachers; choose another")
        if not any(teacher.weight for teacher in self.teachers.values()):
            raise ValueError("every teacher has the weight 0: no label can be made")
        if self.label.map_to is not None and self.label.map_to not in self.teachers:
            raise ValueError(f"label.map_to names {self.label.map_to!r}, which is not among the teachers "
                             f"({', '.join(self.teachers)})")
        return self
