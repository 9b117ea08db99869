"""The Seismic index of a SPLADE miner's chunks: built once, saved beside them, loaded by all that search.

Its recall is measured against the exact search of the same chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from distill.config import Seismic
from distill.retrieval.chunks import Chunks
from distill.retrieval.indexes import SpladeIndex
from distill.retrieval.postings import Postings
from distill.retrieval.seismic import (
    build_from_blocks,
    build_settings,
    load_seismic,
    save_seismic,
    search_seismic,
)
from distill.run.files import locked
from distill.run.fingerprint import fingerprint
from distill.run.seals import is_damaged, take_away

log = logging.getLogger(__name__)


class SeismicIndex:
    """An approximate index of the collection, in memory. One that is missing or damaged is built from the chunks."""

    def __init__(self, chunks: Chunks, cfg: Seismic):
        self._chunks, self._cfg = chunks, cfg
        self._index = _open(chunks, cfg)

    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `SpladeIndex.search`, approximately, and with Seismic's rounded scores. `threads` None: all."""
        return search_seismic(self._index, self._chunks.model.queries(queries), k, self._cfg, threads or 0)


def build_for_others(chunks: Chunks, cfg: Seismic) -> None:
    """Save the index for the processes that will search it, unless it is there and undamaged."""
    _open(chunks, cfg)


def recall(chunks: Chunks, cfg: Seismic, queries: Sequence[str], ks: Iterable[int]) -> dict[int, float]:
    """Measure, for each k, which share of exact search's best k passages a Seismic search for k finds.

    The mean over the queries for which exact search finds a passage; nan if it finds none for any. With fewer than k
    passages of a positive score, the share is of those.
    """
    wanted = sorted(set(ks))
    exact, _ = SpladeIndex(chunks).search(queries, max(wanted, default=0))
    approximate = SeismicIndex(chunks, cfg)
    return {k: _recall(approximate.search(queries, k)[0], exact[:, :k]) for k in wanted}


def _recall(rows: np.ndarray, exact: np.ndarray) -> float:
    shares = [
        np.isin(expected[expected >= 0], hits).mean()
        for hits, expected in zip(rows, exact, strict=True)
        if (expected >= 0).any()
    ]
    return float(np.mean(shares)) if shares else float("nan")


def _open(chunks: Chunks, cfg: Seismic) -> Any:
    runs = [Postings.of_batch(batch) for batch in chunks.open()]
    vocabulary = max((run.vocabulary for run in runs), default=0)
    key = fingerprint({"library": version("pyseismic-lsr"), **build_settings(cfg)})
    path = chunks.home / f"seismic-{key}"
    with locked(path):
        if is_damaged(path):
            take_away(path)
        if path.exists():
            return load_seismic(path, vocabulary)
        log.info("%s: Seismic's index of %d passages is built", path, chunks.collection_size)
        index = build_from_blocks((block for run in runs for block in run.blocks()), vocabulary, cfg)
        save_seismic(index, path)
        return index
