"""BM25 against bm25s: time, disk and memory of the index, and queries per second, on a collection like MS MARCO's.

Both index the same texts with the same stemmer and stop words and search the same queries for the best 100 passages, in
processes of their own, so that peak memory is theirs. Rankings are compared: score by score, as ties may be in another
order. Prints JSON.
Usage: python benchmarks/bm25.py [--passages 200000] [--queries 1000] [--peers bm25s bm25s-numba] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from collection import write_collection

from distill.retrieval.bm25 import ENGLISH, open_index, save_index
from distill.store.texts import TextStore

K = 100


def ours(folder: Path, workers: int | None) -> dict[str, Any]:
    """Build, save, open and search our index."""
    passages, queries = TextStore.open(folder / "passages.arrow"), _queries(folder)
    began = time.perf_counter()
    save_index(passages, folder / "ours", workers=workers)
    indexed = time.perf_counter() - began
    index = open_index(passages, folder / "ours")
    assert index is not None
    opened = time.perf_counter() - began - indexed
    index.search(queries[:10], K)  # compiles, and reads from the disk
    began = time.perf_counter()
    _, scores = index.search(queries, K)
    return _figures(folder / "ours", indexed, opened, time.perf_counter() - began, scores)


def bm25s_figures(folder: Path, backend: str) -> dict[str, Any]:
    """The same with bm25s, whose tokens and index are in memory while it builds."""
    import bm25s
    import Stemmer

    passages, queries = TextStore.open(folder / "passages.arrow"), _queries(folder)
    began = time.perf_counter()
    stemmer = Stemmer.Stemmer("english")
    texts = [text for batch in passages.text_batches() for text in batch]
    tokens = bm25s.tokenize(texts, stemmer=stemmer, show_progress=False)
    model = bm25s.BM25(backend=backend)
    model.index(tokens, show_progress=False)
    model.save(folder / f"bm25s-{backend}")
    indexed = time.perf_counter() - began
    del texts, tokens, model
    model = bm25s.BM25.load(folder / f"bm25s-{backend}", mmap=True)
    if backend == "numba":
        model.backend = "numba"
        model.activate_numba_scorer()
    opened = time.perf_counter() - began - indexed

    def search(texts: list[str]) -> np.ndarray:
        words = bm25s.tokenize(texts, stemmer=stemmer, show_progress=False)
        threads = 0 if backend == "numba" else -1
        return model.retrieve(words, k=K, show_progress=False, n_threads=threads).scores

    search(queries[:10])  # compiles, and reads from the disk
    began = time.perf_counter()
    scores = search(queries)
    return _figures(folder / f"bm25s-{backend}", indexed, opened, time.perf_counter() - began, scores)


def _queries(folder: Path) -> list[str]:
    store = TextStore.open(folder / "queries.arrow")
    return store.texts(np.arange(len(store)))


def _figures(home: Path, indexed: float, opened: float, searched: float, scores: np.ndarray) -> dict[str, Any]:
    np.save(home.parent / f"{home.name}.npy", scores)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # our workers have up to 0.5 GB each besides
    return {
        "index_s": round(indexed, 1),
        "open_s": round(opened, 2),
        "queries_per_s": round(len(scores) / searched, 1),
        "disk_mb": round(sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / 1e6, 1),
        "peak_gb": round(peak, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--peers", nargs="*", default=["bm25s-numpy", "bm25s-numba"])
    parser.add_argument("--workers", type=int, help="processes that count words; default: as the product chooses")
    parser.add_argument("--folder", type=Path, help="where texts and indexes are kept; default: a temporary folder")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one system, in a process of its own
    args = parser.parse_args()
    if args.only is not None:
        print(json.dumps(_measured(args.only, args.folder, args.workers)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        write_collection(folder, args.passages, args.queries)
        results = {}
        for name in ("ours", *args.peers):
            command = [sys.executable, __file__, "--only", name, "--folder", str(folder)]
            command += [] if args.workers is None else ["--workers", str(args.workers)]
            results[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        scores = {name: np.load(folder / f"{name}.npy") for name in results}
    for name, own in scores.items():
        results[name]["largest_difference"] = float(np.abs(own - scores["ours"]).max())
    print(json.dumps({"passages": args.passages, "queries": args.queries, "k": K, **results}, indent=2))


def _measured(name: str, folder: Path, workers: int | None) -> dict[str, Any]:
    if name == "ours":
        assert ENGLISH.k1 == 1.5 and ENGLISH.b == 0.75, "bm25s's defaults"
        return ours(folder, workers)
    return bm25s_figures(folder, name.removeprefix("bm25s-"))


if __name__ == "__main__":
    main()
