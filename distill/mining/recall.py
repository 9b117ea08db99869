"""The recall of approximate miners, measured on a sample of the queries that they have searched for."""

from __future__ import annotations

import logging
import math

import numpy as np

from distill.config import Miner
from distill.retrieval.approximate import recall
from distill.retrieval.chunks import Chunks
from distill.run.run import Run
from distill.store.texts import TextStore

log = logging.getLogger(__name__)

SAMPLE = 200  # queries of a split
_USUAL = 100  # passages, besides the number that mining asks for
_LOW = 0.9


def recall_counts(run: Run, split: str, queries: np.ndarray, miners: dict[str, Miner]) -> dict[str, float]:
    """Return the recall of each Seismic miner of a split against exact search, for the manifest of its candidates.

    `queries`: rows of the split's queries; a sample of them is drawn by the recipe's seed. The keys are
    `<miner>.recall@<k>`, for 100 and for the number of ranks that mining reads (`Miner.ranks`, `mine.rerank_depth`).
    """
    approximate = {name: miner for name, miner in miners.items() if miner.search == "seismic"}
    counts: dict[str, float] = {}
    if not approximate or not len(queries):
        return counts
    rng = np.random.default_rng(run.recipe.seed)
    sample = np.sort(rng.choice(queries, min(SAMPLE, len(queries)), replace=False))
    texts = TextStore.open(run.folder.queries(split)).texts(sample)
    passages = TextStore.open(run.folder.passages)
    for name, miner in approximate.items():
        asked = miner.ranks if split == "train" else run.recipe.mine.rerank_depth
        chunks = Chunks(miner, passages, run.folder, run.recipe.mine)
        shares = recall(chunks, miner.seismic, texts, {asked or _USUAL, _USUAL})
        counts |= {f"{name}.recall@{k}": round(share, 4) for k, share in shares.items() if not math.isnan(share)}
        told = ", ".join(f"{share:.1%} of the best {k}" for k, share in shares.items())
        log.info("miner %s: Seismic finds %s of exact search (%d %s queries)", name, told, len(texts), split)
        if shares[asked or _USUAL] < _LOW:
            log.warning(
                "miner %s: Seismic misses %.0f%% of what exact search finds for %s queries; raise seismic.query_cut "
                "and seismic.heap_factor",
                name,
                100 * (1 - shares[asked or _USUAL]),
                split,
            )
    return counts
