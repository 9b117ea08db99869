"""`data`: where queries, passages and judgements come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.config.base import FilePath, Fraction, Positive, Section, Split, nearest

_IDS = ("query_id", "passage_ids")
_COLUMNS = {  # layout -> the names that `columns` may translate
    "triples": ("query", "positive", "negative", "passages", "label", "score", *_IDS),
    "flagembedding": ("query", "pos", "neg", "pos_scores", "neg_scores", *_IDS),
    "pairs": ("query", "positive", *_IDS),
    "beir": ("id", "title", "text", "query_id", "passage_id", "grade"),
}
_ROWS = ("triples", "flagembedding", "pairs")


def unread_column(columns: dict[str, str | None], layout: str) -> str | None:
    """What to say about a name in `columns` that rows of this layout do not have; None where they have all of them."""
    read = _COLUMNS.get(layout) or tuple(dict.fromkeys(name for rows in _ROWS for name in _COLUMNS[rows]))
    for name in columns:
        if name not in read and any(name in names for names in _COLUMNS.values()):
            return f"'columns.{name}' is not read with layout: {layout}, which has {', '.join(read)}"
        if name not in read:
            return f"unknown field 'columns.{name}'{nearest(name, read)}"
    return None


def _check_columns(columns: dict[str, str | None], layout: str) -> None:
    if unread := unread_column(columns, layout):
        raise ValueError(unread)
    for name, theirs in columns.items():
        if theirs is None and (layout == "beir" or name not in _IDS):
            raise ValueError(f"columns.{name} is null; only {' and '.join(_IDS)} of rows can be left out so")


class PythonDocs(Section):
    """Docstrings of the running interpreter's standard library; splits by module, so nothing leaks."""

    kind: Literal["python-docs"]
    min_words: Positive = 15  # words a docstring's body must have
    test_queries: Positive = 300
    dev_queries: Positive = 100
    documents_only: bool = False  # as if nobody had asked them anything: test queries alone, for `data.generate`


class Beir(Section):
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv."""

    kind: Literal["beir"]
    path: FilePath
    splits: dict[Split, str] = {"train": "train", "dev": "dev", "test": "test"}  # ours -> name of the qrels file


class MsMarco(Section):
    """MS MARCO's passage files: collection.tsv, queries.<split>.tsv, qrels.<split>.tsv."""

    kind: Literal["msmarco"]
    path: FilePath
    splits: dict[Split, str] = {"train": "train", "dev": "dev.small"}


class Jsonl(Section):
    """Rows of query, positive and negatives, with or without teacher scores, in one JSONL, CSV/TSV or Parquet file.

    `layout`: `triples` (sentence-transformers: `query`, `positive`, `negative` / `negative_1`.. / `negatives`,
    and `label` / `score` with one number, or a list, per passage), `flagembedding` (`query`, `pos`, `neg`,
    `pos_scores`, `neg_scores`), `pairs` (columns `query` and `positive`). Ids may stand beside the texts: `query_id`
    and `passage_ids` (or `pos_id` and `neg_id`).
    """

    kind: Literal["jsonl"]
    path: FilePath
    layout: Literal["auto", "triples", "flagembedding", "pairs"] = "auto"
    columns: dict[str, str | None] = {}  # our name -> the file's, where they differ; ids, null: not read
    dev_queries: Annotated[int, Field(ge=0)] = 0
    test_queries: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _columns_are_read(self) -> Jsonl:
        _check_columns(self.columns, self.layout)
        return self


class NaverScores(Section):
    """A BEIR or MS MARCO folder with scored hard negatives: naver's `{qid: {did: score}}`, or a TREC run."""

    kind: Literal["naver"]
    collection: Annotated[Beir | MsMarco, Field(discriminator="kind")]
    scores: FilePath  # .json or .json.gz; by any other name, a TREC run


class HuggingFace(Section):
    """A dataset on the hub or on disk: either BEIR-like (configurations corpus, queries, qrels) or rows of triples."""

    kind: Literal["huggingface"]
    dataset: str
    layout: Literal["beir", "triples", "flagembedding", "pairs"] = "triples"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    columns: dict[str, str | None] = {}  # our name -> the dataset's, where they differ; ids of rows, null: not read
    dev_queries: Annotated[int, Field(ge=0)] = 0
    test_queries: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _columns_are_read(self) -> HuggingFace:
        _check_columns(self.columns, self.layout)
        return self


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


class ModelShape(Section):
    """A transformer's shape, as its config.json has it."""

    layers: Positive
    hidden: Positive
    feed_forward: Positive | None = None  # None: four times hidden
    attention: Positive | None = None  # heads x channels a head; None: hidden
    vocabulary: Positive | None = None
    gated: bool = False  # three matrices in the feed-forward, instead of two


Count = Annotated[int, Field(ge=0)]


class Sizes(Section):
    """Declared sizes, used by `--dry-run` and `distill plan` where data and models are not there yet."""

    passages: Count
    queries: Count  # for training
    dev_queries: Count = 0
    test_queries: Count = 0
    passage_tokens: Annotated[float, Field(gt=0)] = 80.0  # mean
    query_tokens: Annotated[float, Field(gt=0)] = 9.0
    models: dict[str, ModelShape] = {}  # by the names that the recipe gives them


class Data(Section):
    source: Source
    generate: GenerateQueries | None = None
    train_queries: Positive | None = None  # use the first N of a seeded shuffle; None: all
    limit: Positive | None = None  # a rehearsal: at most so many queries of every split
    sizes: Sizes | None = None
