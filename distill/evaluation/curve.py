"""Effectiveness against cost: the student with its texts capped at their k strongest terms, for several k.

The texts are encoded once and the vectors cut, which gives what `SparseEncoder.encode(max_active_dims=k)` gives. Each
cap is measured with an index of its own, and with a query at a time on one thread.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from distill.config import Evaluate
from distill.evaluation import metrics
from distill.mining.search import search_inverted
from distill.mining.seismic import build_seismic, query_terms, search_seismic, seismic_bytes

log = logging.getLogger(__name__)

Grades = Mapping[int, Mapping[int, int]]
_TIMED_QUERIES = 1000
_WARM_UP = 10
_SLAB = 65_536  # rows sorted together


def cost_curve(
    queries: sparse.csr_matrix, passages: sparse.csr_matrix, grades: Grades, cfg: Evaluate, scratch: Path
) -> dict[str, Any]:
    """What evaluation.json holds as `curve`; `rows` has an entry a cap, ascending, and one without a cap at the end.

    A row has the recipe's `metrics`, the mean active terms `query_terms` and `passage_terms`, `flops`, `postings`,
    `inverted_bytes` (the index of exact search: 4 bytes for the passage and 4 for the weight of a posting, and an
    offset a term), `seismic_bytes` (the file that Seismic saves) and `latency_ms` (median and 95th percentile of a
    query on one thread with the recipe's search, without encoding). `queries` [n, vocabulary] stand in the order of
    `grades`; `scratch` is a folder for a file of the moment.
    """
    depth = metrics.depth_needed(cfg.metrics, cfg.depth)
    rows = []
    for top_k in (*sorted(set(cfg.top_ks)), None):
        capped_queries = queries if top_k is None or cfg.top_ks_of == "passages" else cap(queries, top_k)
        capped = passages if top_k is None or cfg.top_ks_of == "queries" else cap(passages, top_k)
        row = _measure(capped_queries, capped, grades, cfg, depth, scratch)
        rows.append({"top_k": top_k, **row})
        log.info(
            "top-k %s: %s, %.1f passage terms, %.2f ms a query",
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
    """The `k` largest weights of each row, the lower term first among equals: [n, vocabulary]."""
    slabs = [_cap(vectors[first : first + _SLAB], k) for first in range(0, vectors.shape[0], _SLAB)]
    return sparse.vstack(slabs, format="csr") if slabs else vectors


def machine() -> str:
    """The processor that latencies were measured on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} processors"


def _cap(vectors: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    counts = np.diff(vectors.indptr)
    row = np.repeat(np.arange(len(counts)), counts)  # [nnz]
    order = np.lexsort((vectors.indices, -vectors.data, row))  # inside a row by descending weight
    rank = np.arange(len(order)) - np.repeat(vectors.indptr[:-1], counts)
    keep = np.sort(order[rank < k])
    indptr = np.concatenate([[0], np.cumsum(np.minimum(counts, k))])
    return sparse.csr_matrix((vectors.data[keep], vectors.indices[keep], indptr), shape=vectors.shape)


def _measure(
    queries: sparse.csr_matrix, passages: sparse.csr_matrix, grades: Grades, cfg: Evaluate, depth: int, scratch: Path
) -> dict[str, Any]:
    index = build_seismic(passages, cfg.seismic)
    if cfg.search == "seismic":
        found, _ = search_seismic(index, queries, depth, cfg.seismic)
        components, weights = query_terms(queries)

        def search_one(i: int) -> None:
            index.search(str(i), components[i], weights[i], depth, cfg.seismic.query_cut, cfg.seismic.heap_factor)
    else:
        inverted = passages.T.tocsr()
        found, _ = search_inverted(queries, inverted, depth)
        alone = [queries[i] for i in range(min(queries.shape[0], _TIMED_QUERIES))]

        def search_one(i: int) -> None:
            search_inverted(alone[i], inverted, depth, threads=1)

    ranking = {query: row[row >= 0].tolist() for query, row in zip(grades, found, strict=True)}
    values = metrics.per_query(cfg.metrics, grades, ranking)
    times = _milliseconds(search_one, min(queries.shape[0], _TIMED_QUERIES))
    return {
        "metrics": {name: float(value.mean()) for name, value in values.items()},
        **metrics.costs(metrics.activation_rates(queries), metrics.activation_rates(passages)),
        "postings": int(passages.nnz),
        "inverted_bytes": passages.nnz * (passages.data.itemsize + passages.indices.itemsize)
        + (passages.shape[1] + 1) * passages.indptr.itemsize,
        "seismic_bytes": seismic_bytes(index, scratch),
        "latency_ms": {"median": float(np.median(times)), "p95": float(np.percentile(times, 95))},
    }


def _milliseconds(search_one: Callable[[int], None], queries: int) -> np.ndarray:
    """How long each of the first `queries` searches takes: float64 [queries]."""
    for i in range(min(queries, _WARM_UP)):
        search_one(i)
    times = np.empty(queries)
    for i in range(queries):
        began = time.perf_counter()
        search_one(i)
        times[i] = 1000 * (time.perf_counter() - began)
    return times
