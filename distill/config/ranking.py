"""`mine`, `teachers`, `score`, `label`: candidates, the teachers that score them, and labels made of the scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.config.base import (
    AUTO,
    Count,
    Dtype,
    ExecutionOnly,
    FilePath,
    Fraction,
    IfSet,
    Name,
    Positive,
    Section,
    refuse_unread,
)
from distill.config.seismic import Seismic
from distill.errors import RecipeError

_RANKS = {"kind", "top", "sample", "depth", "skip"}
_MINER_READS = {
    "bm25": _RANKS,
    "dense": _RANKS | {"model", "revision"},
    "splade": _RANKS | {"model", "revision", "search", "seismic"},
    "run": _RANKS | {"path", "systems"},
}


class Miner(Section):
    """A source of hard negatives: the `top` best passages, and `sample` more drawn at random from the best `depth`."""

    kind: Literal["bm25", "dense", "splade", "run"]
    """`bm25`; `dense`: a SentenceTransformer; `splade`: a SparseEncoder; `run`: rankings that are given in a file."""
    model: str | None = None
    """Model of `dense` and `splade`: hub name, path, or package:<module>/<folder>."""
    revision: str | None = None
    """Commit, branch or tag on the hub. null: the default branch."""
    path: FilePath | None = None
    """Of `run`: the file of rankings, or a folder of such files: TREC runs; `{qid: [did]}` or `{qid: {did: score}}` in
    JSON, JSONL or a pickle; sentence-transformers' `{qid, pos, neg: {system: [did]}}` in JSONL; Parquet of ids."""
    systems: tuple[str, ...] = ()
    """Of `run`, for files that list the ids of several systems: those to read. []: all of them."""
    top: Count = 50
    """Number of negatives taken from the top of the ranking."""
    sample: Count = 0
    """Number of further negatives drawn at random; 0: none."""
    depth: Positive = 1000
    """Depth of the ranking that `sample` draws from."""
    skip: Count = 0
    """Number of best ranks to skip, where unlabelled positives are likely. Not for queries without a positive."""
    search: IfSet[Literal["exact", "seismic"]] = "exact"
    """Search of `splade`. `seismic`: approximate, with all vectors of the collection in the memory of each worker (give
    one all cores of a machine, by `mine.cpus`); its recall against exact search is written beside the candidates. Its
    index is drawn at random: one that is built again may find other passages."""
    seismic: IfSet[Seismic] = Seismic()
    """Settings of Seismic."""

    @property
    def encodes(self) -> bool:
        """Whether it encodes the collection with a model."""
        return self.kind in ("dense", "splade")

    @property
    def ranks(self) -> int:
        """Number of ranks that its negatives are taken from."""
        return max(self.skip + self.top, self.depth if self.sample else 0)

    @model_validator(mode="after")
    def _every_field_has_an_effect(self) -> Miner:
        if self.encodes and self.model is None:
            raise ValueError(f"a {self.kind} miner needs a model")
        if self.kind == "run" and self.path is None:
            raise ValueError("a run miner needs a path: the file of rankings, or a folder of them")
        refuse_unread(self, self.kind, _MINER_READS[self.kind])
        if self.search == "exact" and self.seismic != Seismic():
            raise ValueError("the settings of `seismic` have no effect on exact search: set search: seismic")
        if not self.sample and self.depth != type(self).model_fields["depth"].default:
            raise ValueError("`depth` has no effect without `sample`, which draws from that many ranks")
        if self.sample and self.depth <= self.skip + self.top:
            raise ValueError(
                f"`sample` draws from ranks {self.skip + self.top + 1} to `depth`, which is {self.depth}: "
                "there are none; raise depth"
            )
        return self


class Bm25(Section):
    """BM25, wherever it is used: by miners and teachers, for the lexical start and in the table of results.

    Lucene's formula; `data.language` selects stemmer and stop words.
    """

    k1: Annotated[float, Field(ge=0)] = 1.5
    """How much a further occurrence of a word adds; 0: nothing."""
    b: Fraction = 0.75
    """How much the length of a passage matters; 0: not at all."""
    stemming: bool = True
    """Count the forms of a word as one, by the stemmer of the language."""


class Workers(Section):
    """Fields of jobs that run on Ray workers."""

    actors: ExecutionOnly[Positive | None] = None
    """Number of workers. null: one per GPU, or one per `cpus` cores, as nodes join and leave the cluster."""
    cpus: ExecutionOnly[Annotated[float, Field(gt=0)]] = 1.0
    """CPU cores per worker."""
    gpus: ExecutionOnly[Annotated[float, Field(ge=0)] | None] = None
    """GPUs per worker; a fraction puts several workers on one GPU. null: 1 if the cluster has GPUs, else 0."""
    max_tries: ExecutionOnly[Positive] = 3
    """Number of attempts at a task whose worker dies before the job stops."""


class Mine(Workers):
    """Candidates. A collection of more than `shard_passages` is encoded and searched by Ray workers. On GPUs, if there
    are any, dense and splade miners encode and search; `gpus: 0` leaves both to processor cores."""

    miners: dict[Name, Miner] = {"bm25": Miner(kind="bm25")}
    """Name -> miner."""
    shard_queries: Positive = 1000
    """Queries per candidate shard."""
    shard_passages: ExecutionOnly[Positive] = 32_768
    """Passages per chunk of vectors (dense and splade)."""
    precision: Dtype = "float32"
    """Precision of the encoders' matrix products. `auto`: 16 bits where the machine that encodes computes faster with
    them; machines of several kinds may then encode the parts of one collection differently."""
    rerank_depth: Positive = 100
    """Number of candidates per development or test query, the best of the first miner. If that one is of kind `run`,
    its files must rank the evaluated queries."""

    @model_validator(mode="after")
    def _some_miner(self) -> Mine:
        if not self.miners:
            raise ValueError("needs at least one miner")
        return self


class FineTune(Section):
    """Fine-tuning of a cross-encoder to rank labelled positives above mined negatives (listwise, CrossEncoderTrainer).

    With `folds` > 1, each model trains on the queries outside its fold, and scores only those inside it.
    """

    folds: Positive = 2
    """Number of folds, and of models; 1: one model, which scores the queries it was trained on."""
    negatives: Positive = 3
    """Negatives per positive, from the mined candidates."""
    random_negatives: Count = 0
    """Negatives per positive, from the whole collection."""
    layers: Positive | None = None
    """Number of layers to keep, from the lowest. null: all."""
    epochs: float = 1.0
    """Passes over the labelled pairs."""
    batch_size: Positive = 32
    """Pairs per batch."""
    lr: Annotated[float, Field(gt=0)] = 5e-5
    """Peak learning rate."""
    head_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the pooler and the classifier. null: `lr`."""
    warmup_ratio: Fraction = 0.1
    """Share of the steps in which the learning rate grows linearly from 0."""


_MODEL = {"model", "revision", "dtype", "max_length", "batch_tokens"}
_READ_BY: dict[str, set[str]] = {
    "cross-encoder": _MODEL | {"fine_tune"},
    "llm": _MODEL | {"template", "options"},
    "bm25": set(),
    "imported": {"model"},
    "custom": {"cls", "options"},
}


class Teacher(Section):
    """A model that scores the candidates, or scores that the source brings."""

    kind: Literal["cross-encoder", "llm", "bi-encoder", "splade", "bm25", "imported", "custom"]
    """`cross-encoder`: AutoModelForSequenceClassification, raw logits; `llm`: a causal language model, logit of "yes"
    minus logit of "no"; `bi-encoder`: a SentenceTransformer; `splade`: a SparseEncoder; `bm25`; `imported`: scores of
    the source; `custom`: a user-defined class."""
    model: str | None = None
    """Hub name, path, or package:<module>/<folder>; of `imported`, a note of the model that made the scores."""
    revision: str | None = None
    """Commit, branch or tag on the hub. null: the default branch."""
    dtype: ExecutionOnly[Dtype] = "auto"
    """Precision. `auto`: the fastest on the device that keeps the ranking; recorded in every shard."""
    max_length: Positive = 256
    """Maximum number of tokens per pair (cross-encoder, llm) or per text (the others)."""
    batch_tokens: ExecutionOnly[Positive | None] = None
    """Padded tokens per batch. null: 4,096 on processor cores, 65,536 on a GPU."""
    weight: Annotated[float, Field(ge=0)] | Literal["auto"] = 1.0
    """Weight in the ensemble; 0: evaluated, but not part of the labels. `auto`: fitted on judged development queries,
    with 0 for a teacher that makes the ensemble worse; without such queries, 1."""
    template: str | None = None
    """Of `llm`: prompt with {query} and {passage}. null: "Judge whether the passage answers the query. Reply yes or
    no.", the two texts, and "Reply:"."""
    cls: str | None = None
    """Of `custom`: import path of the class, package.module:Class."""
    options: dict[str, Any] = {}
    """Of `custom`: keyword arguments of the class; of `llm`: the answers that mean relevant and not relevant,
    by default {yes: yes, no: no}."""
    fine_tune: FineTune | None = None
    """Of `cross-encoder`: fine-tune it on the labelled pairs first. null: do not."""

    @property
    def known_weight(self) -> float:
        """The weight. Raises `RecipeError` if it is `auto`, and no value has been chosen yet."""
        if self.weight == AUTO:
            raise RecipeError(
                "teachers: a weight is auto, which is chosen when the development queries are scored; run "
                "`distill score` first, or give it a number"
            )
        return self.weight

    @property
    def reads_pairs(self) -> bool:
        """Whether it reads query and passage together, once per pair."""
        return self.kind in ("cross-encoder", "llm", "custom")

    @property
    def stores_vectors(self) -> bool:
        """Whether it encodes texts one by one, into vectors that are stored."""
        return self.kind in ("bi-encoder", "splade")

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

    rerank: bool = True
    """Also score the candidates of the evaluated queries, for the table of results."""


class Label(Section):
    """From raw teacher scores to training labels (SPLADE-v3, arXiv 2403.06789).

    `drop_false_negatives`, `relative_margin`, `max_score` and `min_score` drop negatives by their labels; "the
    positive" is the list's best one. Of a list without a positive only `min_score` drops passages.
    """

    normalise: Literal["min-max", "z-score", "none"] = "min-max"
    """Normalisation of scores per query and teacher, before the weighted mean."""
    map_to: str | None = None
    """Teacher whose global mean and standard deviation of raw scores the labels take. null: no mapping."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Without `map_to`: factor of the labels, which the losses compare with dot products of the student."""
    drop_false_negatives: float | None = None
    """Drop negatives whose label exceeds the positive's by more than this; a value below 0 also drops negatives close
    below the positive. null: keep all."""
    relative_margin: Annotated[float, Field(ge=0)] | None = None
    """Drop negatives whose label exceeds positive - relative_margin * |positive|. null: keep all."""
    max_score: float | None = None
    """Drop negatives with a label above this. null: keep all."""
    min_score: float | None = None
    """Drop negatives with a label below this, which are too easy. null: keep all."""

    @model_validator(mode="after")
    def _one_scale(self) -> Label:
        if self.map_to is not None and self.scale != 1.0:
            raise ValueError("map_to gives the labels their scale: leave out scale, or map_to")
        return self

    @model_validator(mode="after")
    def _some_negative_fits(self) -> Label:
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ValueError(f"min_score {self.min_score} is above max_score {self.max_score}: no negative is left")
        return self
