"""`evaluate.evaluators`: sentence-transformers' evaluators of sparse encoders, by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill.config.base import Positive, Section

Similarity = Literal["dot", "cosine", "euclidean", "manhattan"]


class _Evaluator(Section):
    name: Annotated[str, Field(min_length=1)] | None = None  # in the results; None: the kind
    batch_size: Positive = 32  # texts
    top_k: Positive | None = None  # cap on the active terms of a text (max_active_dims); None: the student's own


class _OfAFile(_Evaluator):
    """Texts of a JSONL, CSV, TSV or Parquet file, a folder of `datasets`, or a dataset on the hub.

    Columns are read as sentence-transformers' trainers read them: the texts in their order, and as label the one
    called label, labels, score or scores. `columns` picks and orders the texts' columns.
    """

    data: str
    config: str | None = None
    split: str | None = None  # needed where there are several
    revision: str | None = None
    columns: tuple[str, ...] = ()


class InformationRetrieval(_Evaluator):
    """Every judged query of `evaluate.split` against the whole collection."""

    kind: Literal["information-retrieval"]
    ndcg_at_k: tuple[Positive, ...] = (10,)
    mrr_at_k: tuple[Positive, ...] = (10,)
    accuracy_at_k: tuple[Positive, ...] = (1, 3, 5, 10)
    precision_recall_at_k: tuple[Positive, ...] = (1, 3, 5, 10)
    map_at_k: tuple[Positive, ...] = (100,)


class NanoBeir(_Evaluator):
    """NanoBEIR's small collections, from the hub."""

    kind: Literal["nano-beir"]
    datasets: tuple[str, ...] | None = None  # e.g. msmarco, nq, fiqa2018; None: all 13
    dataset_id: str = "sentence-transformers/NanoBEIR-en"  # or a translation of it
    ndcg_at_k: tuple[Positive, ...] = (10,)
    mrr_at_k: tuple[Positive, ...] = (10,)
    accuracy_at_k: tuple[Positive, ...] = (1, 3, 5, 10)
    precision_recall_at_k: tuple[Positive, ...] = (1, 3, 5, 10)
    map_at_k: tuple[Positive, ...] = (100,)


class Reranking(_Evaluator):
    """The judged positives of each query of `evaluate.split` among its candidates."""

    kind: Literal["reranking"]
    at_k: Positive = 10


class Triplet(_Evaluator):
    """The best judged positive of each query of `evaluate.split` against its best-ranked negative candidate."""

    kind: Literal["triplet"]
    similarities: tuple[Similarity, ...] | None = None  # None: the student's own
    margin: Annotated[float, Field(ge=0)] = 0.0


class RankFusion(_Evaluator):
    """The student's ranking fused with BM25's; of the figures, `sparse_*` are the student's and `dense_*` BM25's."""

    kind: Literal["reciprocal-rank-fusion"]
    at_k: Positive = 10
    rrf_k: Positive = 60
    depth: Positive = 100  # of the two rankings


class SimilarityPairs(_OfAFile):
    """Correlation of similarities with scores: two texts and a score a row."""

    kind: Literal["similarity"]
    similarities: tuple[Similarity, ...] | None = None  # None: the student's own


class BinaryClassification(_OfAFile):
    """Whether a threshold on the similarity tells pairs apart: two texts and a label 0 or 1 a row."""

    kind: Literal["binary-classification"]
    similarities: tuple[Similarity, ...] | None = None  # None: the student's own


class Translation(_OfAFile):
    """Whether a text's nearest neighbour is its translation: two texts a row."""

    kind: Literal["translation"]


class Mse(_OfAFile):
    """Squared error against a sparse teacher's vectors of the first text of a row, by the student's of the second.

    Vectors are compared whole: keep to some thousand rows. With one column, both encode the same text.
    """

    kind: Literal["mse"]
    teacher: str  # a SparseEncoder with the student's vocabulary: hub name, path, or package:<module>/<folder>
    teacher_revision: str | None = None


OfTheRun = InformationRetrieval | Reranking | Triplet | RankFusion
OfAFile = SimilarityPairs | BinaryClassification | Translation | Mse
Evaluator = Annotated[OfTheRun | OfAFile | NanoBeir, Field(discriminator="kind")]
