"""The mine stage: candidate shards for training, and the candidates that teachers rerank on the other splits.

A training query gets its positives, then each miner's `top` best and a random `sample` of its best `depth`, without
duplicates and known positives. Of a query without a positive no rank is skipped: its best hits are the passages most
likely to be relevant. A development or test query gets exactly the first miner's top, so that a reranker is
measured on the output of a real first stage.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from distill.config import Mine, Miner, Recipe
from distill.errors import DataError, StorageError
from distill.mining.known import Known
from distill.mining.rankings import RankingIndex, index_file, ranking_counts, ranking_indexes
from distill.mining.recall import recall_counts
from distill.progress import progress
from distill.retrieval.approximate import SeismicIndex
from distill.retrieval.bm25 import shared_index
from distill.retrieval.bm25_settings import Bm25Settings
from distill.retrieval.chunks import Chunks
from distill.retrieval.indexes import DenseIndex, SpladeIndex
from distill.run.layout import RunFolder
from distill.run.manifest import Shard
from distill.run.output import Output
from distill.run.run import Run
from distill.store.arrow import RowReader
from distill.store.candidates import (
    Candidates,
    from_lists,
    read_candidates,
    shard_name,
    write_candidates,
)
from distill.store.identity import Copies, load_own_documents, positives_of_equal_queries
from distill.store.judgements import Judgements, load_judgements
from distill.store.texts import TextStore

log = logging.getLogger(__name__)

Search = Callable[[str, int], np.ndarray]  # miner, k -> rows int64 [n, <= k] of the queries at hand


class Searcher(Protocol):
    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return rows int64 [n, <= k], best first, -1 after the last hit; scores float32 of the same shape."""


def mine(run: Run, outputs: Sequence[Output]) -> None:
    """Write the candidates of the splits of `outputs`, in this process.

    Committed shards are kept. Raises `DataError` if there are no training queries.
    """
    rankings = ranking_indexes(run, outputs)
    pending = pending_shards(run, outputs)
    miner = ShardMiner(run, rankings=rankings)
    with progress("mine", sum(shard.queries for shard in pending), "queries") as advance:
        for shard in pending:
            miner.mine(shard)
            advance(shard.queries, f"{shard.split}/{shard_name(shard.index)}")
    finish(run, outputs)


@dataclass(frozen=True)
class PendingShard:
    """A candidate shard that is still to be mined."""

    split: str
    index: int
    queries: int
    fingerprint: str


def pending_shards(run: Run, outputs: Sequence[Output]) -> list[PendingShard]:
    """List the shards that are planned and not committed, in order. Raises what `mine` does."""
    train = run.folder.queries("train")
    if not train.exists() or not len(RowReader(train)):
        raise DataError(
            "there are no training queries to mine for: the source has no judgements for its train split. Name the "
            "split in data.source.splits, let data.generate make queries from the passages, or take queries without "
            "judgements by data.query_log",
            path=train,
        )
    pending = []
    for output in outputs:
        if output.finished() is None:
            output.claim()
            plan = _SplitPlan.of(run, output.key[0])
            pending += [
                PendingShard(plan.split, index, len(rows), output.fingerprint)
                for index, rows in enumerate(plan.shards)
                if not committed(plan.path(index), output.fingerprint)
            ]
    return pending


def miners_of(recipe: Recipe, split: str) -> dict[str, Miner]:
    """Return the miners of a split: all of them for training, the first one for the other splits."""
    miners = recipe.mine.miners
    return miners if split == "train" else dict(list(miners.items())[:1])


class ShardMiner:
    """Mines shards one by one. Judgements, texts and indexes are opened when first needed.

    `device`: of the miners' models; `threads`: of a search. None: what this machine has. `rankings`: the
    `ranking_indexes`; None: look for them, which reads the files that they are made of.
    """

    def __init__(
        self,
        run: Run,
        device: str | None = None,
        threads: int | None = None,
        rankings: Mapping[str, Path] | None = None,
    ):
        self._run, self._device, self._threads = run, device, threads
        self._rankings = ranking_indexes(run) if rankings is None else rankings
        self._searchers: dict[str, Searcher] = {}
        self._splits: dict[str, tuple[_SplitPlan, Known]] = {}
        self._passages = TextStore.open(run.folder.passages)
        self._copies = Copies.load(run.folder)

    def mine(self, shard: PendingShard) -> None:
        """Mine and commit one shard, unless it is committed already."""
        split = shard.split
        if split not in self._splits:
            plan = _SplitPlan.of(self._run, split)
            self._splits[split] = plan, self._known(split, plan.judgements)
        plan, known = self._splits[split]
        path, rows = plan.path(shard.index), plan.shards[shard.index]
        if committed(path, shard.fingerprint):
            return
        texts = TextStore.open(self._run.folder.queries(split)).texts(rows)
        choose = _training_candidates if split == "train" else _rerank_candidates
        candidates = choose(self._run.recipe, rows, known, partial(self._search, split, rows, texts))
        # if another machine was first, its copy stays: a teacher may be scoring it already
        write_candidates(path, candidates, shard.fingerprint, exclusive=True)

    def _known(self, split: str, judgements: Judgements) -> Known:
        folder = self._run.folder
        equal = positives_of_equal_queries(TextStore.open(folder.queries(split)), judgements)
        return Known(judgements, self._passages, self._copies, load_own_documents(folder, split), equal)

    def _search(self, split: str, rows: np.ndarray, texts: Sequence[str], name: str, k: int) -> np.ndarray:
        if name in self._rankings:
            return RankingIndex(index_file(self._rankings[name], split)).search(rows, k)
        if name not in self._searchers:
            mine = self._run.recipe.mine
            miner = mine.miners[name]
            bm25 = Bm25Settings.of(self._run) if miner.kind == "bm25" else None
            self._searchers[name] = open_searcher(miner, self._passages, self._run.folder, mine, self._device, bm25)
        return self._searchers[name].search(texts, k, self._threads)[0]


def finish(run: Run, outputs: Sequence[Output]) -> None:
    """Write the manifests. Raises `StorageError` for a shard that has disappeared."""
    homes = ranking_indexes(run)
    for output in outputs:
        if output.finished() is not None:
            continue
        plan = _SplitPlan.of(run, output.key[0])
        totals = {"queries": 0, "positives": 0, "negatives": 0, "queries_without_candidates": 0}
        shards, unjudged, useless = [], 0, 0
        hits: Counter[str] = Counter()  # candidates of each miner
        for index, rows in enumerate(plan.shards):
            target = plan.path(index)
            if not committed(target, output.fingerprint):
                raise StorageError(
                    f"{target}: disappeared after it was mined; check the disk, then run the command again"
                )
            candidates = read_candidates(target)
            _count(totals, candidates)
            codes = np.bincount(candidates.source, minlength=len(candidates.sources)).tolist()
            hits.update(dict(zip(candidates.sources, codes, strict=True)))
            unjudged += int((~candidates.has_positive).sum())
            useless += int((~candidates.has_positive & (np.diff(candidates.offsets) < 2)).sum())
            useless += _without_negatives(candidates)
            shards.append(Shard.of(target, target.parent, len(rows)))
        _tell_of_nothing(run, plan.split, totals["queries"], hits)
        if plan.split == "train" and not totals["negatives"]:
            found = "nothing but positives" if totals["positives"] else "no passages"
            raise DataError(
                f"no training query has a negative: {', '.join(run.recipe.mine.miners)} found {found}. "
                "Use another miner in mine.miners, or a larger collection",
                path=output.folder,
            )
        if plan.split == "train" and unjudged:
            totals["queries_without_positives"] = unjudged
        miners = miners_of(run.recipe, plan.split)
        rankings = {name: homes[name] for name in miners if name in homes}
        queries = np.concatenate([np.empty(0, np.int64), *plan.shards])
        recall = recall_counts(run, plan.split, queries, miners)
        output.finish(shards, {**totals, **ranking_counts(rankings, plan.split, plan.shards), **recall})
        if plan.split == "train" and useless:
            log.warning(
                "%d of %d training queries cannot be learnt from: they have no negative or, without a positive, fewer "
                "than two candidates",
                useless,
                totals["queries"],
            )
        without = [f"{n:,} {name.replace('_', ' ')}" for name, n in totals.items() if n and "without" in name]
        log.info(
            "%s: %d queries, %d positives, %d negatives%s",
            output.folder,
            totals["queries"],
            totals["positives"],
            totals["negatives"],
            "".join(f"; {each}" for each in without),
        )


def _tell_of_nothing(run: Run, split: str, queries: int, hits: Mapping[str, int]) -> None:
    """Say that a bm25 miner has no candidate for any query of a split, why that may be, and what to do."""
    for name, miner in miners_of(run.recipe, split).items():
        wanted = miner.top + miner.sample if split == "train" else run.recipe.mine.rerank_depth
        if miner.kind == "bm25" and queries and wanted and not hits.get(name):
            log.warning(
                "miner %s: BM25 has no candidate for any of the %d %s queries: no passage%s shares a word with its "
                "query. Are queries and passages in one language, and is it data.language (%s here)? Otherwise use a "
                "dense or splade miner, or a `run` of rankings",
                name,
                queries,
                split,
                " but positives" if split == "train" else "",
                Bm25Settings.of(run).language,
            )


def open_searcher(
    miner: Miner,
    passages: TextStore,
    folder: RunFolder,
    mine: Mine | None = None,
    device: str | None = None,
    bm25: Bm25Settings | None = None,
) -> Searcher:
    """Open the index that a miner searches; missing parts of it are built first.

    `mine`: precision and chunk size of its vectors; `bm25`: settings of a bm25 miner; None: the defaults.
    """
    if miner.kind == "bm25":
        return shared_index(folder, bm25 or Bm25Settings())
    chunks = Chunks(miner, passages, folder, mine or Mine(), device)
    if miner.search == "seismic":
        return SeismicIndex(chunks, miner.seismic)
    return DenseIndex(chunks) if miner.kind == "dense" else SpladeIndex(chunks)


@dataclass(frozen=True)
class _SplitPlan:
    """The division of a split's queries into shards: all training queries, and those with a positive elsewhere."""

    split: str
    home: Path
    judgements: Judgements
    shards: list[np.ndarray]  # query rows, int64, of each shard

    @classmethod
    def of(cls, run: Run, split: str) -> _SplitPlan:
        judgements = load_judgements(run.folder, split)
        if split == "train":
            queries = np.arange(len(RowReader(run.folder.queries(split))), dtype=np.int64)
        else:
            queries = judgements.with_positives
        step = run.recipe.mine.shard_queries
        shards = [queries[start : start + step] for start in range(0, len(queries), step)]
        return cls(split, run.folder.candidates(split), judgements, shards)

    def path(self, index: int) -> Path:
        return self.home / shard_name(index)


def committed(path: Path, fingerprint: str) -> bool:
    """Whether a shard with this fingerprint exists."""
    return path.exists() and RowReader(path).metadata.get("fingerprint") == fingerprint


def choose_negatives(
    ranking: np.ndarray,
    excluded: np.ndarray,
    miner: Miner,
    rng: np.random.Generator,
    copies: Copies | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose negatives from one ranking (passage rows int64, best first): `top` after the `skip` best, then `sample`.

    `skip` counts all ranks; excluded passages (the positives) and later `copies` of a text do not count towards `top`.
    Returns passage rows int64 [m] and their ranks int32 [m], from 1.
    """
    ranks = np.arange(1, len(ranking) + 1, dtype=np.int32)
    usable = (ranks > miner.skip) & ~np.isin(ranking, excluded)
    if copies is not None:
        is_first = np.zeros(len(ranking), bool)
        is_first[np.unique(copies.originals(ranking), return_index=True)[1]] = True
        usable &= is_first
    best = np.flatnonzero(usable)[: miner.top]
    pool = np.flatnonzero(usable & (ranks <= miner.depth))
    pool = pool[~np.isin(pool, best)]
    drawn = rng.choice(pool, size=min(miner.sample, len(pool)), replace=False) if miner.sample else pool[:0]
    positions = np.concatenate([best, np.sort(drawn)])
    return ranking[positions], ranks[positions]


def _training_candidates(recipe: Recipe, rows: np.ndarray, known: Known, search: Search) -> Candidates:
    """The positives of each query, then the negatives of each miner that no earlier miner has chosen.

    Of equal texts, the best ranked is chosen. The list of a query without positives has candidates only.
    """
    miners = recipe.mine.miners
    positives = [known.positives(query) for query in rows]
    excluded = [known.excluded(query) for query in rows]
    most_excluded = max(map(len, excluded), default=0)
    rankings = {}
    for name, miner in miners.items():
        deep_enough = miner.skip + miner.top + most_excluded  # leaves `top` passages after exclusion
        depth = max(deep_enough, miner.depth) if miner.sample else deep_enough
        rankings[name] = search(name, depth)
        while len(known.copies.rows) and _is_short(rankings[name], depth, miner, excluded, known.copies):
            depth *= 2  # copies of other passages do not count, either
            rankings[name] = search(name, depth)
    lists, sources, ranks = [], [], []
    for i, query in enumerate(rows):
        passage_rows = [positives[i]]
        source, rank = [np.zeros(len(positives[i]), np.uint8)], [np.zeros(len(positives[i]), np.int32)]
        for code, (name, miner) in enumerate(miners.items(), start=1):
            ranking = rankings[name][i]
            # seeded by query and miner, so that a sample does not depend on the division into shards
            rng = np.random.default_rng([recipe.seed, code, int(query)])
            if not len(positives[i]):
                miner = miner.model_copy(update={"skip": 0})
            negatives, negative_ranks = choose_negatives(ranking[ranking >= 0], excluded[i], miner, rng, known.copies)
            new = ~np.isin(known.copies.originals(negatives), known.copies.originals(np.concatenate(passage_rows)))
            passage_rows.append(negatives[new])
            source.append(np.full(int(new.sum()), code, np.uint8))
            rank.append(negative_ranks[new])
        lists.append(np.concatenate(passage_rows).tolist())
        sources.append(np.concatenate(source).tolist())
        ranks.append(np.concatenate(rank).tolist())
    return from_lists(rows.tolist(), lists, list(map(len, positives)), ("judgement", *miners), sources, ranks)


def _is_short(ranking: np.ndarray, depth: int, miner: Miner, excluded: list[np.ndarray], copies: Copies) -> bool:
    """Whether a deeper search could give a query more of its `top` negatives."""
    if ranking.shape[1] < depth:  # the whole collection
        return False
    for hits, others in zip(ranking, excluded, strict=True):
        if hits[-1] >= 0:
            usable = hits[miner.skip :]
            if len(np.unique(copies.originals(usable[~np.isin(usable, others)]))) < miner.top:
                return True
    return False


def _rerank_candidates(recipe: Recipe, rows: np.ndarray, known: Known, search: Search) -> Candidates:
    """The first miner's top, without the query's own document.

    As in every shard the positives come first; `rank` keeps the order of the ranking.
    """
    name = next(iter(recipe.mine.miners))
    depth = recipe.mine.rerank_depth
    rankings = search(name, depth + bool(known.own))
    lists, ranks, positives = [], [], []
    for query, ranking in zip(rows, rankings, strict=True):
        hits = ranking[(ranking >= 0) & (ranking != known.own.get(int(query), -1))][:depth]
        positive = np.isin(hits, known.judged(query))
        order = np.argsort(~positive, kind="stable")
        lists.append(hits[order].tolist())
        ranks.append((order + 1).tolist())
        positives.append(int(positive.sum()))
    sources = [[1] * len(hits) for hits in lists]
    return from_lists(rows.tolist(), lists, positives, ("judgement", name), sources, ranks)


def _without_negatives(candidates: Candidates) -> int:
    """Count the lists of positives only."""
    before = np.concatenate([[0], np.cumsum(~candidates.positive)])
    only_positives = before[candidates.offsets[1:]] == before[candidates.offsets[:-1]]
    return int((candidates.has_positive & only_positives).sum())


def _count(totals: dict[str, int], candidates: Candidates) -> None:
    positives = int(candidates.positive.sum())
    totals["queries"] += len(candidates)
    totals["positives"] += positives
    totals["negatives"] += candidates.pairs - positives
    totals["queries_without_candidates"] += int((np.diff(candidates.offsets) == 0).sum())
