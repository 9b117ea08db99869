"""The mine stage: candidate shards for training, and what the teachers rerank on the other splits.

A training query gets its positives, then each miner's `top` best and a random `sample` of its best `depth`, without
duplicates and without known positives. A development or test query gets the first miner's top, nothing added or
removed, so that a reranker is measured on what a first stage would hand it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill.config import Mine, Miner, Recipe
from distill.data.arrow import RowReader
from distill.data.candidates import (
    Candidates,
    are_imported,
    from_lists,
    read_candidates,
    shard_name,
    write_candidates,
)
from distill.data.checkpoints import model_field
from distill.data.files import xxh128_file
from distill.data.fingerprint import check_same
from distill.data.fingerprint import fingerprint as fingerprint_of
from distill.data.judgements import Judgements, load_judgements
from distill.data.layout import SPLITS, RunFolder
from distill.data.manifest import FORMAT, Manifest, Shard, read_manifest, require_manifest, write_manifest
from distill.data.texts import TextStore
from distill.errors import DataError, StorageError
from distill.mining.bm25 import build_index, open_index
from distill.mining.chunks import Chunks
from distill.mining.indexes import DenseIndex, SpladeIndex
from distill.progress import progress

log = logging.getLogger(__name__)

Search = Callable[[str, Sequence[str], int], np.ndarray]  # miner, queries, k -> rows int64 [n, <= k]


class Searcher(Protocol):
    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows int64 [n, <= k], best first, -1 where nothing more was found; scores float32 of the same shape."""


def mine(recipe: Recipe, folder: RunFolder) -> Manifest:
    """Write the candidates of every split that has judgements, in this process; the training split's manifest.

    Done work is left alone: whole splits by their manifest, single shards by the fingerprint in them. Raises
    `FingerprintError` where a folder's candidates came from other inputs, `DataError` without training queries.
    """
    miner = ShardMiner(recipe, folder)
    pending = pending_shards(recipe, folder)
    with progress("mine", sum(shard.queries for shard in pending), "queries") as advance:
        for shard in pending:
            miner.mine(shard.split, shard.index)
            advance(shard.queries, f"{shard.split}/{shard_name(shard.index)}")
    return finish(recipe, folder)


@dataclass(frozen=True)
class PendingShard:
    """A candidate shard that is to be mined."""

    split: str
    index: int
    queries: int


def pending_shards(recipe: Recipe, folder: RunFolder) -> list[PendingShard]:
    """Planned and not committed, in order. Raises as `mine` does."""
    train = folder.judgements("train")
    if not train.exists() or not len(RowReader(train)):
        raise DataError(
            "there are no training queries to mine for: the source has no judgements of its train split "
            "(data.source.splits); data.generate makes queries from the passages",
            path=train,
        )
    pending = []
    for split in _unfinished(recipe, folder):
        plan = _Split(recipe, folder, split)
        pending += [
            PendingShard(split, index, len(rows)) for index, rows in enumerate(plan.shards) if not plan.committed(index)
        ]
    return pending


def miners_of(recipe: Recipe, split: str) -> dict[str, Miner]:
    """All for training queries, the first one for the others."""
    miners = recipe.mine.miners
    return miners if split == "train" else dict(list(miners.items())[:1])


def mining_fields(recipe: Recipe, folder: RunFolder, split: str) -> dict[str, Any]:
    """What the candidates of a split depend on: the hashed part of their manifest."""
    miners = {
        name: miner.model_dump(mode="json") | {"model": model_field(recipe, miner.model)}
        for name, miner in recipe.mine.miners.items()
    }
    fields: dict[str, Any] = {
        "stage": "mine",
        "format": FORMAT,
        "split": split,
        "data": require_manifest(folder.data, "import").fingerprint,
        "shard_queries": recipe.mine.shard_queries,
    }
    if recipe.mine.precision != "float32":
        fields["precision"] = recipe.mine.precision
    if split == "train":
        return {**fields, "miners": miners, "order": list(miners), "seed": recipe.seed}
    first = next(iter(miners))
    used = {key: miners[first][key] for key in ("kind", "model", "revision")}
    return {**fields, "miner": first, **used, "rerank_depth": recipe.mine.rerank_depth}


class ShardMiner:
    """Mines one shard after the other; what that takes (judgements, texts, indexes) is opened when first needed.

    `device`: of the miners' models; `threads`: of a search. None is what this machine has.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, device: str | None = None, threads: int | None = None):
        self._recipe, self._folder, self._device, self._threads = recipe, folder, device, threads
        self._searchers: dict[str, Searcher] = {}
        self._splits: dict[str, _Split] = {}
        self._passages = TextStore.open(folder.passages)

    def mine(self, split: str, index: int) -> None:
        """Mine and commit one shard of a split, unless it is there."""
        if split not in self._splits:
            self._splits[split] = _Split(self._recipe, self._folder, split)
        plan = self._splits[split]
        path, rows = plan.path(index), plan.shards[index]
        if plan.committed(index):
            return
        path.unlink(missing_ok=True)  # left by a run of another meaning; not later, when it may be another machine's
        texts = TextStore.open(self._folder.queries(split)).texts(rows)
        choose = _training_candidates if split == "train" else _rerank_candidates
        candidates = choose(self._recipe, rows, texts, plan.judgements, self._passages, self._search)
        # where another machine was first, its copy counts: a teacher may be scoring it already
        write_candidates(path, candidates, plan.fingerprint, exclusive=True)

    def _search(self, name: str, texts: Sequence[str], k: int) -> np.ndarray:
        if name not in self._searchers:
            self._searchers[name] = open_searcher(
                self._recipe.mine.miners[name], self._passages, self._folder, self._recipe.mine, self._device
            )
        return self._searchers[name].search(texts, k, self._threads)[0]


def finish(recipe: Recipe, folder: RunFolder) -> Manifest:
    """Write the manifests of the splits whose shards are all there; returns the training split's."""
    for split in _unfinished(recipe, folder):
        plan, path = _Split(recipe, folder, split), folder.candidates(split)
        totals = {"queries": 0, "positives": 0, "negatives": 0, "queries_without_candidates": 0}
        shards = []
        for index, rows in enumerate(plan.shards):
            target = plan.path(index)
            if not plan.committed(index):
                raise StorageError(f"{target}: gone since it was mined; look at the disk, and start the command again")
            _count(totals, read_candidates(target))
            shards.append(Shard(target.name, len(rows), target.stat().st_size, xxh128_file(target)))
        write_manifest(path, Manifest(plan.fields, tuple(shards), totals))
        log.info(
            "%s: %d queries, %d positives, %d negatives%s",
            path,
            totals["queries"],
            totals["positives"],
            totals["negatives"],
            f"; {totals['queries_without_candidates']} queries found nothing"
            if totals["queries_without_candidates"]
            else "",
        )
    return require_manifest(folder.candidates("train"), "mine")


def open_searcher(
    miner: Miner, passages: TextStore, folder: RunFolder, mine: Mine | None = None, device: str | None = None
) -> Searcher:
    """The index that a miner searches, over the collection; what is not there of it is made first.

    `mine`: how its vectors are made; None is the default.
    """
    if miner.kind == "bm25":
        return open_index(passages, folder.index("bm25")) or build_index(passages)
    chunks = Chunks(miner, passages, folder, mine or Mine(), device)
    return DenseIndex(chunks) if miner.kind == "dense" else SpladeIndex(chunks)


def _unfinished(recipe: Recipe, folder: RunFolder) -> list[str]:
    """The splits that have judgements and no candidates yet; `FingerprintError` for candidates of other inputs."""
    unfinished = []
    for split in SPLITS:
        path = folder.candidates(split)
        if not folder.judgements(split).exists() or are_imported(path):
            continue
        if (done := read_manifest(path)) is None:
            unfinished.append(split)
        else:
            check_same(path, done.fields, mining_fields(recipe, folder, split))
    return unfinished


class _Split:
    """The plan of a split's candidates."""

    def __init__(self, recipe: Recipe, folder: RunFolder, split: str):
        self._home = folder.candidates(split)
        self.fields = mining_fields(recipe, folder, split)
        self.fingerprint = fingerprint_of(self.fields)
        self.judgements = load_judgements(folder, split)
        chosen = np.array([q for q in self.judgements.queries if len(self.judgements.positives(q))], dtype=np.int64)
        step = recipe.mine.shard_queries
        self.shards = [chosen[start : start + step] for start in range(0, len(chosen), step)]  # query rows, int64

    def path(self, index: int) -> Path:
        return self._home / shard_name(index)

    def committed(self, index: int) -> bool:
        """Whether a shard of this meaning is there."""
        path = self.path(index)
        return path.exists() and RowReader(path).metadata.get("fingerprint") == self.fingerprint


def choose_negatives(
    ranking: np.ndarray, excluded: np.ndarray, miner: Miner, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Negatives from one ranking (passage rows int64, best first): the `top` best after `skip`, then the sample.

    `skip` counts ranks of the ranking itself; excluded passages (the positives) take no place among `top`.
    Returns passage rows int64 [m] and their ranks int32 [m], from 1.
    """
    ranks = np.arange(1, len(ranking) + 1, dtype=np.int32)
    usable = (ranks > miner.skip) & ~np.isin(ranking, excluded)
    best = np.flatnonzero(usable)[: miner.top]
    pool = np.flatnonzero(usable & (ranks <= miner.depth))
    pool = pool[~np.isin(pool, best)]
    drawn = rng.choice(pool, size=min(miner.sample, len(pool)), replace=False) if miner.sample else pool[:0]
    at = np.concatenate([best, np.sort(drawn)])
    return ranking[at], ranks[at]


def _training_candidates(
    recipe: Recipe, rows: np.ndarray, texts: list[str], judgements: Judgements, passages: TextStore, search: Search
) -> Candidates:
    miners = recipe.mine.miners
    positives = [_positives(judgements, query) for query in rows]
    excluded = [_with_origins(passages, found) for found in positives]
    widest = max((len(found) for found in excluded), default=0)
    rankings = {}
    for name, miner in miners.items():
        deep_enough = miner.skip + miner.top + widest  # so that excluded passages leave `top` others
        k = max(deep_enough, miner.depth) if miner.sample else deep_enough
        rankings[name] = search(name, texts, k)
    lists, sources, ranks = [], [], []
    for i, query in enumerate(rows):
        found, source = [positives[i]], [np.zeros(len(positives[i]), np.uint8)]
        rank = [np.zeros(len(positives[i]), np.int32)]
        for code, (name, miner) in enumerate(miners.items(), start=1):
            ranking = rankings[name][i]
            # by query and miner, so that a sample does not depend on how queries fall into shards
            rng = np.random.default_rng([recipe.seed, code, int(query)])
            negatives, at = choose_negatives(ranking[ranking >= 0], excluded[i], miner, rng)
            new = ~np.isin(negatives, np.concatenate(found))  # an earlier miner may have brought it
            found.append(negatives[new])
            source.append(np.full(int(new.sum()), code, np.uint8))
            rank.append(at[new])
        lists.append(np.concatenate(found))
        sources.append(np.concatenate(source))
        ranks.append(np.concatenate(rank))
    return from_lists(rows, lists, [len(found) for found in positives], ("judgement", *miners), sources, ranks)


def _rerank_candidates(
    recipe: Recipe, rows: np.ndarray, texts: list[str], judgements: Judgements, passages: TextStore, search: Search
) -> Candidates:
    """The first miner's top and nothing else; as in every shard the positives come first, `rank` keeps the order."""
    name = next(iter(recipe.mine.miners))
    ranking = search(name, texts, recipe.mine.rerank_depth)
    lists, ranks, positives = [], [], []
    for query, row in zip(rows, ranking, strict=True):
        found = row[row >= 0]
        positive = np.isin(found, _with_origins(passages, _positives(judgements, query)))
        order = np.argsort(~positive, kind="stable")
        lists.append(found[order])
        ranks.append(order + 1)
        positives.append(int(positive.sum()))
    sources = [np.ones(len(found), np.uint8) for found in lists]
    return from_lists(rows, lists, positives, ("judgement", name), sources, ranks)


def _positives(judgements: Judgements, query: int) -> np.ndarray:
    """Positives of a query, best grade first, then by row."""
    found, grades = judgements.of(query)
    found, grades = found[grades > 0], grades[grades > 0]
    return found[np.lexsort((found, -grades))]


def _with_origins(passages: TextStore, rows: np.ndarray) -> np.ndarray:
    """`rows`, and the collection rows that the training variants among them were cut from."""
    origins = passages.origin(rows)
    return np.concatenate([rows, origins[origins >= 0]])


def _count(totals: dict[str, int], candidates: Candidates) -> None:
    positives = int(candidates.positive.sum())
    totals["queries"] += len(candidates)
    totals["positives"] += positives
    totals["negatives"] += candidates.pairs - positives
    totals["queries_without_candidates"] += int((np.diff(candidates.offsets) == 0).sum())
