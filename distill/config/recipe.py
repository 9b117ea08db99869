"""The recipe: all sections together, and what they must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from distill.config.base import FilePath, Section
from distill.config.cluster import Cluster, Slurm
from distill.config.data import Data
from distill.config.evaluation import Evaluate, Tracking
from distill.config.losses import EmbeddingMseLoss
from distill.config.ranking import Label, Mine, Score, Teacher
from distill.config.rounds import PREVIOUS, SHARED, Follows
from distill.config.student import AnyStudent
from distill.config.train import Train


class Recipe(Section):
    """A whole run, from raw data to an evaluated model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    run_dir: FilePath | None = None  # None: runs/<name>
    seed: Annotated[int, Field(ge=0)] = 17
    data: Data
    mine: Mine = Mine()
    teachers: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Teacher]
    score: Score = Score()
    label: Label = Label()
    student: AnyStudent
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    slurm: Slurm = Slurm()
    tracking: Tracking = Tracking()
    rounds: tuple[dict[str, Any], ...] = ()  # further rounds: what each does otherwise (`distill.config.rounds`)
    follows: Follows | None = None  # not for people: of which run this is a further round

    @property
    def folder(self) -> Path:
        return self.run_dir if self.run_dir is not None else Path("runs") / self.name

    @field_validator("rounds")
    @classmethod
    def _rounds_share_the_data(cls, rounds: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for number, changes in enumerate(rounds, start=2):
            if shared := [key for key in changes if key in SHARED]:
                raise ValueError(f"round {number} cannot have its own {shared[0]!r}: all rounds share the run's")
        return rounds

    @model_validator(mode="after")
    def _no_round_before_the_first(self) -> Recipe:
        named = {
            "student.model": self.student.model,
            **{f"mine.miners.{name}.model": miner.model for name, miner in self.mine.miners.items()},
            **{f"teachers.{name}.model": teacher.model for name, teacher in self.teachers.items()},
        }
        if unmet := [field for field, model in named.items() if model == PREVIOUS]:
            raise ValueError(
                f"{unmet[0]} is {PREVIOUS!r}, but the first round has none before it: name a model, and "
                "give the rounds after it their own"
            )
        return self

    @model_validator(mode="after")
    def _later_teachers_are_there(self) -> Recipe:
        if self.follows is not None and (
            imported := [name for name, teacher in self.teachers.items() if teacher.kind == "imported"]
        ):
            raise ValueError(
                f"teachers.{imported[0]}: a source's own scores are of its own candidates, and a further "
                f"round mines others; leave it out there (teachers: {{{imported[0]}: null}})"
            )
        return self

    @model_validator(mode="after")
    def _references_exist(self) -> Recipe:
        if not self.teachers:
            raise ValueError("needs at least one teacher")
        if "ensemble" in self.teachers:
            raise ValueError("teachers.ensemble: the name belongs to the mean of all teachers; choose another")
        if not any(teacher.weight for teacher in self.teachers.values()):
            raise ValueError("every teacher has the weight 0: no label can be made")
        if self.label.map_to is not None and self.label.map_to not in self.teachers:
            raise ValueError(
                f"label.map_to names {self.label.map_to!r}, which is not among the teachers "
                f"({', '.join(self.teachers)})"
            )
        return self

    @model_validator(mode="after")
    def _vectors_can_be_learnt(self) -> Recipe:
        if self.student.kind != "splade":
            for field, losses in self.train.losses_by_field.items():
                if any(isinstance(loss, EmbeddingMseLoss) for loss in losses):
                    raise ValueError(
                        f"train.{field}: embedding-mse needs a student of kind splade: the terms of "
                        f"others ({self.student.kind}) are not a teacher's words"
                    )
        for loss in self.train.losses:
            if not isinstance(loss, EmbeddingMseLoss):
                continue
            teacher = self.teachers.get(loss.teacher)
            if teacher is None:
                raise ValueError(
                    f"train.losses: embedding-mse names {loss.teacher!r}, which is not among the teachers "
                    f"({', '.join(self.teachers)})"
                )
            if teacher.kind != "splade":
                raise ValueError(
                    f"train.losses: embedding-mse names {loss.teacher!r}, a {teacher.kind} teacher: only "
                    "those of kind splade have vectors over a vocabulary"
                )
        for field, losses in self.train.losses_by_field.items():
            if self.student.query.kind in ("binary", "idf") and any(
                isinstance(loss, EmbeddingMseLoss) and "query" in loss.sides for loss in losses
            ):
                raise ValueError(
                    f"train.{field}: embedding-mse has no effect on queries: student.query is "
                    f"{self.student.query.kind}, which is not trained; set its `of` to passage"
                )
        return self

    @model_validator(mode="after")
    def _training_fits_the_student(self) -> Recipe:
        kind = self.student.kind
        if self.train.reconstruction is not None and kind != "csr":
            raise ValueError(f"train.reconstruction is of an autoencoder's loss, and student.kind is {kind}")
        if kind == "csr" and self.train.head_lr is not None:
            raise ValueError("train.head_lr: a student of kind csr has no MLM head")
        return self

    @model_validator(mode="after")
    def _query_side_agrees(self) -> Recipe:
        kind = self.student.query.kind
        if self.train.table_lr is not None and kind != "learned":
            raise ValueError(f"train.table_lr is set, but student.query is {kind}: only a learned table has a rate")
        prompted = [name for name, other in self.train.datasets.items() if other.prompts and other.prompts.query]
        if prompted and kind != "model":
            raise ValueError(
                f"train.datasets.{prompted[0]}.prompts.query: student.query is {kind}, and its words "
                "would be terms of every query; leave it out"
            )
        if self.train.query_regularizers and kind in ("binary", "idf"):
            raise ValueError(f"train.query_regularizers have no effect: student.query is {kind}, which is not trained")
        return self
