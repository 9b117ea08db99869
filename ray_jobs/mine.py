"""The mining job: encode the collection in chunks, then search candidates shard by shard, on Ray workers.

Chunks and shards are files that exist whole or not at all, and the first commit wins: a killed job resumes with the
missing ones. Encoding and searching with models use GPUs if there are any; BM25 uses CPU cores. A collection of a
single chunk (`mine.shard_passages`) is mined in this process, which is faster than starting workers.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config import Mine, Miner
from distill.errors import RecipeError
from distill.mining.mine import PendingShard, ShardMiner, finish, miners_of, pending_shards
from distill.mining.mine import mine as mine_here
from distill.mining.rankings import ranking_indexes
from distill.progress import progress
from distill.recipe.imports import import_own_code
from distill.retrieval.bm25 import run_index
from distill.retrieval.chunks import Chunks
from distill.run.output import Output
from distill.run.run import Run
from distill.store.candidates import shard_name
from distill.store.texts import TextStore


@dataclass(frozen=True)
class ChunkTask:
    """Encode one chunk of the collection with one miner's model."""

    miner: str
    number: int
    passages: int

    @property
    def name(self) -> str:
        return f"{self.miner}/chunk-{self.number:05d}"

    @property
    def group(self) -> str:
        return self.miner


@dataclass(frozen=True)
class ShardTask:
    """Search for the queries of one candidate shard."""

    shard: PendingShard

    @property
    def name(self) -> str:
        return f"{self.shard.split}/{shard_name(self.shard.index)}"

    @property
    def group(self) -> str:
        return self.shard.split


class MineWorker:
    """Runs tasks of both kinds; models and indexes are loaded by the first task that needs them."""

    def __init__(self, run: Run, threads: int, rankings: Mapping[str, Path]):
        with contextlib.suppress(RecipeError):  # another machine may lack what only training needs
            import_own_code(run.recipe)
        self._run, self._threads, self._rankings = run, threads, rankings
        self._chunks: dict[str, Chunks] = {}
        self._shards: ShardMiner | None = None

    def ready(self) -> int:
        return os.getpid()

    def run(self, task: ChunkTask | ShardTask) -> None:
        from ray_jobs.devices import ending_with_the_device, given_device

        with ending_with_the_device(task.name, self._run.folder):
            if isinstance(task, ChunkTask):
                if task.miner not in self._chunks:
                    self._chunks.clear()  # frees the previous model's memory first
                    _use_threads(self._threads)
                    self._chunks[task.miner] = _chunks(self._run, task.miner, given_device())
                self._chunks[task.miner].make(task.number)
            else:
                if self._shards is None:
                    _use_threads(self._threads)
                    self._shards = ShardMiner(self._run, given_device(), self._threads, self._rankings)
                self._shards.mine(task.shard)


def mine(run: Run, outputs: Sequence[Output]) -> None:
    """Write the candidates of every split of `outputs`.

    After any failure, a new launch resumes with the missing files and ends with the candidates of an undisturbed run.
    Raises what `distill.mining.mine.mine` does, and `JobFailed` for an exception in a worker's code.
    """
    passages = TextStore.open(run.folder.passages)
    if passages.collection_size <= run.recipe.mine.shard_passages:
        mine_here(run, outputs)
        return
    rankings = ranking_indexes(run, outputs)
    shards = [ShardTask(shard) for shard in pending_shards(run, outputs)]
    if shards:
        import ray

        from ray_jobs.cluster import ray_cluster
        from ray_jobs.shard_map import Resources

        miners = list(
            {name: None for split in {task.shard.split for task in shards} for name in miners_of(run.recipe, split)}
        )
        if any(run.recipe.mine.miners[name].kind == "bm25" for name in miners):
            run_index(run)  # which workers map into memory
        with ray_cluster(run.recipe.cluster):
            gpus = run.recipe.mine.gpus
            if gpus is None:
                gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
            _map(
                run,
                _missing_chunks(run, miners),
                "encode",
                "passages",
                Resources(run.recipe.mine.cpus, gpus, run.recipe.mine.actors),
                rankings,
            )
            searchers = [run.recipe.mine.miners[name] for name in miners]
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            resources = Resources(
                *search_resources(run.recipe.mine, searchers, gpus, nodes), actors=run.recipe.mine.actors
            )
            _map(run, shards, "mine", "queries", resources, rankings)
    finish(run, outputs)


def search_resources(
    mine: Mine, miners: Sequence[Miner], gpus: float, nodes: Sequence[Mapping[str, float]]
) -> tuple[float, float]:
    """CPU cores and GPUs of a worker that searches: GPUs where a miner has a model, which they search, too.

    `gpus`: of a worker that encodes; `nodes`: the resources of each. BM25 needs cores: beside a model on a GPU it gets
    that GPU's share of them.
    """
    if not any(miner.encodes for miner in miners):
        return mine.cpus, 0.0
    shares = [node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU", 0) >= gpus > 0]
    if shares and any(miner.kind == "bm25" for miner in miners):
        return max(mine.cpus, float(int(gpus * min(shares)))), gpus
    return mine.cpus, gpus


def _map(run: Run, tasks: Sequence[Any], title: str, unit: str, resources: Any, rankings: Mapping[str, Path]) -> None:
    from ray_jobs.devices import lost_device
    from ray_jobs.shard_map import shard_map

    if not tasks:
        return
    size = Counter({task.name: task.passages if isinstance(task, ChunkTask) else task.shard.queries for task in tasks})
    with progress(title, size.total(), unit) as advance:
        shard_map(
            MineWorker,
            (run, max(1, int(resources.cpus)), rankings),
            tasks,
            resources=resources,
            max_tries=run.recipe.mine.max_tries,
            done=lambda task, _: advance(size[task.name], task.name),
            diagnose=lambda task, since: lost_device(task.name, run.folder, since),
        )


def _chunks(run: Run, miner: str, device: str | None = None) -> Chunks:
    passages = TextStore.open(run.folder.passages)
    return Chunks(run.recipe.mine.miners[miner], passages, run.folder, run.recipe.mine, device)


def _missing_chunks(run: Run, miners: Sequence[str]) -> list[ChunkTask]:
    tasks = []
    for name in miners:
        if run.recipe.mine.miners[name].encodes:
            chunks = _chunks(run, name)
            tasks += [ChunkTask(name, number, len(chunks.rows(number))) for number in chunks.missing()]
    return tasks


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
