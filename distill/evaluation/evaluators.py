"""sentence-transformers' evaluators of sparse encoders, run on the saved student as `SparseEncoder` loads it.

Retrieval, reranking, triplets and rank fusion use the run's own judged queries and candidates; the others read their
own data (`distill.evaluation.evaluator_data`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import numpy as np
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder import evaluation as st

from distill.config import evaluators as config
from distill.errors import RecipeError
from distill.evaluation.collection import Collection
from distill.evaluation.evaluator_data import read_labels, read_texts
from distill.evaluation.rerank import Ranking
from distill.run.device import default_device
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.run.model_ref import ModelRef
from distill.run.run import Run
from distill.store.candidates import iterate_candidates

log = logging.getLogger(__name__)

T = TypeVar("T")
_MAX_PASSAGES = 1_000_000  # sentence-transformers' retrieval holds every text as a Python string


class _Common(TypedDict):
    """Arguments of most evaluators."""

    batch_size: int
    max_active_dims: int | None
    write_csv: bool


class _Cutoffs(TypedDict):
    """Arguments of the retrieval evaluators."""

    ndcg_at_k: list[int]
    mrr_at_k: list[int]
    accuracy_at_k: list[int]
    precision_recall_at_k: list[int]
    map_at_k: list[int]


def run_evaluators(run: Run, collection: Collection, student: Ranking, bm25: Ranking | None) -> list[dict[str, Any]]:
    """Run the recipe's evaluators; one entry each: `name`, `kind`, `metrics` and the name of the `primary` metric.

    `student` and `bm25` are the rankings that rank fusion fuses; only rank fusion needs `bm25`.
    """
    model = SparseEncoder(str(run.folder.model), device=default_device())
    results = []
    for entry in run.recipe.evaluate.evaluators:
        if entry.kind == "reciprocal-rank-fusion":
            assert bm25 is not None
            evaluator = _rank_fusion(entry, collection, student, bm25)
            values = evaluator()
        else:
            evaluator = _evaluator(entry, model, run.folder, collection)
            values = evaluator(model)
        metrics = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        primary = evaluator.primary_metric
        results.append({"name": entry.name or entry.kind, "kind": entry.kind, "primary": primary, "metrics": metrics})
        log.info("%s: %s %s", entry.name or entry.kind, primary, metrics[primary])
    return results


def check_evaluators(entries: Iterable[config.Evaluator], passages: int) -> None:
    """Refuse missing or malformed data, and collections of too many `passages` for an evaluator, before any work."""
    for entry in entries:
        if entry.kind == "nano-beir":
            _nano_beir(entry)
        elif entry.kind == "information-retrieval" and passages > _MAX_PASSAGES:
            raise RecipeError(
                f"evaluate.evaluators: information-retrieval holds every passage in memory, and there "
                f"are {passages:,}; leave it out: the results table measures the same ranking"
            )
        elif isinstance(entry, config.OfAFile):
            read_texts(entry)
            if entry.kind in ("similarity", "binary-classification"):
                read_labels(entry)


def _evaluator(entry: config.Evaluator, model: SparseEncoder, folder: RunFolder, collection: Collection) -> Any:
    common = _Common(batch_size=entry.batch_size, max_active_dims=entry.top_k, write_csv=False)
    match entry.kind:
        case "information-retrieval":
            return _information_retrieval(entry, collection, common)
        case "nano-beir":
            return _nano_beir(entry)
        case "reranking":
            samples: list[dict[str, str | list[str]]] = [
                {"query": judged.query, "positive": judged.positives, "negative": judged.negatives}
                for judged in _judged(folder, collection)
            ]
            return st.SparseRerankingEvaluator(samples, at_k=entry.at_k, similarity_fct=model.similarity, **common)
        case "triplet":
            triplets = list(_judged(folder, collection))
            return st.SparseTripletEvaluator(
                [judged.query for judged in triplets],
                [judged.positives[0] for judged in triplets],
                [judged.negatives[0] for judged in triplets],
                margin=entry.margin,
                similarity_fn_names=_listed(entry.similarities),
                **common,
            )
        case "similarity":
            return st.SparseEmbeddingSimilarityEvaluator(
                *read_texts(entry), read_labels(entry), similarity_fn_names=_listed(entry.similarities), **common
            )
        case "binary-classification":
            labels = [int(label) for label in read_labels(entry)]
            return st.SparseBinaryClassificationEvaluator(
                *read_texts(entry), labels, similarity_fn_names=_listed(entry.similarities), **common
            )
        case "translation":
            return st.SparseTranslationEvaluator(*read_texts(entry), **common)
        case "mse":
            return st.SparseMSEEvaluator(*read_texts(entry), teacher_model=_teacher(entry, model), **common)


@dataclass(frozen=True)
class _JudgedQuery:
    """Texts of a judged query: positives by descending grade, negative candidates by rank."""

    query: str
    positives: list[str]
    negatives: list[str]


def _judged(folder: RunFolder, collection: Collection) -> Iterator[_JudgedQuery]:
    """Yield the judged queries that have a negative among their candidates."""
    path = folder.candidates(collection.split)
    if read_manifest(path) is None:
        raise RecipeError(
            f"evaluate.evaluators: reranking and triplet need candidates for the {collection.split} "
            f"queries, but {path} has none; run `distill mine` first"
        )
    any_negatives = False
    for _, shard in iterate_candidates(path):
        for i, query in enumerate(shard.query.tolist()):
            span = slice(shard.offsets[i], shard.offsets[i + 1])
            grades = collection.grades.get(query)
            if grades is None:
                continue
            by_rank = shard.passages[span][np.argsort(shard.rank[span], kind="stable")].tolist()
            negatives = [passage for passage in by_rank if grades.get(passage, 0) <= 0]
            positives = sorted((row for row in grades if grades[row] > 0), key=lambda row: -grades[row])
            if negatives:
                any_negatives = True
                yield _JudgedQuery(
                    collection.queries.texts(np.array([query]))[0],
                    collection.passages.texts(np.array(positives)),
                    collection.passages.texts(np.array(negatives)),
                )
    if not any_negatives:
        raise RecipeError(
            f"evaluate.evaluators: reranking and triplet need negatives, but no judged {collection.split} "
            "query has one among its candidates; raise mine.rerank_depth, or leave them out"
        )


def _information_retrieval(entry: config.InformationRetrieval, collection: Collection, common: _Common) -> Any:
    rows = np.arange(collection.passages.collection_size)
    corpus = dict(zip(collection.passages.ids(rows), collection.passages.texts(rows), strict=True))
    names = collection.queries.ids(collection.query_rows)
    queries = dict(zip(names, collection.queries.texts(collection.query_rows), strict=True))
    relevant = {
        name: set(collection.passages.ids(np.array([row for row, grade in graded.items() if grade > 0])))
        for name, graded in zip(names, collection.grades.values(), strict=True)
    }
    return st.SparseInformationRetrievalEvaluator(queries, corpus, relevant, **_cutoffs(entry), **common)


def _nano_beir(entry: config.NanoBeir) -> Any:
    try:
        return st.SparseNanoBEIREvaluator(
            _listed(entry.datasets),
            entry.dataset_id,
            batch_size=entry.batch_size,
            max_active_dims=entry.top_k,
            write_csv=False,
            **_cutoffs(entry),
        )
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"evaluate.evaluators: nano-beir ({entry.dataset_id}, from the hub): {error} "
            "On a machine without the hub, leave it out or fill the cache of `datasets` first"
        ) from error


def _rank_fusion(entry: config.RankFusion, collection: Collection, student: Ranking, bm25: Ranking) -> Any:
    names = collection.queries.ids(collection.query_rows)
    texts = collection.queries.texts(collection.query_rows)

    def samples(ranking: Ranking) -> list[dict[str, Any]]:
        rankings: list[dict[str, Any]] = []
        for name, text, (query, graded) in zip(names, texts, collection.grades.items(), strict=True):
            rows = ranking[query][: entry.depth].tolist()
            # sentence-transformers cannot compute nDCG of a single document; a second, irrelevant one changes nothing
            rankings.append(
                {
                    "query_id": name,
                    "query": text,
                    "documents": rows if len(rows) != 1 else [*rows, -1],
                    "positive": [row for row, grade in graded.items() if grade > 0],
                }
            )
        return rankings

    return st.ReciprocalRankFusionEvaluator(
        samples(bm25), samples(student), at_k=entry.at_k, rrf_k=entry.rrf_k, write_csv=False
    )


def _teacher(entry: config.Mse, model: SparseEncoder) -> SparseEncoder:
    try:
        teacher = SparseEncoder(
            ModelRef.parse(entry.teacher).location, revision=entry.teacher_revision, device=str(model.device)
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"evaluate.evaluators: the teacher {entry.teacher!r} cannot be loaded: {error}") from error
    sizes = [encoder.get_embedding_dimension() for encoder in (teacher, model)]
    if sizes[0] != sizes[1]:
        raise RecipeError(
            f"evaluate.evaluators: mse compares vectors, but the teacher {entry.teacher!r} has "
            f"{sizes[0]} dimensions and the student {sizes[1]}; choose a teacher with the student's vocabulary"
        )
    return teacher


def _cutoffs(entry: config.InformationRetrieval | config.NanoBeir) -> _Cutoffs:
    return {
        "ndcg_at_k": list(entry.ndcg_at_k),
        "mrr_at_k": list(entry.mrr_at_k),
        "accuracy_at_k": list(entry.accuracy_at_k),
        "precision_recall_at_k": list(entry.precision_recall_at_k),
        "map_at_k": list(entry.map_at_k),
    }


def _listed(values: tuple[T, ...] | None) -> list[T] | None:
    return None if values is None else list(values)
