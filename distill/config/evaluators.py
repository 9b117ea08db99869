"""`evaluate.evaluators`: sentence-transformers' evaluators of sparse encoders, by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill.config.base import Positive, Section

Similarity = Literal["dot", "cosine", "euclidean", "manhattan"]


class _Evaluator(Section):
    """Fields of all evaluators."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """Name in the results. null: the kind."""
    batch_size: Positive = 32
    """Texts per batch."""
    top_k: Positive | None = None
    """Cap on the number of active terms per text (`max_active_dims`). null: the student's own."""


class _FileEvaluator(_Evaluator):
    """Texts of a JSONL, CSV, TSV or Parquet file, a folder of `datasets`, or a dataset on the hub.

    Columns are read as sentence-transformers' trainers read them: the label is the column called label, labels, score
    or scores, and the texts are the others, in their order.
    """

    data: str
    """File, folder of `datasets`, or name of a dataset on the hub."""
    config: str | None = None
    """Configuration of the dataset. null: its default."""
    split: str | None = None
    """Split of the dataset; required if it has several."""
    revision: str | None = None
    """Commit, branch or tag on the hub. null: the default branch."""
    columns: tuple[str, ...] = ()
    """Columns that hold the texts, in order. []: all columns but the label."""


class InformationRetrieval(_Evaluator):
    """Every judged query of `evaluate.split` against the whole collection."""

    kind: Literal["information-retrieval"]
    """Retrieval over the whole collection, with binary relevance."""
    ndcg_at_k: tuple[Positive, ...] = (10,)
    """Cut-offs of nDCG."""
    mrr_at_k: tuple[Positive, ...] = (10,)
    """Cut-offs of the reciprocal rank."""
    accuracy_at_k: tuple[Positive, ...] = (1, 3, 5, 10)
    """Cut-offs of accuracy (a positive among the best k)."""
    precision_recall_at_k: tuple[Positive, ...] = (1, 3, 5, 10)
    """Cut-offs of precision and recall."""
    map_at_k: tuple[Positive, ...] = (100,)
    """Cut-offs of average precision."""


class NanoBeir(_Evaluator):
    """NanoBEIR's small collections, from the hub."""

    kind: Literal["nano-beir"]
    """Retrieval over NanoBEIR's collections."""
    datasets: tuple[str, ...] | None = None
    """Collections, e.g. msmarco, nq, fiqa2018. null: all 13."""
    dataset_id: str = "sentence-transformers/NanoBEIR-en"
    """Name on the hub: NanoBEIR, or a translation of it."""
    ndcg_at_k: tuple[Positive, ...] = (10,)
    """Cut-offs of nDCG."""
    mrr_at_k: tuple[Positive, ...] = (10,)
    """Cut-offs of the reciprocal rank."""
    accuracy_at_k: tuple[Positive, ...] = (1, 3, 5, 10)
    """Cut-offs of accuracy (a positive among the best k)."""
    precision_recall_at_k: tuple[Positive, ...] = (1, 3, 5, 10)
    """Cut-offs of precision and recall."""
    map_at_k: tuple[Positive, ...] = (100,)
    """Cut-offs of average precision."""


class Reranking(_Evaluator):
    """The judged positives of each query of `evaluate.split` among its candidates."""

    kind: Literal["reranking"]
    """Reranking of the mined candidates."""
    at_k: Positive = 10
    """Cut-off of nDCG and the reciprocal rank."""


class Triplet(_Evaluator):
    """The best judged positive of each query of `evaluate.split` against its best-ranked negative candidate."""

    kind: Literal["triplet"]
    """Accuracy: share of the queries whose positive is closer than the negative."""
    similarities: tuple[Similarity, ...] | None = None
    """Similarity functions. null: the student's own."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Margin by which the positive must be closer."""


class RankFusion(_Evaluator):
    """The student's ranking fused with BM25's; the figures `sparse_*` are the student's, `dense_*` BM25's."""

    kind: Literal["reciprocal-rank-fusion"]
    """Reciprocal rank fusion of the student and BM25."""
    at_k: Positive = 10
    """Cut-off of nDCG and the reciprocal rank."""
    rrf_k: Positive = 60
    """The constant k of 1 / (k + rank)."""
    depth: Positive = 100
    """Number of passages read of each ranking."""


class SimilarityPairs(_FileEvaluator):
    """Correlation of similarities with scores: two texts and a score per row."""

    kind: Literal["similarity"]
    """Correlation of similarities with scores."""
    similarities: tuple[Similarity, ...] | None = None
    """Similarity functions. null: the student's own."""


class BinaryClassification(_FileEvaluator):
    """Separation of pairs by a threshold on the similarity: two texts and a label, 0 or 1, per row."""

    kind: Literal["binary-classification"]
    """Separation of labelled pairs by a threshold on the similarity."""
    similarities: tuple[Similarity, ...] | None = None
    """Similarity functions. null: the student's own."""


class Translation(_FileEvaluator):
    """Share of the texts whose nearest neighbour is their translation: two texts per row."""

    kind: Literal["translation"]
    """Share of the texts whose nearest neighbour is their translation."""


class Mse(_FileEvaluator):
    """Squared error between a sparse teacher's vectors of a row's first text and the student's of its second.

    Vectors are compared whole: limit the data to some thousand rows. With one column, both encode the same text.
    """

    kind: Literal["mse"]
    """Squared error between a sparse teacher's vectors and the student's."""
    teacher: str
    """A SparseEncoder with the student's vocabulary: hub name, path, or package:<module>/<folder>."""
    teacher_revision: str | None = None
    """The teacher's commit, branch or tag on the hub. null: the default branch."""


OfTheRun = InformationRetrieval | Reranking | Triplet | RankFusion
OfAFile = SimilarityPairs | BinaryClassification | Translation | Mse
Evaluator = Annotated[OfTheRun | OfAFile | NanoBeir, Field(discriminator="kind")]
