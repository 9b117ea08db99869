"""Exact search of learned sparse vectors against SciPy's product, PISA and Seismic: milliseconds per query, one core.

The vectors have SPLADE's shape: 120 terms per passage, drawn by a power of their rank, and queries that take about
three products per passage. SciPy computes the product of the queries with the transposed matrix and sorts the best of
each row, as the project did before it had an engine. PISA (pyterrier-pisa, if it is installed) searches weights in 8
bits by block-max WAND and MaxScore; its ranking is compared, too. Seismic is approximate; its recall stands beside its
time. Peers take turns, so that other load affects all; medians of the turns are printed as JSON lines, with ratios to
ours. The last line is the memory of processes that search one index file: of each alone, and of all together.
Usage: python benchmarks/search.py [--passages 1000000] [--queries 64] [--ks 1000 100] [--repeats 3] [--seismic]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import take_turns
from scipy import sparse

from distill.config import Seismic
from distill.evaluation.curve import machine
from distill.retrieval.inverted import InvertedIndex
from distill.retrieval.postings import Postings
from distill.retrieval.seismic import build_seismic, search_seismic
from distill.retrieval.top_k import best_of
from distill.store.arrow import RowReader, write_ipc
from distill.store.candidates import only_batch

VOCABULARY = 30_522
SHIFT, EXPONENT = 20, 1.0  # a term's frequency is proportional to (rank + SHIFT) ** -EXPONENT
SCALE = 64.0  # of PISA's whole numbers
PROCESSES = 10

Search = Callable[[], tuple[np.ndarray, np.ndarray]]


def vectors(texts: int, terms: int, seed: int) -> sparse.csr_matrix:
    """Random vectors float32 [texts, VOCABULARY] of about `terms` terms each."""
    rng = np.random.default_rng(seed)
    share = (np.arange(VOCABULARY) + SHIFT) ** -EXPONENT
    bounds = np.cumsum(share / share.sum())
    columns = np.searchsorted(bounds, rng.random(texts * terms)).clip(max=VOCABULARY - 1).astype(np.int32)
    weights = rng.gamma(2.0, 0.4, texts * terms).astype(np.float32)
    matrix = sparse.csr_matrix((weights, columns, np.arange(0, texts * terms + 1, terms)), (texts, VOCABULARY))
    matrix.sum_duplicates()
    return matrix


def search_with_scipy(queries: sparse.csr_matrix, inverted: sparse.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = np.full((queries.shape[0], k), -1), np.zeros((queries.shape[0], k), np.float32)
    for i in range(queries.shape[0]):
        product = queries[i] @ inverted
        best = best_of(product.indices, product.data, k)
        rows[i, : len(best[0])], scores[i, : len(best[0])] = best
    return rows, scores


class Pisa:
    """PISA's index of the vectors, with weights in whole numbers."""

    def __init__(self, passages: sparse.csr_matrix, queries: sparse.csr_matrix, folder: Path):
        import pandas as pd
        from pyterrier_pisa import PisaIndex

        terms = np.array([f"t{term}" for term in range(VOCABULARY)])
        began = time.process_time()
        self.index = PisaIndex(str(folder / "pisa"), stemmer="none", stops="none", threads=1)
        self.index.toks_indexer(scale=SCALE).index(
            {"docno": str(row), "toks": dict(zip(terms[columns], weights.tolist(), strict=True))}
            for row, columns, weights in _rows(passages)
        )
        self.seconds = time.process_time() - began
        toks = [dict(zip(terms[columns], weights.tolist(), strict=True)) for _, columns, weights in _rows(queries)]
        self.queries = pd.DataFrame({"qid": [str(row) for row in range(len(toks))], "query_toks": toks})

    def searcher(self, algorithm: str, k: int) -> Callable[[], Any]:
        retrieve = self.index.quantized(
            num_results=k, threads=1, query_algorithm=algorithm, query_weighted=True, toks_scale=SCALE
        )
        return partial(retrieve.transform, self.queries)


def _rows(matrix: sparse.csr_matrix) -> Any:
    for row in range(matrix.shape[0]):
        span = slice(*matrix.indptr[row : row + 2])
        yield row, matrix.indices[span], matrix.data[span]


def overlap(rows: np.ndarray, exact: np.ndarray) -> float:
    """The mean share of the exact results that were found."""
    return float(np.mean([np.isin(a[a >= 0], b).mean() for a, b in zip(exact, rows, strict=True)]))


def rows_of(results: Any, queries: int, k: int) -> np.ndarray:
    """The rankings of a results table of PISA."""
    rows = np.full((queries, k), -1)
    for query, group in results.groupby("qid"):
        found = group.sort_values("rank").docno.to_numpy().astype(np.int64)
        rows[int(query), : len(found)] = found
    return rows


def compare(
    queries: sparse.csr_matrix,
    passages: sparse.csr_matrix,
    k: int,
    repeats: int,
    pisa: Pisa | None,
    seismic: Any | None,
) -> dict[str, Any]:
    """Milliseconds per query of every system, and what its ranking has of the exact one."""
    index, inverted = InvertedIndex.of(passages), passages.T.tocsr()
    functions: dict[str, Callable[[], Any]] = {
        "ours": partial(index.search, queries, k, 1),
        "ours, 2 threads": partial(index.search, queries, k, 2),
        "scipy": partial(search_with_scipy, queries, inverted, k),
    }
    if seismic is not None:
        functions["seismic"] = partial(search_seismic, seismic, queries, k, Seismic(), threads=1)
    if pisa is not None:
        for algorithm in ("block_max_wand", "maxscore", "block_max_maxscore"):
            functions[f"pisa, {algorithm}"] = pisa.searcher(algorithm, k)
    exact = index.search(queries, k, 1)
    peer = search_with_scipy(queries, inverted, k)
    assert np.array_equal(exact[0], peer[0]) and np.array_equal(exact[1], peer[1])  # to the bit
    times = take_turns(functions, repeats)
    ms = {name: 1000 * statistics.median(seconds) / queries.shape[0] for name, seconds in times.items()}
    found = {} if seismic is None else {"seismic": overlap(functions["seismic"]()[0], exact[0])}
    if pisa is not None:
        found["pisa"] = overlap(rows_of(functions["pisa, maxscore"](), queries.shape[0], k), exact[0])
    products = np.bincount(passages.indices, minlength=VOCABULARY)[queries.indices].sum() / queries.shape[0]
    return {
        "k": k,
        "products_per_passage": round(products / passages.shape[0], 2),
        "ms_per_query": {name: round(value, 3) for name, value in ms.items()},
        "times_ours": {name: round(value / ms["ours"], 2) for name, value in ms.items() if name != "ours"},
        "millions_of_products_per_second": round(products / ms["ours"] / 1000),
        "share_of_the_exact_results": {name: round(value, 4) for name, value in found.items()},
    }


def _hold(path: Path, queries: sparse.csr_matrix, start: Any, done: Any) -> None:
    index = InvertedIndex([Postings.of_batch(only_batch(RowReader(path)))])
    before = _private()
    index.search(queries, 100, 1)
    start.wait()  # all have searched, and hold their memory
    done.put((_private() - before, _memory("Pss")))
    start.wait()


def _memory(field: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def _private() -> int:
    return _memory("Private_Clean") + _memory("Private_Dirty")


def memory(postings: Postings, queries: sparse.csr_matrix, folder: Path) -> dict[str, Any]:
    """The private memory that a search adds to each of `PROCESSES` processes over one file."""
    batch = postings.batch()
    write_ipc(folder / "postings.arrow", batch.schema, [batch])
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(PROCESSES), context.SimpleQueue()
    arguments = (folder / "postings.arrow", queries, start, done)
    processes = [context.Process(target=_hold, args=arguments) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    measured = [done.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "processes": PROCESSES,
        "index_mb": round(postings.nbytes / 1e6),
        "private_mb_of_a_search": round(max(private for private, _ in measured) / 1e6, 1),
        "mb_of_all_processes": round(sum(shared for _, shared in measured) / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--terms", type=int, default=120)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--query-terms", type=int, default=30)
    parser.add_argument("--ks", type=int, nargs="+", default=[1000, 100])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seismic", action="store_true", help="beside Seismic: its index takes most of the time")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    queries, passages = vectors(args.queries, args.query_terms, 1), vectors(args.passages, args.terms, 0)
    facts = {"machine": machine(), "python": platform.python_version(), "passages": args.passages}
    with tempfile.TemporaryDirectory() as scratch:
        began = time.process_time()
        postings = Postings.of(passages)
        seconds = {"ours": time.process_time() - began}
        pisa = seismic = None
        if args.seismic:
            began = time.process_time()
            seismic = build_seismic(passages, Seismic())
            seconds["seismic"] = time.process_time() - began
        if importlib.util.find_spec("pyterrier_pisa"):
            pisa = Pisa(passages, queries, Path(scratch))
            seconds["pisa"] = pisa.seconds
        print(json.dumps({**facts, "index_cpu_s": {name: round(value, 1) for name, value in seconds.items()}}))
        for k in args.ks:
            print(json.dumps({**facts, **compare(queries, passages, k, args.repeats, pisa, seismic)}), flush=True)
        del passages, seismic
        print(json.dumps({**facts, **memory(postings, queries, Path(scratch))}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
