"""Scaling of scoring with the number of workers: the real driver on real Ray, with a teacher that only waits.

The teacher takes the same time per shard without using the CPU, so that many workers fit on a small machine. What is
measured is the driver, the commits, and idle workers at the end. Efficiency is the share of the workers' time spent on
shards, from the moment when all of them work. Prints one JSON line per number of workers.
Usage: python benchmarks/scale_simulation.py [--workers 1 4 16 32] [--shards-each 40] [--seconds 1]
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
from bookkeeping import make_job

from distill.config import Cluster
from distill.run.joblog import JobLog
from distill.run.layout import RunFolder
from distill.run.run import Run
from ray_jobs.cluster import ray_cluster
from ray_jobs.score import score
from ray_jobs.stage import outputs

PAIRS = 1000  # per shard: few, so that writing them is cheap


class Waiting:
    """A teacher that waits `seconds` per shard, without using the CPU."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def score(self, queries: list[str], passages: list[str]) -> np.ndarray:
        time.sleep(self._seconds)
        return np.zeros(len(queries), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--shards-each", type=int, default=40, help="per worker")
    parser.add_argument("--seconds", type=float, default=1.0, help="per shard")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with ray_cluster(Cluster(cpus=max(args.workers))):
        for workers in args.workers:
            print(json.dumps(simulate(workers, workers * args.shards_each, args.seconds)), flush=True)


def simulate(workers: int, shards: int, seconds: float) -> dict[str, float]:
    """Score the shards and return the figures computed from the job's log."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:  # a worker may still be shutting down
        recipe = make_job(Path(root), shards, PAIRS)
        teacher = recipe.teachers["stub"].model_copy(
            update={"cls": "scale_simulation:Waiting", "options": {"seconds": seconds}}
        )
        recipe = recipe.model_copy(
            update={"teachers": {"stub": teacher}, "score": recipe.score.model_copy(update={"actors": workers})}
        )
        folder = RunFolder(recipe.folder)
        cpu = time.process_time()
        run = Run(recipe, folder)
        counters = score(run, outputs(run))
        cpu = time.process_time() - cpu
        assert counters["shards"] == shards
        events = list(JobLog(folder).events())
    spans = [(event["elapsed"] - event["seconds"], event["elapsed"]) for event in events if event["event"] == "done"]
    full, end = when_all_work(spans, workers), max(done for _, done in spans)
    busy = sum(max(0.0, done - max(began, full)) for began, done in spans)
    first_idle = sorted(done for _, done in spans)[-workers]  # from then on at least one worker is idle
    return {
        "workers": workers,
        "shards": shards,
        "seconds a shard": seconds,
        "shards a second": round(sum(done > full for _, done in spans) / (end - full), 1),
        "efficiency": round(busy / workers / (end - full), 3),
        "tail seconds": round(end - first_idle, 2),
        "driver CPU milliseconds a shard": round(cpu / shards * 1000, 2),
        "driver CPU share": round(cpu / (end - min(began for began, _ in spans)), 3),
    }


def when_all_work(spans: list[tuple[float, float]], workers: int) -> float:
    """The moment at which all workers are busy: a small machine starts them one after the other."""
    changes = sorted([(began, 1) for began, _ in spans] + [(done, -1) for _, done in spans])
    working = 0
    for moment, change in changes:
        working += change
        if working == workers:
            return moment
    return changes[0][0]


if __name__ == "__main__":
    main()
