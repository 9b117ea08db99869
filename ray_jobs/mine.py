"""The mining job: the collection encoded in chunks, then candidates searched shard by shard, on Ray workers.

Chunks and shards are files that exist whole or not at all, and whoever commits one first has made it: a job that is
killed goes on with what is missing. Encoding takes GPUs where there are some; searching takes cores. A collection of
one chunk (`mine.shard_passages`) is mined in this process, which is faster than starting workers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.config import Recipe
from distill.data.candidates import shard_name
from distill.data.files import locked
from distill.data.layout import RunFolder
from distill.data.manifest import Manifest
from distill.data.texts import TextStore
from distill.mining.bm25 import build_index, open_index, save_index
from distill.mining.chunks import Chunks
from distill.mining.mine import PendingShard, ShardMiner, finish, miners_of, pending_shards
from distill.mining.mine import mine as mine_here
from distill.progress import progress


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
    """Runs tasks of both kinds; what a task needs is loaded when the first one comes."""

    def __init__(self, recipe: Recipe, folder: RunFolder, threads: int):
        self._recipe, self._folder, self._threads = recipe, folder, threads
        self._chunks: dict[str, Chunks] = {}
        self._shards: ShardMiner | None = None

    def ready(self) -> int:
        return os.getpid()

    def run(self, task: ChunkTask | ShardTask) -> None:
        from ray_jobs.devices import ending_with_the_device, given_device

        with ending_with_the_device(task.name, self._folder):
            if isinstance(task, ChunkTask):
                if task.miner not in self._chunks:
                    self._chunks.clear()  # frees the last model's memory first
                    _use_threads(self._threads)
                    self._chunks[task.miner] = _chunks(self._recipe, self._folder, task.miner, given_device())
                self._chunks[task.miner].make(task.number)
            else:
                if self._shards is None:
                    _use_threads(self._threads)
                    self._shards = ShardMiner(self._recipe, self._folder, given_device(), self._threads)
                self._shards.mine(task.shard.split, task.shard.index)


def mine(recipe: Recipe, folder: RunFolder) -> Manifest:
    """Write the candidates of every split that has judgements; returns the training split's manifest.

    Started again after any failure, the job finishes what is left, with the candidates of a run that was not
    disturbed. Raises what `distill.mining.mine.mine` does, and `JobFailed` for an exception in a worker's code.
    """
    passages = TextStore.open(folder.passages)
    if passages.collection_size <= recipe.mine.shard_passages:
        return mine_here(recipe, folder)
    shards = [ShardTask(shard) for shard in pending_shards(recipe, folder)]
    if shards:
        import ray

        from ray_jobs.shard_map import Resources, ray_cluster

        miners = list(
            {name: None for split in {task.shard.split for task in shards} for name in miners_of(recipe, split)}
        )
        if any(recipe.mine.miners[name].kind == "bm25" for name in miners):
            _make_bm25_index(passages, folder)
        with ray_cluster(recipe.cluster):
            gpus = recipe.mine.gpus
            if gpus is None:
                gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
            _map(
                recipe,
                folder,
                _missing_chunks(recipe, folder, miners),
                "encode",
                "passages",
                Resources(recipe.mine.cpus, gpus, recipe.mine.actors),
            )
            _map(recipe, folder, shards, "mine", "queries", Resources(recipe.mine.cpus, 0.0, recipe.mine.actors))
    return finish(recipe, folder)


def _map(recipe: Recipe, folder: RunFolder, tasks: Sequence[Any], title: str, unit: str, resources: Any) -> None:
    from ray_jobs.devices import lost_device
    from ray_jobs.shard_map import shard_map

    if not tasks:
        return
    size = Counter({task.name: task.passages if isinstance(task, ChunkTask) else task.shard.queries for task in tasks})
    with progress(title, size.total(), unit) as advance:
        shard_map(
            MineWorker,
            (recipe, folder, max(1, int(recipe.mine.cpus))),
            tasks,
            resources=resources,
            max_tries=recipe.mine.max_tries,
            done=lambda task, _: advance(size[task.name], task.name),
            why=lambda task, since: lost_device(task.name, folder, since),
        )


def _chunks(recipe: Recipe, folder: RunFolder, miner: str, device: str | None = None) -> Chunks:
    passages = TextStore.open(folder.passages)
    return Chunks(recipe.mine.miners[miner], passages, folder, recipe.mine, device)


def _missing_chunks(recipe: Recipe, folder: RunFolder, miners: Sequence[str]) -> list[ChunkTask]:
    tasks = []
    for name in miners:
        if recipe.mine.miners[name].kind != "bm25":
            chunks = _chunks(recipe, folder, name)
            tasks += [ChunkTask(name, number, len(chunks.rows(number))) for number in chunks.missing()]
    return tasks


def _make_bm25_index(passages: TextStore, folder: RunFolder) -> None:
    """Save the index that workers map into memory, unless it is there."""
    home = folder.index("bm25")
    with locked(home):
        if open_index(passages, home) is None:
            save_index(build_index(passages), home, postings=True)


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
