"""Overhead of the scoring job's driver: CPU time per shard and memory, with a teacher that returns zeros.

By default 10,000 shards of 10,000 pairs: 100 million pairs. The candidate shards are hard links to one file, since only
their number matters to the driver. The driver's memory is sampled from the first finished shard on. Prints one JSON
line per figure.
Usage: python benchmarks/bookkeeping.py [--shards 10000] [--pairs 10000] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import os
import pstats
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from distill.config import Recipe
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, manifest_path, write_manifest
from distill.run.run import Run
from distill.store.arrow import write_ipc
from distill.store.candidates import from_lists, shard_name, write_candidates
from distill.store.texts import PASSAGE_SCHEMA, QUERY_SCHEMA
from ray_jobs.cluster import ray_cluster
from ray_jobs.score import score
from ray_jobs.stage import outputs

TARGET_MS = 2.0
QUERIES = 100  # per shard
MIB = 2**20


class Stub:
    """A teacher that returns zeros, so that only the job's own work is measured."""

    def score(self, queries: list[str], passages: list[str]) -> np.ndarray:
        return np.zeros(len(queries), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=10_000, help="per shard")
    parser.add_argument("--profile", action="store_true", help="print a profile of the driver")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as root:
        recipe = make_job(Path(root), args.shards, args.pairs)
        folder = RunFolder(recipe.folder)
        common = {"shards": args.shards, "pairs": args.shards * args.pairs}
        with ray_cluster(recipe.cluster):
            profile = cProfile.Profile() if args.profile else None
            with watched(folder) as memory, profile or nullcontext():
                seconds, counters = cpu_seconds(recipe, folder)
            assert counters["shards"] == args.shards
            per_shard = seconds / args.shards * 1000
            report("driver CPU milliseconds a shard", per_shard, TARGET_MS, per_shard / TARGET_MS, **common)
            report(
                "driver memory from the first shard to the last, MiB of growth",
                memory[-1] - memory[0],
                memory[0],
                memory[-1] / memory[0],
                **common,
                highest=round(max(memory), 1),
            )
            manifest_path(folder.scores("stub", "train")).unlink()
            seconds, counters = cpu_seconds(recipe, folder)
            assert counters["shards"] == 0
            per_shard = seconds / args.shards * 1000
            report(
                "driver CPU milliseconds a committed shard, at the next launch",
                per_shard,
                TARGET_MS,
                per_shard / TARGET_MS,
                **common,
            )
        if profile is not None:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


def cpu_seconds(recipe: Recipe, folder: RunFolder) -> tuple[float, dict[str, int]]:
    """Run one launch; return this process's CPU seconds over all threads, and the job's counters."""
    start = time.process_time()
    run = Run(recipe, folder)
    counters = score(run, outputs(run))
    return time.process_time() - start, counters


@contextmanager
def watched(folder: RunFolder) -> Iterator[list[float]]:
    """Sample this process's resident MiB, every half second from the first committed shard on, and at the end."""
    memory: list[float] = []
    process, stop = psutil.Process(), threading.Event()

    def watch() -> None:
        first_shard = folder.scores("stub", "train") / shard_name(0)
        while not stop.wait(0.5):
            if memory or first_shard.exists():
                memory.append(process.memory_info().rss / MIB)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield memory
    stop.set()
    watcher.join()
    memory.append(process.memory_info().rss / MIB)


def make_job(root: Path, shards: int, pairs: int) -> Recipe:
    """Write a run folder with short texts and candidates to score; return its recipe."""
    folder = RunFolder(root / "run")
    texts = [f"text {i}" for i in range(max(QUERIES, pairs // QUERIES))]
    ids = {"id": texts, "text": texts}
    for path, schema, columns in (
        (folder.queries("train"), QUERY_SCHEMA, ids),
        (folder.passages, PASSAGE_SCHEMA, {**ids, "title": [""] * len(texts), "origin": [-1] * len(texts)}),
    ):
        write_ipc(path, schema, [pa.RecordBatch.from_pydict(columns, schema=schema)], {"fingerprint": "bookkeeping"})
    lists = [list(range(pairs // QUERIES))] * QUERIES
    home = folder.candidates("train")
    shard = write_candidates(
        home / shard_name(0), from_lists(range(QUERIES), lists, [1] * QUERIES, ("judgement",)), "bookkeeping"
    )
    for i in range(1, shards):
        os.link(home / shard_name(0), home / shard_name(i))
    write_manifest(
        home,
        Manifest({"stage": "mine", "split": "train"}, tuple(replace(shard, name=shard_name(i)) for i in range(shards))),
    )
    return parse_recipe(
        {
            "name": "bookkeeping",
            "run_dir": str(folder.root),
            "student": {"model": "none"},
            "data": {"source": {"kind": "python-docs"}},
            "score": {"rerank": False},
            "teachers": {"stub": {"kind": "custom", "cls": "bookkeeping:Stub"}},
        }
    )


def report(figure: str, ours: float, peer: float, ratio: float, **conditions: object) -> None:
    print(
        json.dumps(
            {"figure": figure, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ratio, 3), **conditions}
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
