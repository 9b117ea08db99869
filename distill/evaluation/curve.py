"""Effectiveness against cost: the student with its texts capped at their k strongest terms, for several k.

Texts are encoded once and the vectors cut, which is equivalent to `SparseEncoder.encode(max_active_dims=k)`. Each cap
gets its own index; latency is measured one query at a time on one thread.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from distill.config import Evaluate
from distill.evaluation import metrics
from distill.evaluation.collection import Collection
from distill.retrieval.inverted import InvertedIndex
from distill.retrieval.seismic import build_seismic, query_terms, search_seismic, seismic_bytes

log = logging.getLogger(__name__)

_TIMED_QUERIES = 1000
_WARM_UP = 10
_SLAB = 65_536  # rows sorted together


def cost_curve(
    queries: sparse.csr_matrix, passages: sparse.csr_matrix, collection: Collection, cfg: Evaluate, scratch: Path
) -> dict[str, Any]:
    """Measure every cap: the `curve` of evaluation.json, whose `rows` are ascending caps, then the uncapped vectors.

    A row has the recipe's `metrics`, the mean active terms `query_terms` and `passage_terms`, `flops`, `postings`,
    `inverted_bytes` (the index of exact search: 6 bytes per posting, and 12 for each term of a block of passages),
    `seismic_bytes` (the file that Seismic saves) and `latency_ms` (median and 95th percentile per query, on one thread,
    with the recipe's search; encoding excluded). `queries` [n, vocabulary] are in the order of the collection's judged
    queries; temporary files go to `scratch`.
    """
    depth = metrics.depth_needed(cfg.metrics, cfg.depth)
    rows = []
    for top_k in (*sorted(set(cfg.top_ks)), None):
        capped_queries = queries if top_k is None or cfg.top_ks_of == "passages" else cap(queries, top_k)
        capped = passages if top_k is None or cfg.top_ks_of == "queries" else cap(passages, top_k)
        row = _measure(capped_queries, capped, collection, cfg, depth, scratch)
        rows.append({"top_k": top_k, **row})
        log.info(
            "top-k %s: %s, %.1f passage terms, %.2f ms per query",
            top_k or "none",
            ", ".join(f"{name} {value:.3f}" for name, value in row["metrics"].items()),
            row["passage_terms"],
            row["latency_ms"]["median"],
        )
    return {
        "of": cfg.top_ks_of,
        "search": cfg.search,
        "depth": depth,
        "machine": machine(),
        "timed_queries": min(queries.shape[0], _TIMED_QUERIES),
        "rows": rows,
    }


def cap(vectors: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    """Keep the `k` largest weights of each row; ties go to the lower term: [n, vocabulary]."""
    slabs = [_cap(vectors[first : first + _SLAB], k) for first in range(0, vectors.shape[0], _SLAB)]
    return sparse.vstack(slabs, format="csr") if slabs else vectors


def machine() -> str:
    """Name of the processor that latencies are measured on, and the number of its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} processors"


def _cap(vectors: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    counts = np.diff(vectors.indptr)
    row = np.repeat(np.arange(len(counts)), counts)  # [nnz]
    order = np.lexsort((vectors.indices, -vectors.data, row))  # by row, then by descending weight
    rank = np.arange(len(order)) - np.repeat(vectors.indptr[:-1], counts)
    keep = np.sort(order[rank < k])
    indptr = np.concatenate([[0], np.cumsum(np.minimum(counts, k))])
    return sparse.csr_matrix((vectors.data[keep], vectors.indices[keep], indptr), shape=vectors.shape)


def _measure(
    queries: sparse.csr_matrix,
    passages: sparse.csr_matrix,
    collection: Collection,
    cfg: Evaluate,
    depth: int,
    scratch: Path,
) -> dict[str, Any]:
    search_depth = collection.search_depth(depth)
    index, inverted = build_seismic(passages, cfg.seismic), InvertedIndex.of(passages)
    if cfg.search == "seismic":
        rows, _ = search_seismic(index, queries, search_depth, cfg.seismic)
        components, weights = query_terms(queries)

        def search_one(i: int) -> None:
            index.search(str(i), components[i], weights[i], depth, cfg.seismic.query_cut, cfg.seismic.heap_factor)
    else:
        rows, _ = inverted.search(queries, search_depth)
        single_queries = [queries[i] for i in range(min(queries.shape[0], _TIMED_QUERIES))]

        def search_one(i: int) -> None:
            inverted.search(single_queries[i], depth, threads=1)

    ranking = {query: hits.tolist() for query, hits in collection.rankings(rows, depth).items()}
    values = metrics.per_query(cfg.metrics, collection.grades, ranking)
    times = _milliseconds(search_one, min(queries.shape[0], _TIMED_QUERIES))
    return {
        "metrics": {name: float(value.mean()) for name, value in values.items()},
        **metrics.costs(metrics.activation_rates(queries), metrics.activation_rates(passages)),
        "postings": int(passages.nnz),
        "inverted_bytes": sum(run.nbytes for run in inverted.runs),
        "seismic_bytes": seismic_bytes(index, scratch),
        "latency_ms": {"median": float(np.median(times)), "p95": float(np.percentile(times, 95))},
    }


def _milliseconds(search_one: Callable[[int], None], queries: int) -> np.ndarray:
    """Milliseconds of each of the first `queries` searches, after a warm-up: float64 [queries]."""
    for i in range(min(queries, _WARM_UP)):
        search_one(i)
    times = np.empty(queries)
    for i in range(queries):
        began = time.perf_counter()
        search_one(i)
        times[i] = 1000 * (time.perf_counter() - began)
    return times
