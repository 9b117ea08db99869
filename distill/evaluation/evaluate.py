"""The evaluate stage: the saved student beside BM25, its teachers and its own start, on the judged queries.

The searched collection is rows [0, collection_size) of the passage store; search is exact unless the recipe asks for
Seismic. Everything about the student is measured on the checkpoint as it lies on disk, not on the model that training
holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from distill.config import Recipe
from distill.data.arrow import Shard
from distill.data.candidates import iterate_candidates
from distill.data.checkpoints import checkpoint_digest
from distill.data.files import read_json, write_atomic, write_json, xxh128_file
from distill.data.fingerprint import check_same
from distill.data.layout import RunFolder
from distill.data.manifest import FORMAT, Manifest, read_manifest, require_manifest, write_manifest
from distill.errors import StorageError
from distill.evaluation import metrics
from distill.evaluation.collection import Collection, open_collection
from distill.evaluation.curve import cost_curve
from distill.evaluation.evaluator_data import evaluator_fields
from distill.evaluation.evaluators import check_evaluators, run_evaluators
from distill.evaluation.rerank import ENSEMBLE, Ranking, rerank, scored_teachers
from distill.mining.bm25 import build_index, open_index
from distill.mining.encode import Precision, encode_blocks, encode_store, token_store
from distill.mining.search import search_blocks, search_inverted, search_sparse
from distill.mining.seismic import build_seismic, search_seismic
from distill.student.base import Student
from distill.student.checkpoint import load_checkpoint
from teachers.execution import fastest_precision

log = logging.getLogger(__name__)

Vectors = tuple[sparse.csr_matrix, sparse.csr_matrix]  # of the judged queries and of the collection


def evaluation_fields(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """What the evaluation depends on: the hashed part of its manifest."""
    cfg, model = recipe.evaluate, checkpoint_digest(folder.model)
    if not model:
        raise StorageError(f"{folder.model}: there is no student to evaluate; run `distill train` first")
    fields = {
        "stage": "evaluate",
        "format": FORMAT,
        "split": cfg.split,
        "metrics": list(cfg.metrics),
        "depth": cfg.depth,
        "baselines": cfg.baselines,
        "model": model,
        "data": require_manifest(folder.data, "import").fingerprint,
    }
    if cfg.baselines:
        teachers = scored_teachers(recipe, folder, cfg.split)
        fields |= {name: checkpoint_digest(path) for name, (_, path) in _other_students(recipe, folder).items()}
        fields["normalise"] = recipe.label.normalise
        fields["weights"] = {name: recipe.teachers[name].weight for name in teachers}
        fields["scores"] = {name: read_manifest(folder.scores(name, cfg.split)).fingerprint for name in teachers}
    if cfg.search != "exact":
        fields["search"] = cfg.search
    if cfg.search == "seismic" or cfg.top_ks:
        fields["seismic"] = cfg.seismic.model_dump(mode="json")
    if cfg.top_ks:
        fields["curve"] = {"top_ks": sorted(set(cfg.top_ks)), "of": cfg.top_ks_of}
    if cfg.evaluators:
        fields["evaluators"] = [evaluator_fields(entry) for entry in cfg.evaluators]
    return fields


def evaluate(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Evaluate, and write metrics/evaluation.json and a TREC run a system; returns what the JSON holds.

    `rows` has one entry a system: `name`, `title`, `metrics`, and for first stages `query_terms`, `passage_terms`
    (mean active dimensions) and `flops`; `tests` compares the student with BM25 and with its start, query by query;
    `curve` is `cost_curve`'s, where the recipe has `top_ks`, and `evaluators` has an entry for each of the recipe's.
    An evaluation that is there already is read, not repeated. Raises `FingerprintError` if it was of other inputs.
    """
    fields = evaluation_fields(recipe, folder)
    done = read_manifest(folder.metrics)
    if done is not None:
        check_same(folder.metrics, done.fields, fields)
        return read_json(folder.evaluation)
    began = time.monotonic()
    cfg, collection = recipe.evaluate, open_collection(folder, recipe.evaluate.split)
    metrics.check_depth(cfg.metrics, cfg.depth)
    check_evaluators(cfg.evaluators, collection.passages.collection_size)
    table = _Table(recipe, folder, collection)
    bm25 = None
    if cfg.baselines or any(entry.kind == "reciprocal-rank-fusion" for entry in cfg.evaluators):
        bm25, costs = _bm25(recipe, folder, collection)
    if cfg.baselines:
        table.add("BM25", "BM25", bm25, costs)
        for name, ranking in rerank(recipe, folder, cfg.split).items():
            table.add(f"rerank-{name}", "ensemble, reranking" if name == ENSEMBLE else f"{name}, reranking", ranking)
        for name, (title, path) in _other_students(recipe, folder).items():
            ranking, costs, _ = _search(path, recipe, folder, collection)
            table.add(name, title, ranking, costs)
    ranking, costs, vectors = _search(folder.model, recipe, folder, collection, keep=bool(cfg.top_ks))
    table.add("student", "student", ranking, costs)
    result = {
        "split": cfg.split,
        "queries": len(collection.grades),
        "passages": collection.passages.collection_size,
        "reranked": {"miner": next(iter(recipe.mine.miners)), "depth": recipe.mine.rerank_depth},
        "metrics": list(cfg.metrics),
        "search": cfg.search,
        "rows": table.rows,
        "tests": table.tests(),
        **({"curve": cost_curve(*vectors, collection.grades, cfg, folder.metrics)} if vectors else {}),
        **({"evaluators": run_evaluators(recipe, folder, collection, ranking, bm25)} if cfg.evaluators else {}),
        "precision": _precision(recipe),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(folder.evaluation, result)
    files = [folder.evaluation, *(folder.trec_run(row["name"]) for row in table.rows)]
    shards = [Shard(file.name, len(collection.grades), file.stat().st_size, xxh128_file(file)) for file in files]
    write_manifest(folder.metrics, Manifest(fields, tuple(shards), {"queries": len(collection.grades)}))
    return result


def _other_students(recipe: Recipe, folder: RunFolder) -> dict[str, tuple[str, Path]]:
    """The checkpoints to compare with, by name, each with its title: the start, and the last round's student.

    Where the last round's student is the start, it stands once; where the recipe does without the start, not at all.
    """
    found = {}
    if recipe.evaluate.start and (recipe.follows is None or recipe.student.model != str(recipe.follows.checkpoint)):
        found["start"] = ("student before training", folder.start)
    if recipe.follows is not None:
        found["previous"] = ("student of the round before", recipe.follows.checkpoint)
    return {name: (title, path) for name, (title, path) in found.items() if path.exists()}


def evaluate_student(student: Student, folder: RunFolder, split: str, recipe: Recipe) -> dict[str, float]:
    """The metrics and costs of a student in memory, as flat names: for a look during training.

    It is searched among at most `evaluate.dev_passages` passages: judged ones first, then candidates by rank.
    """
    collection = open_collection(folder, split)
    rows = _development_rows(recipe, folder, collection)
    tokens = token_store(student, collection.passages, folder, "passages")
    vectors = (
        _encode_queries(student, recipe, folder, collection),
        encode_store(
            student, tokens, rows, "passage", batch_tokens=recipe.evaluate.batch_tokens, precision=_precision(recipe)
        ),
    )
    found, _ = search_sparse(*vectors, metrics.depth_needed(recipe.evaluate.metrics, recipe.evaluate.depth))
    ranking = {query: rows[row[row >= 0]] for query, row in zip(collection.grades, found, strict=True)}
    values = metrics.per_query(recipe.evaluate.metrics, collection.grades, ranking)
    return {
        **{name: float(value.mean()) for name, value in values.items()},
        **metrics.costs(*map(metrics.activation_rates, vectors)),
    }


class _Table:
    """The rows of the table so far, with the per-query values that the tests need."""

    def __init__(self, recipe: Recipe, folder: RunFolder, collection: Collection):
        self.recipe, self.folder, self.collection = recipe, folder, collection
        self.rows: list[dict[str, Any]] = []
        self.values: dict[str, dict[str, np.ndarray]] = {}

    def add(self, name: str, title: str, ranking: Ranking, costs: dict[str, float] | None = None) -> None:
        depth = metrics.depth_needed(self.recipe.evaluate.metrics, self.recipe.evaluate.depth)
        cut = {query: rows[:depth].tolist() for query, rows in ranking.items()}
        values = metrics.per_query(self.recipe.evaluate.metrics, self.collection.grades, cut)
        means = {metric: float(value.mean()) for metric, value in values.items()}
        self.values[name] = values
        self.rows.append({"name": name, "title": title, "metrics": means, **(costs or {})})
        write_run(self.folder.trec_run(name), ranking, self.collection, tag=name)
        log.info("%s: %s", title, ", ".join(f"{metric} {value:.3f}" for metric, value in means.items()))

    def tests(self) -> list[dict[str, Any]]:
        titles = {row["name"]: row["title"] for row in self.rows}
        return [
            {
                "metric": metric,
                "ours": "student",
                "theirs": titles[other],
                **metrics.paired_test(self.values["student"][metric], self.values[other][metric]),
            }
            for metric in self.recipe.evaluate.metrics
            for other in ("BM25", "start", "previous")
            if other in self.values
        ]


def write_run(path: Path, ranking: Ranking, collection: Collection, tag: str) -> None:
    """A ranking in TREC's format. Scores are made from ranks, so that every reader keeps the order."""
    with write_atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for query, rows in ranking.items():
            name = collection.queries.ids(np.array([query]))[0]
            for rank, passage in enumerate(collection.passages.ids(rows), start=1):
                file.write(f"{name} Q0 {passage} {rank} {len(rows) - rank + 1} {tag}\n")


def _bm25(recipe: Recipe, folder: RunFolder, collection: Collection) -> tuple[Ranking, dict[str, float]]:
    index = open_index(collection.passages, folder.index("bm25")) or build_index(collection.passages)
    vectors = index.query_vectors(collection.queries.texts(collection.query_rows))
    found, _ = search_inverted(vectors, index.inverted, recipe.evaluate.depth)
    return _ranking(collection, found), metrics.costs(*map(metrics.activation_rates, (vectors, index.weights)))


def _search(
    path: Path, recipe: Recipe, folder: RunFolder, collection: Collection, keep: bool = False
) -> tuple[Ranking, dict[str, float], Vectors | None]:
    """The ranking of the judged queries under a saved checkpoint, its costs, and, to `keep`, the vectors.

    Exact search goes through the collection block by block, as it is encoded; Seismic needs the whole.
    """
    cfg, student = recipe.evaluate, load_checkpoint(path).to("cuda" if torch.cuda.is_available() else "cpu")
    queries = _encode_queries(student, recipe, folder, collection)
    tokens = token_store(student, collection.passages, folder, "passages")
    blocks = encode_blocks(
        student,
        tokens,
        np.arange(collection.passages.collection_size),
        "passage",
        "encode passages",
        cfg.batch_tokens,
        _precision(recipe),
    )
    if keep or cfg.search == "seismic":
        passages = sparse.vstack(list(blocks), format="csr")
        rates = metrics.activation_rates(passages)
        found, _ = (
            search_seismic(build_seismic(passages, cfg.seismic), queries, cfg.depth, cfg.seismic)
            if cfg.search == "seismic"
            else search_sparse(queries, passages, cfg.depth)
        )
    else:
        passages, rates = None, np.zeros(queries.shape[1])

        def inverted() -> Iterator[sparse.csr_matrix]:
            for block in blocks:
                rates[:] += metrics.activation_rates(block) * (block.shape[0] / collection.passages.collection_size)
                yield block.T.tocsr()

        found, _ = search_blocks(queries, inverted(), cfg.depth)
    return (
        _ranking(collection, found),
        metrics.costs(metrics.activation_rates(queries), rates),
        None if passages is None else (queries, passages),
    )


def _encode_queries(student: Student, recipe: Recipe, folder: RunFolder, collection: Collection) -> sparse.csr_matrix:
    tokens = token_store(student, collection.queries, folder, f"queries.{collection.split}")
    return encode_store(
        student,
        tokens,
        collection.query_rows,
        "query",
        batch_tokens=recipe.evaluate.batch_tokens,
        precision=_precision(recipe),
    )


def _precision(recipe: Recipe) -> Precision:
    precision = recipe.evaluate.precision
    return fastest_precision("cuda" if torch.cuda.is_available() else "cpu") if precision == "auto" else precision


def _ranking(collection: Collection, found: np.ndarray) -> Ranking:
    return {query: rows[rows >= 0] for query, rows in zip(collection.grades, found, strict=True)}


def _development_rows(recipe: Recipe, folder: RunFolder, collection: Collection) -> np.ndarray:
    """Ascending collection rows to search in during training."""
    size, limit = collection.passages.collection_size, recipe.evaluate.dev_passages
    if size <= limit:
        return np.arange(size)
    judged = np.unique([row for graded in collection.grades.values() for row in graded])
    shards = [shard for _, shard in iterate_candidates(folder.candidates(collection.split))]
    rows = np.concatenate([np.empty(0, np.int64), *(shard.passages for shard in shards)])
    ranks = np.concatenate([np.empty(0, np.int32), *(shard.rank for shard in shards)])
    ordered = np.concatenate([judged, rows[np.lexsort((rows, ranks))]])
    first = np.sort(np.unique(ordered, return_index=True)[1])[: max(limit, len(judged))]
    return np.sort(ordered[first])
