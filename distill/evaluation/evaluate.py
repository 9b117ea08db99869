"""Evaluate the saved student against BM25, its teachers and the untrained student, on the judged queries.

The searched collection is rows [0, collection_size) of the passage store; search is exact unless the recipe asks for
Seismic. The student is measured on the checkpoint saved on disk, not on the model in training's memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from distill.config import Recipe
from distill.evaluation import metrics
from distill.evaluation.collection import Collection, open_collection
from distill.evaluation.compared import other_students
from distill.evaluation.curve import cost_curve
from distill.evaluation.evaluators import check_evaluators, run_evaluators
from distill.evaluation.rerank import ENSEMBLE, Ranking, rerank
from distill.evaluation.verdict import teacher_rows, verdict
from distill.planning.devices import chosen_precision
from distill.retrieval.bm25 import run_index
from distill.retrieval.encode import Precision, encode_blocks, encode_store, token_store
from distill.retrieval.exact import search_blocks, search_sparse
from distill.retrieval.seismic import build_seismic, search_seismic
from distill.run.device import default_device
from distill.run.files import write_atomic, write_json
from distill.run.output import Output
from distill.run.run import Run
from distill.store.arrow import Shard
from distill.store.candidates import iterate_candidates
from distill.student.base import Student
from distill.student.checkpoint import load_student

log = logging.getLogger(__name__)

Vectors = tuple[sparse.csr_matrix, sparse.csr_matrix]  # of the judged queries and of the collection


def evaluate(run: Run, output: Output) -> dict[str, Any]:
    """Evaluate, and write metrics/evaluation.json and one TREC run per system; returns the content of the JSON.

    `rows` has one entry per system: `name`, `title`, `metrics`, and for first-stage retrievers `query_terms`,
    `passage_terms` (mean active dimensions) and `flops`. `tests` holds paired tests of the student against BM25, the
    untrained student, the previous round's and the teachers, `verdict` what they mean. `left_out` has a sentence for
    each baseline that ranks no passage at all. `curve` is the result of `cost_curve`, if the recipe has `top_ks`;
    `evaluators` has one entry per evaluator of the recipe.
    """
    began = time.monotonic()
    cfg, collection = run.recipe.evaluate, open_collection(run.folder, run.recipe.evaluate.split)
    metrics.check_depth(cfg.metrics, cfg.depth)
    check_evaluators(cfg.evaluators, collection.passages.collection_size)
    table = _Table(run, collection)
    bm25: Ranking | None = None
    if cfg.searches_bm25:
        bm25, costs = bm25_ranking(run, collection)
    if cfg.baselines:
        assert bm25 is not None
        table.add_unless_empty("BM25", "BM25", bm25, costs)
        for name, ranking in rerank(run, cfg.split).items():
            title = "ensemble, reranking" if name == ENSEMBLE else f"{name}, reranking"
            table.add_unless_empty(f"rerank-{name}", title, ranking)
        for name, (title, path) in other_students(run).items():
            ranking, costs, _ = search_checkpoint(path, run, collection)
            table.add(name, title, ranking, costs)
    ranking, costs, vectors = search_checkpoint(run.folder.model, run, collection, keep_vectors=bool(cfg.top_ks))
    table.add("student", "student", ranking, costs)
    result = {
        "split": cfg.split,
        "queries": len(collection.grades),
        "passages": collection.passages.collection_size,
        "reranked": {"miner": next(iter(run.recipe.mine.miners)), "depth": run.recipe.mine.rerank_depth},
        "metrics": list(cfg.metrics),
        "search": cfg.search,
        "rows": table.rows,
        **({"left_out": table.left_out} if table.left_out else {}),
        "tests": table.tests(),
        **({"curve": cost_curve(*vectors, collection, cfg, run.folder.metrics)} if vectors else {}),
        **({"evaluators": run_evaluators(run, collection, ranking, bm25)} if cfg.evaluators else {}),
        "precision": _precision(run.recipe),
        "seconds": round(time.monotonic() - began, 1),
    }
    result["verdict"] = verdict(run, result)
    write_json(run.folder.evaluation, result)
    files = [run.folder.evaluation, *(run.folder.trec_run(row["name"]) for row in table.rows)]
    shards = [Shard.of(file, run.folder.metrics, len(collection.grades)) for file in files]
    output.finish(shards, {"queries": len(collection.grades)})
    return result


def evaluate_student(student: Student, run: Run, split: str) -> dict[str, float]:
    """Measure a student in memory, during training: metrics and costs by name.

    The searched collection is cut to `evaluate.dev_passages` passages: judged ones first, then candidates by rank.
    """
    collection = open_collection(run.folder, split)
    rows = _development_rows(run, collection)
    tokens = token_store(student, collection.passages, run.folder, "passages")
    vectors = (
        _encode_queries(student, run, collection),
        encode_store(
            student,
            tokens,
            rows,
            "passage",
            batch_tokens=run.recipe.evaluate.batch_tokens,
            precision=_precision(run.recipe),
        ),
    )
    depth = metrics.depth_needed(run.recipe.evaluate.metrics, run.recipe.evaluate.depth)
    places, _ = search_sparse(*vectors, collection.search_depth(depth), device=default_device())
    ranking = collection.rankings(np.where(places >= 0, rows[places], -1), depth)
    top = {query: hits.tolist() for query, hits in ranking.items()}
    values = metrics.per_query(run.recipe.evaluate.metrics, collection.grades, top)
    return {
        **{name: float(value.mean()) for name, value in values.items()},
        **metrics.costs(*map(metrics.activation_rates, vectors)),
    }


class _Table:
    """Rows of the results table, with the per-query values that the paired tests need."""

    def __init__(self, run: Run, collection: Collection):
        self.recipe, self.folder, self.collection = run.recipe, run.folder, collection
        self.rows: list[dict[str, Any]] = []
        self.values: dict[str, dict[str, np.ndarray]] = {}
        self.left_out: list[str] = []

    def add_unless_empty(self, name: str, title: str, ranking: Ranking, costs: dict[str, float] | None = None) -> None:
        """Add a baseline; one that ranks no passage for any query gets a sentence instead of a row of zeros."""
        if any(map(len, ranking.values())):
            self.add(name, title, ranking, costs)
            return
        first = next(iter(self.recipe.mine.miners))
        reason = (
            "no passage shares a word with a query; is data.language theirs?"
            if name == "BM25"
            else f"the miner {first} found no candidates"
        )
        self.left_out.append(f"{title} is left out: it ranks no passage for any query ({reason})")
        log.warning("%s", self.left_out[-1])

    def add(self, name: str, title: str, ranking: Ranking, costs: dict[str, float] | None = None) -> None:
        depth = metrics.depth_needed(self.recipe.evaluate.metrics, self.recipe.evaluate.depth)
        top = {query: rows[:depth].tolist() for query, rows in ranking.items()}
        values = metrics.per_query(self.recipe.evaluate.metrics, self.collection.grades, top)
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
                "name": other,
                **metrics.paired_test(self.values["student"][metric], self.values[other][metric]),
            }
            for metric in self.recipe.evaluate.metrics
            for other in ("BM25", "start", "previous", *teacher_rows(self.values))
            if other in self.values
        ]


def write_run(path: Path, ranking: Ranking, collection: Collection, tag: str) -> None:
    """Write a ranking in TREC format. Scores are derived from ranks, so that every reader keeps the order."""
    with write_atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for query, rows in ranking.items():
            name = collection.queries.ids(np.array([query]))[0]
            for rank, passage in enumerate(collection.passages.ids(rows), start=1):
                file.write(f"{name} Q0 {passage} {rank} {len(rows) - rank + 1} {tag}\n")


def bm25_ranking(run: Run, collection: Collection) -> tuple[Ranking, dict[str, float]]:
    index = run_index(run)
    queries = index.query_vectors(collection.queries.texts(collection.query_rows))
    depth = run.recipe.evaluate.depth
    rows, _ = index.postings.search(queries, collection.search_depth(depth))
    rates = index.postings.frequencies / max(collection.passages.collection_size, 1)
    return collection.rankings(rows, depth), metrics.costs(metrics.activation_rates(queries), rates)


def search_checkpoint(
    path: str | Path, run: Run, collection: Collection, keep_vectors: bool = False, trust_remote_code: bool = False
) -> tuple[Ranking, dict[str, float], Vectors | None]:
    """Search with a saved checkpoint: ranking of the judged queries, costs, and the vectors if they are kept.

    Exact search processes the collection block by block, as it is encoded; Seismic needs all vectors at once.
    """
    cfg, depth = run.recipe.evaluate, collection.search_depth(run.recipe.evaluate.depth)
    student = load_student(path, trust_remote_code=trust_remote_code).to(default_device())
    queries = _encode_queries(student, run, collection)
    if keep_vectors or cfg.search == "seismic":
        passages = sparse.vstack(list(_encode_passages(student, run, collection)), format="csr")
        rates = metrics.activation_rates(passages)
        rows, _ = (
            search_seismic(build_seismic(passages, cfg.seismic), queries, depth, cfg.seismic)
            if cfg.search == "seismic"
            else search_sparse(queries, passages, depth, device=default_device())
        )
    else:
        passages = None
        rows, rates = _search_in_blocks(student, run, collection, queries, depth)
    return (
        collection.rankings(rows, cfg.depth),
        metrics.costs(metrics.activation_rates(queries), rates),
        None if passages is None else (queries, passages),
    )


def search_together(
    path: str | Path, home: Run, judged: Sequence[tuple[Run, Collection]], trust_remote_code: bool = False
) -> list[tuple[Ranking, dict[str, float]]]:
    """Search with a saved checkpoint for the judged queries of several collections over the same passages.

    The passages are encoded once, in the folder of `home`, whose passage store has the ids and texts of all the others'
    in the same order. Rankings and costs equal those of an exact `search_checkpoint` on each.
    """
    depth = max(collection.search_depth(run.recipe.evaluate.depth) for run, collection in judged)
    student = load_student(path, trust_remote_code=trust_remote_code).to(default_device())
    queries = [_encode_queries(student, run, collection) for run, collection in judged]
    rows, rates = _search_in_blocks(student, home, judged[0][1], sparse.vstack(queries, format="csr"), depth)
    ends = np.cumsum([part.shape[0] for part in queries])
    return [
        (
            collection.rankings(rows[end - part.shape[0] : end], run.recipe.evaluate.depth),
            metrics.costs(metrics.activation_rates(part), rates),
        )
        for (run, collection), part, end in zip(judged, queries, ends, strict=True)
    ]


def _search_in_blocks(
    student: Student, run: Run, collection: Collection, queries: sparse.csr_matrix, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search exactly, block by block: passage rows int64 [n, depth], and the passages' activation rates."""
    rates = np.zeros(queries.shape[1])

    def counted() -> Iterator[sparse.csr_matrix]:
        for block in _encode_passages(student, run, collection):
            rates[:] += metrics.activation_rates(block) * (block.shape[0] / collection.passages.collection_size)
            yield block

    rows, _ = search_blocks(queries, counted(), depth, device=default_device())
    return rows, rates


def _encode_passages(student: Student, run: Run, collection: Collection) -> Iterator[sparse.csr_matrix]:
    return encode_blocks(
        student,
        token_store(student, collection.passages, run.folder, "passages"),
        np.arange(collection.passages.collection_size),
        "passage",
        "encode passages",
        run.recipe.evaluate.batch_tokens,
        _precision(run.recipe),
    )


def _encode_queries(student: Student, run: Run, collection: Collection) -> sparse.csr_matrix:
    tokens = token_store(student, collection.queries, run.folder, f"queries.{collection.split}")
    return encode_store(
        student,
        tokens,
        collection.query_rows,
        "query",
        batch_tokens=run.recipe.evaluate.batch_tokens,
        precision=_precision(run.recipe),
    )


def _precision(recipe: Recipe) -> Precision:
    return chosen_precision(recipe.evaluate.precision, default_device())


def _development_rows(run: Run, collection: Collection) -> np.ndarray:
    """Collection rows to search during training, ascending."""
    size, limit = collection.passages.collection_size, run.recipe.evaluate.dev_passages
    if size <= limit:
        return np.arange(size)
    judged = np.unique([row for graded in collection.grades.values() for row in graded])
    shards = [shard for _, shard in iterate_candidates(run.folder.candidates(collection.split))]
    rows = np.concatenate([np.empty(0, np.int64), *(shard.passages for shard in shards)])
    ranks = np.concatenate([np.empty(0, np.int32), *(shard.rank for shard in shards)])
    ordered = np.concatenate([judged, rows[np.lexsort((rows, ranks))]])
    first = np.sort(np.unique(ordered, return_index=True)[1])[: max(limit, len(judged))]
    return np.sort(ordered[first])
