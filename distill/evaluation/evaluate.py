"""The evaluate stage: the saved student beside BM25, its teachers and its own start, on the judged queries.

The searched collection is rows [0, collection_size) of the passage store; search is exact unless the recipe asks for
Seismic. Everything about the student is measured on the checkpoint as it lies on disk, not on the model that training
holds.
"""

from __future__ import annotations

import logging
import time
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
from distill.evaluation import metrics
from distill.evaluation.collection import Collection, open_collection
from distill.evaluation.curve import cost_curve
from distill.evaluation.evaluator_data import evaluator_fields
from distill.evaluation.evaluators import check_evaluators, run_evaluators
from distill.evaluation.rerank import ENSEMBLE, Ranking, rerank, scored_teachers
from distill.mining.bm25 import build_index
from distill.mining.encode import Precision, encode_store, token_store
from distill.mining.search import search_sparse
from distill.mining.seismic import build_seismic, search_seismic
from distill.student.base import Student
from distill.student.checkpoint import load_checkpoint
from teachers.execution import fastest_precision

log = logging.getLogger(__name__)


def evaluation_fields(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """What the evaluation depends on: the hashed part of its manifest."""
    cfg = recipe.evaluate
    require_manifest(folder.model, "train")
    fields = {"stage": "evaluate", "format": FORMAT, "split": cfg.split, "metrics": list(cfg.metrics),
              "depth": cfg.depth, "baselines": cfg.baselines, "model": checkpoint_digest(folder.model),
              "data": require_manifest(folder.data, "import").fingerprint}
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
    metrics.parse_measures(cfg.metrics)  # refuse a misspelt one before the work
    check_evaluators(cfg.evaluators, collection.passages.collection_size)
    table = _Table(recipe, folder, collection)
    bm25 = None
    if cfg.baselines or any(entry.kind == "reciprocal-rank-fusion" for entry in cfg.evaluators):
        bm25, costs = _bm25(recipe, collection)
    if cfg.baselines:
        table.add("BM25", "BM25", bm25, costs)
        for name, ranking in rerank(recipe, folder, cfg.split).items():
            table.add(f"rerank-{name}", "ensemble, reranking" if name == ENSEMBLE else f"{name}, reranking", ranking)
        for name, (title, path) in _other_students(recipe, folder).items():
            table.add(name, title, *_search(recipe, collection, *_checkpoint(path, recipe, folder, collection)))
    vectors = _checkpoint(folder.model, recipe, folder, collection)
    ranking, costs = _search(recipe, collection, *vectors)
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
        **({"curve": cost_curve(*vectors, collection.grades, cfg, folder.metrics)} if cfg.top_ks else {}),
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

    Where the last round's student is the start, it stands once.
    """
    found = {}
    if recipe.follows is None or recipe.student.model != str(recipe.follows.checkpoint):
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
    vectors = _encode(student, recipe, folder, collection, rows, progress=False)
    found, _ = search_sparse(*vectors, metrics.depth_needed(recipe.evaluate.metrics, recipe.evaluate.depth))
    ranking = {query: rows[row[row >= 0]] for query, row in zip(collection.grades, found, strict=True)}
    values = metrics.per_query(recipe.evaluate.metrics, collection.grades, ranking)
    return {**{name: float(value.mean()) for name, value in values.items()}, **metrics.costs(*vectors)}


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
            {"metric": metric, "ours": "student", "theirs": titles[other],
             **metrics.paired_test(self.values["student"][metric], self.values[other][metric])}
            for metric in self.recipe.evaluate.metrics
            for other in ("BM25", "start", "previous") if other in self.values
        ]


def write_run(path: Path, ranking: Ranking, collection: Collection, tag: str) -> None:
    """A ranking in TREC's format. Scores are made from ranks, so that every reader keeps the order."""
    with write_atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for query, rows in ranking.items():
            name = collection.queries.ids(np.array([query]))[0]
            for rank, passage in enumerate(collection.passages.ids(rows), start=1):
                file.write(f"{name} Q0 {passage} {rank} {len(rows) - rank + 1} {tag}\n")


def _bm25(recipe: Recipe, collection: Collection) -> tuple[Ranking, dict[str, float]]:
    index = build_index(collection.passages)
    vectors = index.query_vectors(collection.queries.texts(collection.query_rows))
    found, _ = search_sparse(vectors, index.weights, recipe.evaluate.depth)
    return _ranking(collection, found), metrics.costs(vectors, index.weights)


def _checkpoint(path: Path, recipe: Recipe, folder: RunFolder, collection: Collection
                ) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Vectors of the judged queries and of the collection under a saved checkpoint."""
    student = load_checkpoint(path).to("cuda" if torch.cuda.is_available() else "cpu")
    rows = np.arange(collection.passages.collection_size)
    return _encode(student, recipe, folder, collection, rows, progress=True)


def _search(recipe: Recipe, collection: Collection, queries: sparse.csr_matrix, passages: sparse.csr_matrix
            ) -> tuple[Ranking, dict[str, float]]:
    cfg = recipe.evaluate
    if cfg.search == "seismic":
        found, _ = search_seismic(build_seismic(passages, cfg.seismic), queries, cfg.depth, cfg.seismic)
    else:
        found, _ = search_sparse(queries, passages, cfg.depth)
    return _ranking(collection, found), metrics.costs(queries, passages)


def _encode(student: Student, recipe: Recipe, folder: RunFolder, collection: Collection, rows: np.ndarray,
            progress: bool) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Vectors of the judged queries and of the passages `rows`."""
    queries = token_store(student, collection.queries, folder, f"queries.{collection.split}")
    passages = token_store(student, collection.passages, folder, "passages")
    budget, precision = recipe.evaluate.batch_tokens, _precision(recipe)
    return (encode_store(student, queries, collection.query_rows, "query", "", budget, precision),
            encode_store(student, passages, rows, "passage", "encode passages" if progress else "", budget, precision))


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
