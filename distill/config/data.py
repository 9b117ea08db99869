"""`data`: the source of queries, passages and judgements."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from distill.config.base import AUTO, MOST, Count, ExecutionOnly, FilePath, Fraction, Positive, Section, Split, nearest
from distill.config.languages import language_name

_IDS = ("query_id", "passage_ids")
COLUMNS = {  # layout -> the names that `columns` may translate
    "triples": ("query", "positive", "negative", "passages", "label", "score", *_IDS),
    "flagembedding": ("query", "pos", "neg", "pos_scores", "neg_scores", *_IDS),
    "pairs": ("query", "positive", *_IDS),
    "beir": ("id", "title", "text", "query_id", "passage_id", "grade"),
}
_ROWS = ("triples", "flagembedding", "pairs")


def unread_column(columns: dict[str, str | None], layout: str) -> str | None:
    """Return a message about the first name in `columns` that this layout does not have; None if all are valid."""
    read = COLUMNS.get(layout) or tuple(dict.fromkeys(name for rows in _ROWS for name in COLUMNS[rows]))
    for name in columns:
        if name not in read and any(name in names for names in COLUMNS.values()):
            return f"'columns.{name}' is not read with layout: {layout}, which has {', '.join(read)}"
        if name not in read:
            return f"unknown field 'columns.{name}'{nearest(name, read)}"
    return None


def _check_columns(columns: dict[str, str | None], layout: str) -> None:
    if unread := unread_column(columns, layout):
        raise ValueError(unread)
    named = [column for column in columns.values() if column is not None]
    if repeated := [column for i, column in enumerate(named) if column in named[:i]]:
        ours = " and ".join(name for name, column in columns.items() if column == repeated[0])
        raise ValueError(f"columns: the one column {repeated[0]!r} can't be both {ours}")
    for name, column in columns.items():
        if column is None and (layout == "beir" or name not in _IDS):
            raise ValueError(f"columns.{name} is null; only {' and '.join(_IDS)} of rows can be left out")


class PythonDocs(Section):
    """Docstrings of the running interpreter's standard library, split into train, dev and test by module."""

    kind: Literal["python-docs"]
    """The bundled sample."""
    min_words: Positive = 15
    """Minimum number of words in a docstring's body; shorter ones are left out."""
    test_queries: Positive = 300
    """Number of test queries."""
    dev_queries: Positive = 100
    """Number of development queries."""
    documents_only: bool = False
    """Leave out the training and development queries, to try `data.generate` on a collection without any."""


class Beir(Section):
    """A folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv."""

    kind: Literal["beir"]
    """A folder in BEIR's layout."""
    path: FilePath
    """The folder."""
    splits: dict[Split, str] = {"train": "train", "dev": "dev", "test": "test"}
    """Split -> name of its file in qrels/, without .tsv."""
    columns: dict[Literal["id", "title", "text", "query_id", "query"], str] = {}
    """Our name -> the field of corpus.jsonl (id, title, text) or of queries.jsonl (query_id, query), where it has no
    usual name."""


class MsMarco(Section):
    """MS MARCO's passage files: collection.tsv, queries.<split>.tsv, qrels.<split>.tsv."""

    kind: Literal["msmarco"]
    """A folder of MS MARCO's passage files."""
    path: FilePath
    """The folder."""
    splits: dict[Split, str] = {"train": "train", "dev": "dev.small"}
    """Split -> its name in the files' names, e.g. dev.small for queries.dev.small.tsv."""


class Jsonl(Section):
    """Rows of query, positive and negatives, with or without teacher scores, in one JSONL, CSV/TSV or Parquet file."""

    kind: Literal["jsonl"]
    """One JSONL, CSV, TSV or Parquet file of rows."""
    path: FilePath
    """The file."""
    layout: Literal["auto", "triples", "flagembedding", "pairs"] = "auto"
    """Columns of a row. `triples` (sentence-transformers): `query`, `positive`, `negative` / `negative_1`.. /
    `negatives`, and `label` / `score` with one number, or a list with one number per passage. `flagembedding`: `query`,
    `pos`, `neg`, `pos_scores`, `neg_scores`. `pairs`: `query`, `positive`. All may have the ids `query_id` and
    `passage_ids` (or `pos_id` and `neg_id`). `auto`: determined by the columns that each row fills."""
    first_is_positive: bool = False
    """In a list of passages without labels, the first is the positive and the others are negatives."""
    columns: dict[str, str | None] = {}
    """Name in the layout -> name in the file, where the two differ; null for an id: do not read it."""
    dev_queries: Count = 0
    """Number of queries held out for development."""
    test_queries: Count = 0
    """Number of queries held out for testing."""

    @model_validator(mode="after")
    def _columns_are_read(self) -> Jsonl:
        _check_columns(self.columns, self.layout)
        return self


class NaverScores(Section):
    """A BEIR or MS MARCO folder with scored hard negatives: naver's `{qid: {did: score}}`, or a TREC run."""

    kind: Literal["naver"]
    """A BEIR or MS MARCO folder, and a file of scored hard negatives."""
    collection: Annotated[Beir | MsMarco, Field(discriminator="kind")]
    """The folder: a source of kind `beir` or `msmarco`."""
    scores: FilePath
    """The scores: `{qid: {did: score}}` in a .json or .pkl file (or .gz); any other name is read as a TREC run. A
    pickle may hold plain numbers, strings, lists and dicts only, and is read whole, into memory."""


class HuggingFace(Section):
    """A dataset on the hub or on disk: BEIR-like (configurations corpus, queries, qrels), or rows as in `jsonl`."""

    kind: Literal["huggingface"]
    """A dataset of the `datasets` library."""
    dataset: str
    """Name on the hub, or a folder written by `save_to_disk`."""
    layout: Literal["beir", "auto", "triples", "flagembedding", "pairs"] = "auto"
    """`beir`: configurations corpus, queries and qrels; otherwise rows, as in a source of kind `jsonl`."""
    first_is_positive: bool = False
    """In a list of passages without labels, the first is the positive and the others are negatives."""
    config: str | None = None
    """Configuration of the dataset. null: its default."""
    split: str = "train"
    """Split of the dataset that is read."""
    revision: str | None = None
    """Commit, branch or tag on the hub. null: the default branch."""
    columns: dict[str, str | None] = {}
    """Name in the layout -> name in the dataset, where the two differ; null for an id of rows: do not read it."""
    dev_queries: Count = 0
    """Number of queries held out for development."""
    test_queries: Count = 0
    """Number of queries held out for testing."""

    @model_validator(mode="after")
    def _columns_are_read(self) -> HuggingFace:
        _check_columns(self.columns, self.layout)
        return self


class IrDatasets(Section):
    """Collections of the ir_datasets catalogue, e.g. `msmarco-passage/train/judged` (optional extra `ir-datasets`)."""

    kind: Literal["ir-datasets"]
    """Collections of the ir_datasets catalogue."""
    splits: dict[Split, str]
    """Split -> dataset id; all datasets must share one corpus."""


Source = Annotated[
    PythonDocs | Beir | MsMarco | Jsonl | NaverScores | HuggingFace | IrDatasets, Field(discriminator="kind")
]


class GenerateQueries(Section):
    """Training queries made from the passages themselves, for collections without any.

    A query's own words are removed from the passage that it is paired with; of `phrases`, half of them.
    """

    kinds: tuple[Literal["title", "sentence", "phrases", "span"], ...] = ("title", "sentence")
    """What becomes a query: a passage's title, one of its sentences, 3 to 8 of its most characteristic words
    (`phrases`), or several consecutive sentences of 20 to 60 words (`span`). With `phrases` or `span` among them the
    kinds are drawn for each passage: equally often, or so that the numbers of words resemble those of the source's own
    training queries or, without any, of the query log's. Without, the title comes first, then sentences."""
    per_passage: Positive = 2
    """Maximum number of queries per passage, or per part of one that is longer than `window`."""
    min_words: Positive = 5
    """Minimum number of words in a query; `phrases` may be shorter."""
    min_passage_words: Positive = 15
    """Minimum number of words that must remain of the passage; `phrases` leave most words."""
    window: Annotated[int, Field(ge=80, le=MOST)] | None = None
    """Number of words, at least 80, up to which a passage is one text. A longer one is taken apart between sentences; a
    query is paired with the rest of its part. null: no limit."""
    dev_share: Fraction = 0.05
    """Share of the passages whose queries become development queries."""

    @property
    def mixes(self) -> bool:
        """Whether the kinds are drawn, instead of the title first and then sentences."""
        return not {"title", "sentence"}.issuperset(self.kinds)

    @model_validator(mode="after")
    def _window_is_read(self) -> GenerateQueries:
        if self.window is not None and not self.mixes:
            raise ValueError("window has no effect without phrases or span among the kinds; add one, or set it to null")
        return self


class QueryLog(Section):
    """Training queries that nobody judged. Teachers order their candidates, and no passage counts as a positive.

    Queries that differ in case and blanks only are one, in the spelling that comes first. Empty ones, and those with
    the text of a development, test or other training query, are left out and counted.
    """

    path: FilePath | None = None
    """A file of queries: .txt with one query per line; or rows in a JSONL, CSV, TSV or Parquet file. null: the source's
    own queries without judgements."""
    column: str | None = None
    """Column of the queries in the file. null: one of the usual names, such as `query` or `text`."""
    count_column: str | None = None
    """Column that says how often a query was asked. null: one of the usual names, such as `count`; without any, each
    row counts once."""
    limit: Positive | None = None
    """Maximum number of queries, the most frequent first, those of equal frequency in a seeded shuffle. null: all."""
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the training queries that comes from the log, against judged and generated ones, which all take part as
    far as `train_queries` allows. null: all of the log's."""

    @model_validator(mode="after")
    def _columns_are_of_a_file(self) -> QueryLog:
        for name in ("column", "count_column"):
            if getattr(self, name) is not None and (self.path is None or ".txt" in self.path.suffixes):
                raise ValueError(f"{name} has no effect without a file of rows (JSONL, CSV, TSV, Parquet) in path")
        return self


class ModelShape(Section):
    """A transformer's shape, as in its config.json."""

    layers: Positive
    """Number of layers."""
    hidden: Positive
    """Hidden size."""
    feed_forward: Positive | None = None
    """Inner size of the feed-forward blocks. null: four times `hidden`."""
    attention: Positive | None = None
    """Total width of the attention heads: their number times their size. null: `hidden`."""
    vocabulary: Positive | None = None
    """Size of the vocabulary. null: no vocabulary head is counted."""
    gated: bool = False
    """Gated feed-forward blocks: three matrices instead of two."""


class Sizes(Section):
    """Declared sizes, for `--dry-run` and `distill plan` where data and models are not available yet."""

    passages: Count
    """Number of passages."""
    queries: Count
    """Number of training queries."""
    dev_queries: Count = 0
    """Number of development queries."""
    test_queries: Count = 0
    """Number of test queries."""
    passage_tokens: Annotated[float, Field(gt=0)] = 80.0
    """Mean number of tokens per passage."""
    query_tokens: Annotated[float, Field(gt=0)] = 9.0
    """Mean number of tokens per query."""
    models: dict[str, ModelShape] = {}
    """Model, by the name that the recipe uses -> its shape."""


class Data(Section):
    """What is imported."""

    source: Source
    """Where the data comes from; `kind` selects the reader."""
    language: str = AUTO
    """Language of the texts, for BM25's stemmer and stop words: its English name or ISO code (`german` or `de`).
    `auto`: found after the import from a sample of the passages. `none`: words are counted as they are, as in a
    collection of several languages. Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese and Tibetan are counted in
    pairs of characters, whatever the language here."""
    on_missing: Literal["refuse", "drop"] = "refuse"
    """Judgements and scores that name a query or passage that the source does not have: `refuse` ends the import,
    `drop` leaves them out and says how many."""
    own_document: Literal["auto", "same-id", "keep"] = "auto"
    """What of a passage under a query's own id, as in ArguAna and Quora: `auto` leaves it out of the query's rankings
    and negatives if it also has the query's text, `same-id` whatever its text (BEIR's `ignore_identical_ids`), `keep`
    never. A passage that is judged relevant to the query stays."""
    quote_ids: bool = False
    """Write the blanks in ids as %20 (and % as %25), since TREC files cannot hold them. Otherwise such ids are
    refused."""
    generate: GenerateQueries | None = None
    """Make training queries from the passages. null: use the source's queries only."""
    query_log: QueryLog | None = None
    """Train on queries without judgements, too. null: they are left out."""
    train_queries: Positive | Literal["auto"] | None = None
    """Number of training queries of all kinds, the first of a seeded shuffle. `auto`: as many as training reads,
    `train.steps` times `train.batch_size` (of the longest round), so that no query is mined and scored in vain. null:
    all."""
    limit: Positive | None = None
    """Maximum number of queries per split, for a rehearsal (`--limit` sets it). null: no limit."""
    sizes: ExecutionOnly[Sizes | None] = None
    """Declared sizes for forecasts. null: forecasts need the source's files."""

    @field_validator("language", mode="before")
    @classmethod
    def _language_is_known(cls, language: object) -> object:
        if language is False:  # Norwegian's code is what YAML 1.1 reads as false
            return "norwegian"
        return language if not isinstance(language, str) or language == AUTO else language_name(language)

    @model_validator(mode="after")
    def _the_source_has_unjudged_queries(self) -> Data:
        source = self.source
        rows = source.kind in ("jsonl", "python-docs") or (source.kind == "huggingface" and source.layout != "beir")
        if self.query_log is not None and self.query_log.path is None and rows:
            raise ValueError(
                f"query_log.path is null, but every query of a source of kind {source.kind} comes with a passage; name "
                "a file of queries there"
            )
        return self
