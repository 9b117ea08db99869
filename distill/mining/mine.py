"""The mine stage: candidate shards for training, and what the teachers rerank on the other splits.

A training query gets its positives, then each miner's `top` best and a random `sample` of its best `depth`, without
duplicates and without known positives. A development or test query gets the first miner's top, nothing added or
removed, so that a reranker is measured on what a first stage would hand it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill.config import Miner, Recipe
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
from distill.errors import DataError
from distill.mining.bm25 import build_index
from distill.progress import progress

log = logging.getLogger(__name__)


class Searcher(Protocol):
    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows int64 [n, <= k], best first, -1 where nothing more was found; scores float32 of the same shape."""


def mine(recipe: Recipe, folder: RunFolder) -> Manifest:
    """Write the candidates of every split that has judgements; returns the training split's manifest.

    Done work is left alone: whole splits by their manifest, single shards by the fingerprint in them. Raises
    `FingerprintError` where a folder's candidates came from other inputs, `DataError` without training queries.
    """
    train = folder.judgements("train")
    if not train.exists() or not len(RowReader(train)):
        raise DataError("there are no training queries to mine for: the source has no judgements of its train split "
                        "(data.source.splits); data.generate makes queries from the passages", path=train)
    searchers: dict[str, Searcher] = {}
    for split in SPLITS:
        if folder.judgements(split).exists():
            mine_split(recipe, folder, split, searchers)
    return require_manifest(folder.candidates("train"), "mine")


def mining_fields(recipe: Recipe, folder: RunFolder, split: str) -> dict[str, Any]:
    """What the candidates of a split depend on: the hashed part of their manifest."""
    miners = {name: miner.model_dump(mode="json") | {"model": model_field(recipe, miner.model)}
              for name, miner in recipe.mine.miners.items()}
    fields: dict[str, Any] = {"stage": "mine", "format": FORMAT, "split": split,
                              "data": require_manifest(folder.data, "import").fingerprint,
                              "shard_queries": recipe.mine.shard_queries}
    if split == "train":
        return {**fields, "miners": miners, "order": list(miners), "seed": recipe.seed}
    first = next(iter(miners))
    used = {key: miners[first][key] for key in ("kind", "model", "revision")}
    return {**fields, "miner": first, **used, "rerank_depth": recipe.mine.rerank_depth}


def mine_split(recipe: Recipe, folder: RunFolder, split: str, searchers: dict[str, Searcher]) -> Manifest:
    """Candidates of one split; `searchers` is filled as miners are needed, and shared between splits."""
    path = folder.candidates(split)
    done = read_manifest(path)
    if are_imported(path):
        return done
    fields = mining_fields(recipe, folder, split)
    if done is not None:
        check_same(path, done.fields, fields)
        return done
    fingerprint = fingerprint_of(fields)
    judgements = load_judgements(folder, split)
    queries, passages = TextStore.open(folder.queries(split)), TextStore.open(folder.passages)
    chosen = np.array([q for q in judgements.queries if len(judgements.positives(q))], dtype=np.int64)
    shards: list[Shard] = []
    totals = {"queries": 0, "positives": 0, "negatives": 0, "queries_without_candidates": 0}
    miners = recipe.mine.miners if split == "train" else dict(list(recipe.mine.miners.items())[:1])
    with progress(f"mine {split}", len(chosen), "queries") as advance:
        for index, start in enumerate(range(0, len(chosen), recipe.mine.shard_queries)):
            rows = chosen[start : start + recipe.mine.shard_queries]
            target = path / shard_name(index)
            shard = _finished(target, fingerprint)
            if shard is None:
                for name, miner in miners.items():
                    if name not in searchers:
                        searchers[name] = open_searcher(miner, passages, folder)
                texts = queries.texts(rows)
                if split == "train":
                    candidates = _training_candidates(recipe, rows, texts, judgements, passages, searchers)
                else:
                    candidates = _rerank_candidates(recipe, rows, texts, judgements, passages, searchers)
                target.unlink(missing_ok=True)  # left by a run of another meaning
                # None: another machine was first; its copy counts, since a teacher may be scoring it already
                shard = write_candidates(target, candidates, fingerprint, exclusive=True) or _finished(
                    target, fingerprint)
            _count(totals, read_candidates(target))
            shards.append(shard)
            advance(len(rows), target.name)
    manifest = Manifest(fields, tuple(shards), totals)
    write_manifest(path, manifest)
    log.info("%s: %d queries, %d positives, %d negatives%s", path, totals["queries"], totals["positives"],
             totals["negatives"], f"; {totals['queries_without_candidates']} queries found nothing"
             if totals["queries_without_candidates"] else "")
    return manifest


def open_searcher(miner: Miner, passages: TextStore, folder: RunFolder) -> Searcher:
    """The index that a miner searches, built over the collection."""
    if miner.kind == "bm25":
        return build_index(passages)
    if miner.kind == "dense":
        from distill.mining.dense import DenseIndex

        return DenseIndex(miner.model, miner.revision, passages, folder.candidates("train"))
    from distill.mining.splade import SpladeIndex

    return SpladeIndex(miner.model, miner.revision, passages, folder)


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


def _training_candidates(recipe: Recipe, rows: np.ndarray, texts: list[str], judgements: Judgements,
                         passages: TextStore, searchers: dict[str, Searcher]) -> Candidates:
    miners = recipe.mine.miners
    positives = [_positives(judgements, query) for query in rows]
    excluded = [_with_origins(passages, found) for found in positives]
    widest = max((len(found) for found in excluded), default=0)
    rankings = {}
    for name, miner in miners.items():
        deep_enough = miner.skip + miner.top + widest  # so that excluded passages leave `top` others
        k = max(deep_enough, miner.depth) if miner.sample else deep_enough
        rankings[name], _ = searchers[name].search(texts, k)
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


def _rerank_candidates(recipe: Recipe, rows: np.ndarray, texts: list[str], judgements: Judgements,
                       passages: TextStore, searchers: dict[str, Searcher]) -> Candidates:
    """The first miner's top and nothing else; as in every shard the positives come first, `rank` keeps the order."""
    name = next(iter(recipe.mine.miners))
    ranking, _ = searchers[name].search(texts, recipe.mine.rerank_depth)
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


def _finished(path: Path, fingerprint: str) -> Shard | None:
    """A shard left by an interrupted run of the same meaning."""
    if not path.exists():
        return None
    reader = RowReader(path)
    if reader.metadata.get("fingerprint") != fingerprint:
        return None
    return Shard(path.name, len(reader), path.stat().st_size, xxh128_file(path))


def _count(totals: dict[str, int], candidates: Candidates) -> None:
    positives = int(candidates.positive.sum())
    totals["queries"] += len(candidates)
    totals["positives"] += positives
    totals["negatives"] += candidates.pairs - positives
    totals["queries_without_candidates"] += int((np.diff(candidates.offsets) == 0).sum())
