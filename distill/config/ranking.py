"""`mine`, `teachers`, `score`, `label`: which passages are ranked, by whom, and what becomes of the scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.config.base import Dtype, Fraction, Positive, Section, refuse_unread


class Miner(Section):
    """Where hard negatives come from: the `top` best, and `sample` more drawn at random from the best `depth`."""

    kind: Literal["bm25", "dense", "splade"]
    model: str | None = None  # dense and splade: hub name, path, or package:<module>/<folder>
    revision: str | None = None
    top: Annotated[int, Field(ge=0)] = 50
    sample: Annotated[int, Field(ge=0)] = 0
    depth: Positive = 1000  # the ranking's depth that `sample` draws from
    skip: Annotated[int, Field(ge=0)] = 0  # leave out the best ranks, where unlabelled positives sit

    @model_validator(mode="after")
    def _model_where_needed(self) -> Miner:
        if self.kind != "bm25" and self.model is None:
            raise ValueError(f"a {self.kind} miner needs a model")
        if self.kind == "bm25":
            refuse_unread(self, self.kind, {"kind", "top", "sample", "depth", "skip"})
        if not self.sample and self.depth != type(self).model_fields["depth"].default:
            raise ValueError("`depth` has no effect without `sample`: it is the ranking that is drawn from")
        if self.sample and self.depth <= self.skip + self.top:
            raise ValueError(
                f"`sample` draws from ranks {self.skip + self.top + 1} to `depth`, which is {self.depth}: "
                "there are none; raise depth"
            )
        return self


class Workers(Section):
    """The Ray workers of a job. `actors`: how many at once (None: one per GPU, or per `cpus` cores)."""

    actors: Positive | None = None
    cpus: Annotated[float, Field(gt=0)] = 1.0  # per actor
    gpus: Annotated[float, Field(ge=0)] | None = None  # per actor; None: 1 where there are GPUs
    max_tries: Positive = 3  # of a task whose worker dies


class Mine(Workers):
    """The candidates. A collection of more than `shard_passages` is encoded and searched by Ray workers."""

    miners: dict[str, Miner] = {"bm25": Miner(kind="bm25")}
    shard_queries: Positive = 1000  # queries a candidate shard
    shard_passages: Positive = 32_768  # passages a chunk of vectors (dense and splade)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the encoders' products
    rerank_depth: Positive = 100  # candidates a dev or test query, from the first miner's top

    @model_validator(mode="after")
    def _some_miner(self) -> Mine:
        if not self.miners:
            raise ValueError("needs at least one miner")
        return self


class FineTune(Section):
    """Fine-tuning a cross-encoder to put labelled positives above mined negatives (listwise, CrossEncoderTrainer).

    With `folds` > 1, each model trains on the queries outside its fold, and scores only those inside it.
    """

    folds: Positive = 2
    negatives: Positive = 3  # per positive, from the mined candidates
    random_negatives: Annotated[int, Field(ge=0)] = 0  # per positive, from the whole collection
    layers: Positive | None = None  # keep only the lower layers
    epochs: float = 1.0
    batch_size: Positive = 32  # pairs
    lr: Annotated[float, Field(gt=0)] = 5e-5
    head_lr: Annotated[float, Field(gt=0)] | None = None  # of the pooler and the classifier, if fresh; None: lr
    warmup_ratio: Fraction = 0.1


_MODEL = {"model", "revision", "dtype", "max_length", "batch_tokens"}
_READ_BY = {
    "cross-encoder": _MODEL | {"fine_tune"},
    "llm": _MODEL | {"template", "options"},
    "bm25": set(),
    "imported": {"model"},
    "custom": {"cls", "options"},
}


class Teacher(Section):
    """Who scores; kind `imported`: the source's own scores, nothing runs.

    `model`: hub name, path, or package:<module>/<folder>; `cls`: import path of an own class.
    """

    kind: Literal["cross-encoder", "llm", "bi-encoder", "splade", "bm25", "imported", "custom"]
    model: str | None = None
    revision: str | None = None
    dtype: Dtype = "auto"
    max_length: Positive = 256  # tokens of a pair (cross-encoder, llm) or of a text (the others)
    batch_tokens: Positive | None = None  # padded tokens a batch; None: what suits the device
    weight: Annotated[float, Field(ge=0)] = 1.0  # in the ensemble; 0: only in the evaluation's table
    template: str | None = None  # llm: prompt with {query} and {passage}
    cls: str | None = None  # custom: package.module:Class
    options: dict[str, Any] = {}  # custom: keyword arguments of the class; llm: its answers, `yes` and `no`
    fine_tune: FineTune | None = None

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Teacher:
        if self.kind == "custom" and self.cls is None:
            raise ValueError("a custom teacher needs cls (package.module:Class)")
        if self.kind not in ("bm25", "imported", "custom") and self.model is None:
            raise ValueError(f"a {self.kind} teacher needs a model")
        refuse_unread(self, self.kind, {"kind", "weight"} | _READ_BY.get(self.kind, _MODEL))
        return self


class Score(Workers):
    """The scoring job."""

    rerank: bool = True  # also score the test candidates, for the table


class Label(Section):
    """From raw teacher scores to training labels (SPLADE-v3, arXiv 2403.06789)."""

    normalise: Literal["min-max", "z-score", "none"] = "min-max"  # per query and teacher
    map_to: str | None = None  # teacher whose global mean and standard deviation the labels take
    scale: Annotated[float, Field(gt=0)] = 1.0  # without map_to: a label of 1 in the student's dot products
    # negatives that are left out, in label units; a list's best positive counts
    drop_false_negatives: float | None = None  # those above the positive by more than this; below 0: that are too near
    relative_margin: Annotated[float, Field(ge=0)] | None = None  # above positive - margin * |positive|
    max_score: float | None = None  # above this
    min_score: float | None = None  # below this: too easy

    @model_validator(mode="after")
    def _one_scale(self) -> Label:
        if self.map_to is not None and self.scale != 1.0:
            raise ValueError("map_to gives the labels their scale: leave out scale, or map_to")
        return self

    @model_validator(mode="after")
    def _some_negative_fits(self) -> Label:
        if None not in (self.min_score, self.max_score) and self.min_score > self.max_score:
            raise ValueError(f"min_score {self.min_score} is above max_score {self.max_score}: no negative is left")
        return self
