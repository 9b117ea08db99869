"""Number of tokens of texts as a model reads them: of all texts, or of a seeded sample of a large store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.run.layout import SPLITS, RunFolder
from distill.run.truncation import ACCEPTED, Truncation
from distill.store.judgements import load_judgements
from distill.store.texts import TextStore
from distill.store.tokens import token_ids

Side = Literal["query", "passage"]
SAMPLE = 5000  # texts; a few seconds with a fast tokenizer
_AT_ONCE = 512  # texts per call of the tokenizer


@dataclass(frozen=True)
class TokenCounts:
    """Counts of some texts, int64 [n], special tokens and prefix included. `total`: number of texts they stand for."""

    counts: np.ndarray
    total: int

    @property
    def basis(self) -> str:
        """What was counted, in words."""
        n = len(self.counts)
        return f"all {n:,}" if n == self.total else f"a sample of {n:,} of {self.total:,}"

    def truncation(self, reader: str, texts: str, field: str | None, max_length: int, limit: int | None) -> Truncation:
        """State what a maximum length cuts; the arguments are those of `Truncation`."""
        sufficient = rounded_up(self.percentile(1 - ACCEPTED))
        return Truncation(reader, texts, field, max_length, self.cut(max_length), sufficient, limit, self.basis)

    def percentile(self, share: float) -> int:
        """Smallest number of tokens that at least `share` of the texts do not exceed; 0 without texts."""
        if not len(self.counts):
            return 0
        return int(np.quantile(self.counts, share, method="inverted_cdf"))

    def cut(self, max_length: int) -> float:
        """Share of the texts with more tokens."""
        return float(np.mean(self.counts > max_length)) if len(self.counts) else 0.0


def rounded_up(tokens: int) -> int:
    """Round a length up to a multiple of 8, which suits a GPU's matrix products."""
    return -(-tokens // 8) * 8


def sample_rows(size: int, seed: int) -> np.ndarray:
    """All rows of a store of `size` texts, or `SAMPLE` of them drawn at random: int64, ascending."""
    if size <= SAMPLE:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).choice(size, SAMPLE, replace=False))


def count_tokens(store: TextStore, tokenizer: Any, seed: int, *, prefix: str = "", special: int = 0) -> TokenCounts:
    """Count the tokens of a store's texts, of passages those of the collection.

    `prefix`: put before each text; `special`: number of special tokens added to each.
    """
    rows = sample_rows(store.collection_size, seed)
    return TokenCounts(text_lengths(store, rows, tokenizer, prefix) + special, store.collection_size)


def text_lengths(store: TextStore, rows: np.ndarray, tokenizer: Any, prefix: str = "") -> np.ndarray:
    """Number of tokens of the texts in `rows`, without special tokens: int64 [n]."""
    counts = np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), _AT_ONCE):
        texts = [prefix + text for text in store.texts(rows[start : start + _AT_ONCE])]
        counts[start : start + len(texts)] = [len(ids) for ids in token_ids(tokenizer, texts)]
    return counts


def count_sides(
    folder: RunFolder, tokenizer: Any, seed: int, prompts: Mapping[str, str], special: Mapping[str, int]
) -> dict[Side, dict[str, TokenCounts]]:
    """Count the tokens of texts that a model reads one by one.

    Returns side -> kind of texts, such as "train queries" -> counts. `prompts` and `special` are given by side.
    """

    def count(side: str, path: Path) -> TokenCounts:
        return count_tokens(TextStore.open(path), tokenizer, seed, prefix=prompts[side], special=special[side])

    splits = [split for split in SPLITS if folder.queries(split).exists()]
    return {
        "query": {f"{split} queries": count("query", folder.queries(split)) for split in splits},
        "passage": {"passages": count("passage", folder.passages)},
    }


def sample_positives(folder: RunFolder, seed: int) -> tuple[str, np.ndarray, np.ndarray, int]:
    """Draw judged pairs: the split, query rows and passage rows int64 [n], and the number of pairs they stand for.

    The pairs are positives of the first split that has any.
    """
    for split in SPLITS:
        if folder.judgements(split).exists():
            judged = load_judgements(folder, split)
            positive = np.flatnonzero(judged.grades > 0)
            if len(positive):
                rows = positive[sample_rows(len(positive), seed)]
                return (
                    split,
                    np.repeat(judged.queries, np.diff(judged.offsets))[rows],
                    judged.passages[rows],
                    len(positive),
                )
    return SPLITS[0], np.empty(0, np.int64), np.empty(0, np.int64), 0
