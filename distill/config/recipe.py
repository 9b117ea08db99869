"""The recipe: all sections together, and the rules between sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from distill.config.base import AUTO, Count, ExecutionOnly, FilePath, Name, Section
from distill.config.cluster import Cluster, Slurm
from distill.config.data import Data
from distill.config.evaluation import Evaluate, Tracking
from distill.config.losses import EmbeddingMseLoss
from distill.config.ranking import Bm25, Label, Mine, Score, Teacher
from distill.config.rounds import PREVIOUS, SHARED, Follows
from distill.config.student import AnyStudent
from distill.config.train import Train
from distill.errors import RecipeError


class Recipe(Section):
    """A whole run, from raw data to an evaluated model or, without a student, to scored candidates."""

    name: ExecutionOnly[Name]
    """Name of the run."""
    run_dir: ExecutionOnly[FilePath | None] = None
    """Run folder. null: runs/<name>."""
    verify_inputs: ExecutionOnly[bool] = True
    """Compare the files that a stage reads with their checksums before it starts; false for those who cannot wait for
    it. Tasks of job arrays never do."""
    seed: Count = 17
    """Seed of everything that is drawn at random."""
    data: Data
    """Stage `import`: queries, passages and judgements."""
    bm25: Bm25 = Bm25()
    """Parameters of every BM25 of the run."""
    mine: Mine = Mine()
    """Stage `mine`: hard negatives."""
    teachers: dict[Name, Teacher]
    """Name -> teacher; the labels are made from their ensemble."""
    score: Score = Score()
    """Stage `score`: teachers score the candidates."""
    label: Label = Label()
    """Stage `label`: labels from scores."""
    student: AnyStudent | None = None
    """The model that is trained. null: none; the run ends with the teachers' scores and labels."""
    train: Train = Train()
    """Stage `train`."""
    evaluate: Evaluate = Evaluate()
    """Stage `evaluate`."""
    cluster: ExecutionOnly[Cluster] = Cluster()
    """Ray."""
    slurm: ExecutionOnly[Slurm] = Slurm()
    """Jobs of `distill submit`."""
    tracking: ExecutionOnly[Tracking] = Tracking()
    """Experiment trackers."""
    rounds: tuple[dict[str, Any], ...] = ()
    """Further rounds: the differences of each from this recipe, as a JSON merge patch."""
    follows: Follows | None = None
    """Written by the program, not by people: the run of which this recipe is a further round."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run_dir if self.run_dir is not None else Path("runs") / self.name

    @property
    def trained_student(self) -> AnyStudent:
        """The student. Raises `RecipeError` for a recipe without one."""
        if self.student is None:
            raise RecipeError(
                f"recipe {self.name!r} has no student: training and evaluation need the section `student`"
            )
        return self.student

    @field_validator("rounds")
    @classmethod
    def _rounds_share_the_data(cls, rounds: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for number, changes in enumerate(rounds, start=2):
            if shared := [key for key in changes if key in SHARED]:
                raise ValueError(f"round {number} cannot have its own {shared[0]!r}: all rounds share the run's")
        return rounds

    @model_validator(mode="after")
    def _first_round_names_its_models(self) -> Recipe:
        named = {
            "student.model": None if self.student is None else self.student.model,
            **{f"mine.miners.{name}.model": miner.model for name, miner in self.mine.miners.items()},
            **{f"teachers.{name}.model": teacher.model for name, teacher in self.teachers.items()},
        }
        if unmet := [field for field, model in named.items() if model == PREVIOUS]:
            raise ValueError(
                f"{unmet[0]} is {PREVIOUS!r}, but no round precedes the first: name a model here, and use "
                f"{PREVIOUS!r} in the entries of `rounds`"
            )
        return self

    @model_validator(mode="after")
    def _no_imported_scores_in_further_rounds(self) -> Recipe:
        if self.follows is not None and (
            imported := [name for name, teacher in self.teachers.items() if teacher.kind == "imported"]
        ):
            raise ValueError(
                f"teachers.{imported[0]}: the source's scores belong to its own candidates, but a further "
                f"round mines new ones; leave the teacher out there (teachers: {{{imported[0]}: null}})"
            )
        return self

    @model_validator(mode="after")
    def _references_exist(self) -> Recipe:
        if not self.teachers:
            raise ValueError("needs at least one teacher")
        if "ensemble" in self.teachers:
            raise ValueError("teachers.ensemble: this name denotes the mean of all teachers; choose another")
        if not any(teacher.weight for teacher in self.teachers.values()):
            raise ValueError("every teacher has the weight 0, so no label can be made; give one a positive weight")
        fitted = [name for name, teacher in self.teachers.items() if teacher.weight == AUTO]
        if fitted and not (self.score.rerank and self.student is not None):
            cause, remedy = (
                ("without a student", "add the section `student`")
                if self.student is None
                else ("with score.rerank: false", "set score.rerank: true")
            )
            raise ValueError(
                f"teachers.{fitted[0]}.weight is auto, but {cause} no development query is scored, on which it would "
                f"be fitted; give a weight, or {remedy}"
            )
        if self.label.map_to is not None and self.label.map_to not in self.teachers:
            raise ValueError(
                f"label.map_to names {self.label.map_to!r}, which is not among the teachers "
                f"({', '.join(self.teachers)})"
            )
        return self

    @model_validator(mode="after")
    def _a_student_reads_its_sections(self) -> Recipe:
        if self.student is None and self.follows is not None:
            raise ValueError("a further round trains a student: leave `student` in")
        if self.student is None and self.data.train_queries == AUTO:
            raise ValueError(
                "data.train_queries is auto, as many as training reads, but without a student nothing is trained: set "
                "a number, or null for all"
            )
        if self.student is None:
            for name, default in (("train", Train()), ("evaluate", Evaluate()), ("rounds", ())):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"`{name}` has no effect without a student: add the section `student`, or remove it"
                    )
        return self

    @model_validator(mode="after")
    def _vectors_can_be_learnt(self) -> Recipe:
        if self.student is None:
            return self
        if self.student.kind != "splade":
            for field, losses in self.train.losses_by_field.items():
                if any(isinstance(loss, EmbeddingMseLoss) for loss in losses):
                    raise ValueError(
                        f"train.{field}: embedding-mse needs a student of kind splade: the dimensions of a "
                        f"{self.student.kind} student do not correspond to the teacher's vocabulary"
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
    def _counted_queries_have_counts(self) -> Recipe:
        if self.train.query_weights != "equal" and self.data.query_log is None and not self.train.datasets:
            raise ValueError(
                "train.query_weights has no effect without data.query_log: only the queries of a log have counts"
            )
        return self

    @model_validator(mode="after")
    def _training_fits_the_student(self) -> Recipe:
        if self.student is not None and self.student.kind == "csr" and self.train.head_lr is not None:
            raise ValueError("train.head_lr: a student of kind csr has no MLM head")
        if self.student is not None and self.student.kind == "csr" and self.train.targets:
            raise ValueError(
                f"train.{min(self.train.targets)}_regularizers: target_terms has no effect on a student of kind csr, "
                "which keeps student.k terms per text; set that instead"
            )
        return self

    @model_validator(mode="after")
    def _query_side_agrees(self) -> Recipe:
        if self.student is None:
            return self
        kind = self.student.query.kind
        if self.train.table_lr is not None and kind != "learned":
            raise ValueError(f"train.table_lr has no effect: student.query is {kind}, not learned")
        prompted = [name for name, data in self.train.datasets.items() if data.prompts and data.prompts.query]
        if prompted and kind != "model":
            raise ValueError(
                f"train.datasets.{prompted[0]}.prompts.query cannot be used with student.query {kind}: its tokens "
                "would be terms of every query; remove it"
            )
        if self.train.query_regularizers and kind in ("binary", "idf"):
            raise ValueError(f"train.query_regularizers have no effect: student.query is {kind}, which is not trained")
        return self
