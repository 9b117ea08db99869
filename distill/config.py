"""The recipe: one tree of frozen, strict models, which one YAML file holds (`distill.recipe_file` reads and writes it).

Every stage takes the `Recipe` (or its own section of it) and nothing else from the outside, so a run is
described by this file alone. Unknown fields are refused, with the nearest valid name. What a stage's
output depends on is what its fingerprint holds (`distill.data.fingerprint`), not the whole recipe.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from distill.errors import RecipeError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Split = Literal["train", "dev", "test"]


class Section(BaseModel):
    """A part of the recipe: frozen, and strict about the names of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


# --------------------------------------------------------------------------------------------- data


class PythonDocs(Section):
    """Docstrings of the running interpreter's standard library; splits by module, so nothing leaks."""

    kind: Literal["python-docs"]
    min_words: Positive = 15  # words a docstring's body must have
    test_queries: Positive = 300
    dev_queries: Positive = 100


class Beir(Section):
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv."""

    kind: Literal["beir"]
    path: Path
    splits: dict[Split, str] = {"train": "train", "dev": "dev", "test": "test"}  # ours -> name of the qrels file


class MsMarco(Section):
    """MS MARCO's passage files: collection.tsv, queries.<split>.tsv, qrels.<split>.tsv."""

    kind: Literal["msmarco"]
    path: Path
    splits: dict[Split, str] = {"train": "train", "dev": "dev.small"}


class Jsonl(Section):
    """Rows of query, positive and negatives, with or without teacher scores, in one JSONL, CSV/TSV or Parquet file.

    `layout`: `triples` (sentence-transformers: `query`, `positive`, `negative` / `negative_1`.. / `negatives`,
    and `label` / `score` with one number, or a list, per passage), `flagembedding` (`query`, `pos`, `neg`,
    `pos_scores`, `neg_scores`), `pairs` (columns `query` and `positive`). Ids may stand beside the texts: `query_id`
    and `passage_ids` (or `pos_id` and `neg_id`).
    """

    kind: Literal["jsonl"]
    path: Path
    layout: Literal["auto", "triples", "flagembedding", "pairs"] = "auto"
    columns: dict[str, str] = {}  # our name -> the file's, where they differ
    dev_queries: Annotated[int, Field(ge=0)] = 0
    test_queries: Annotated[int, Field(ge=0)] = 0


class NaverScores(Section):
    """A BEIR or MS MARCO folder with scored hard negatives: naver's `{qid: {did: score}}`, or a TREC run."""

    kind: Literal["naver"]
    collection: Annotated[Beir | MsMarco, Field(discriminator="kind")]
    scores: Path  # .json or .json.gz; by any other name, a TREC run


class HuggingFace(Section):
    """A dataset on the hub or on disk: either BEIR-like (configurations corpus, queries, qrels) or rows of triples."""

    kind: Literal["huggingface"]
    dataset: str
    layout: Literal["beir", "triples", "flagembedding", "pairs"] = "triples"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    columns: dict[str, str] = {}
    dev_queries: Annotated[int, Field(ge=0)] = 0
    test_queries: Annotated[int, Field(ge=0)] = 0


class IrDatasets(Section):
    """Collections of the ir_datasets catalogue, e.g. `msmarco-passage/train/judged` (optional extra `ir-datasets`)."""

    kind: Literal["ir-datasets"]
    splits: dict[Split, str]  # ours -> dataset id; all must share one corpus


Source = Annotated[
    PythonDocs | Beir | MsMarco | Jsonl | NaverScores | HuggingFace | IrDatasets, Field(discriminator="kind")
]


class GenerateQueries(Section):
    """Training queries made from the passages themselves, for collections without any.

    Each query's own words are removed from the passage that it is paired with.
    """

    kinds: tuple[Literal["title", "sentence"], ...] = ("title", "sentence")
    per_passage: Positive = 2
    min_words: Positive = 5  # of the query
    min_passage_words: Positive = 15  # of what is left of the passage
    dev_share: Fraction = 0.05


class Sizes(Section):
    """Declared sizes, used by `--dry-run` where the data is not there yet."""

    passages: int
    queries: int  # for training
    dev_queries: int = 0
    test_queries: int = 0
    passage_tokens: float = 80.0  # mean
    query_tokens: float = 9.0


class Data(Section):
    source: Source
    generate: GenerateQueries | None = None
    train_queries: Positive | None = None  # use the first N of a seeded shuffle; None: all
    limit: Positive | None = None  # a rehearsal: at most so many queries of every split
    sizes: Sizes | None = None


# ------------------------------------------------------------------------------------- mine, teachers


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
        if self.sample and self.depth <= self.skip + self.top:
            raise ValueError(f"`sample` draws from ranks {self.skip + self.top + 1} to `depth`, which is {self.depth}: "
                             "there are none; raise depth")
        return self


class Mine(Section):
    miners: dict[str, Miner] = {"bm25": Miner(kind="bm25")}
    shard_queries: Positive = 1000  # queries a candidate shard
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
        if self.fine_tune is not None and self.kind != "cross-encoder":
            raise ValueError("fine_tune is for cross-encoders")
        return self


class Score(Section):
    """The scoring job. `actors`: how many at once (None: one per GPU, or per `cpus` cores)."""

    actors: Positive | None = None
    cpus: Annotated[float, Field(gt=0)] = 1.0  # per actor
    gpus: Annotated[float, Field(ge=0)] | None = None  # per actor; None: 1 where there are GPUs
    max_tries: Positive = 3  # of a shard whose worker dies
    rerank: bool = True  # also score the test candidates, for the table


class Label(Section):
    """From raw teacher scores to training labels (SPLADE-v3, arXiv 2403.06789)."""

    normalise: Literal["min-max", "z-score", "none"] = "min-max"  # per query and teacher
    map_to: str | None = None  # teacher whose global mean and standard deviation the labels take
    scale: Annotated[float, Field(gt=0)] = 1.0  # without map_to: a label of 1 in the student's dot products
    drop_false_negatives: float | None = None  # drop negatives above the positive by more than this, in label units

    @model_validator(mode="after")
    def _one_scale(self) -> Label:
        if self.map_to is not None and self.scale != 1.0:
            raise ValueError("map_to gives the labels their scale: leave out scale, or map_to")
        return self


# ------------------------------------------------------------------------------------ student, training


class CalibratedStart(Section):
    """An MLM head for a backbone without one, set so that the untrained student is already a fair retriever."""

    passages: Positive = 1000  # measured on these
    percentile: Annotated[float, Field(gt=0, lt=100)] = 99.0  # of a term's maximum logit over texts without the term
    margin: Annotated[float, Field(gt=0)] = 1.5  # mean logit, above that percentile, of the words in a text
    idf_scale: Annotated[float, Field(ge=0)] = 0.5  # highest mean logit of a text's own word, per unit of its IDF


class Student(Section):
    model: str
    revision: str | None = None
    layers: Positive | None = None  # keep only the lower layers
    start: Literal["auto", "mlm", "calibrated"] = "auto"  # auto: calibrated where the checkpoint has no MLM head
    calibration: CalibratedStart = CalibratedStart()
    pooling: Literal["max", "sum"] = "max"
    activation: Literal["relu", "log1p_relu"] = "relu"  # log1p(relu(x)), or log1p(log1p(relu(x)))
    query_max_length: Positive = 64
    passage_max_length: Positive = 128
    top_k: Positive | None = None  # keep only the strongest terms of a text when encoding (saved: max_active_dims)
    lower_case: bool = False  # for tokenizers that keep case


class KlLoss(Section):
    kind: Literal["kl"]
    weight: float = 1.0
    student_temperature: Annotated[float, Field(gt=0)] = 1.0
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0


class MarginMseLoss(Section):
    kind: Literal["margin-mse"]
    weight: float = 1.0
    pairs: Literal["positive", "all"] = "positive"  # positive against each negative, or all pairs of the list


class InfoNceLoss(Section):
    kind: Literal["infonce"]
    weight: float = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    in_batch: bool = True  # other queries' passages, of all processes, as negatives


Loss = Annotated[KlLoss | MarginMseLoss | InfoNceLoss, Field(discriminator="kind")]


class Regularizer(Section):
    kind: Literal["flops", "l1", "anti-zero"]
    weight: Annotated[float, Field(ge=0)]
    ramp: Literal["constant", "linear", "quadratic"] = "quadratic"
    ramp_steps: Annotated[int, Field(ge=0)] = 0  # optimizer steps
    group_size: Positive | None = None  # flops: texts a mean is taken over; None: the global batch
    threshold: Annotated[int, Field(ge=0)] | None = None  # texts with at most so many active terms go free


class Checkpoints(Section):
    every: Positive = 500  # optimizer steps
    keep_last: Positive = 2


class Train(Section):
    batch_size: Positive = 32  # queries, over all processes
    negatives: Positive = 7  # passages a query besides its positive
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Positive | None = None  # overrides epochs
    lr: Annotated[float, Field(gt=0)] = 2e-5
    head_lr: Annotated[float, Field(gt=0)] | None = None  # the MLM head's own; None: lr
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    optimizer: Literal["adamw", "sgd"] = "adamw"
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0  # 0: no clipping
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    losses: tuple[Loss, ...] = (KlLoss(kind="kl"),)
    query_regularizers: tuple[Regularizer, ...] = ()
    passage_regularizers: tuple[Regularizer, ...] = ()
    chunk_tokens: Positive = 8192  # padded tokens encoded at a time
    activation_budget: Annotated[float, Field(ge=0)] = 0.0  # GiB of graphs kept instead of recomputed
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None  # None: the model's own
    processes: Positive | None = None  # on this machine; None: one per GPU, else 1
    checkpoints: Checkpoints = Checkpoints()
    evaluate_every: Positive | None = None  # optimizer steps between evaluations on the development set
    max_bad_steps: Positive = 10  # steps with a non-finite loss or gradient before the run stops
    activation_checkpointing: bool = False
    # passed through, as a section or the path of a JSON file; what contradicts the recipe is refused
    deepspeed: dict[str, Any] = {}

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(Path(value).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{value} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{value} is not valid JSON: {error}") from None

    @model_validator(mode="after")
    def _some_loss(self) -> Train:
        if not self.losses:
            raise ValueError("needs at least one loss")
        return self


# ------------------------------------------------------------------------- evaluation, cluster, tracking


class Evaluate(Section):
    split: Split = "test"
    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")  # names of ir-measures
    depth: Positive = 1000  # of the ranking
    dev_passages: Positive = 20_000  # searched in during training: judged ones, then candidates by rank
    batch_tokens: Positive | None = None  # padded tokens a batch; None: what suits the device
    precision: Dtype = "auto"  # of the encoder's products; auto: bfloat16 where this machine has it and it is faster
    baselines: bool = True  # BM25, the student's start, each teacher and the ensemble reranking


class Cluster(Section):
    """Ray: one that is started on this machine (address None), or one that runs.

    `auto` is the one that RAY_ADDRESS names, or that runs on this machine; its machines must have this program
    installed. Those of any other address are sent its code.
    """

    address: str | None = None
    nodes: Positive | None = None  # with an address: machines to wait for; fewer are an error
    cpus: Positive | None = None  # without an address: None is all of this machine's
    object_store_gib: Annotated[float, Field(gt=0)] = 0.5  # per machine, where we start Ray


class SlurmJob(Section):
    """What a job asks Slurm for; None leaves it to the cluster's own default."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None  # as sbatch takes it: minutes, HH:MM:SS, D-HH:MM:SS
    nodes: Positive | None = None  # more than one for `score` (Ray) and `train`
    gpus: Positive | None = None  # per machine; training runs a process on each
    cpus: Positive | None = None  # per process
    memory: str | None = None  # per machine, e.g. 64G
    warn: Positive | None = None  # seconds from the signal to stop to the time limit; None: as the script says
    options: tuple[Annotated[str, Field(pattern=r"^-")], ...] = ()  # more options of sbatch, e.g. --constraint=h100


Stage = Literal["import", "mine", "teach", "score", "label", "train", "evaluate"]


class Slurm(SlurmJob):
    """`distill submit`: what its jobs ask for, and how they find this program."""

    stages: dict[Stage, SlurmJob] = {}  # what the job of a stage asks for instead
    array: Positive | None = None  # score in so many tasks of a job array; None: in one job, with Ray on its machines
    at_once: Positive | None = None  # tasks of the array that may run together
    setup: tuple[str, ...] = ()  # shell lines that every job begins with: modules, environments, variables
    python: tuple[str, ...] = ()  # what runs Python, e.g. in a container; (): the interpreter that submits


class Wandb(Section):
    project: str
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


class Tracking(Section):
    wandb: Wandb | None = None
    log_every: Positive = 10  # optimizer steps


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


def resolve_model(name: str) -> str:
    """Turn `package:<module>/<folder>` (a model that an installed package carries) into a path; others pass through."""
    if not name.startswith("package:"):
        return name
    module, _, folder = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"model {name!r}: the package {module!r} is not installed "
                          f"(pip install {module.replace('_', '-')})")
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if not path.is_dir():
        raise RecipeError(f"model {name!r}: the package {module!r} has no folder {folder!r}")
    return str(path)
