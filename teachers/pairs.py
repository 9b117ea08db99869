"""Query-passage inputs built from token ids, exactly as the model's own tokenizer builds them from texts.

The layout (special tokens, type ids) is read off the tokenizer's output for one probe pair; truncation follows the
`longest_first` rule of the `tokenizers` library. Fast tokenizers themselves tokenise the two texts of a pair
separately and join them, so the result is the same, and each text is tokenised once instead of once per pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from distill.errors import TeacherError
from distill.store.tokens import RaggedTokens, ranges

_PROBES = ("first words", "other text")


@dataclass(frozen=True)
class PairLayout:
    """The special tokens around two texts, `before A between B after`, and the type id of each token."""

    before: np.ndarray  # int64 ids
    between: np.ndarray
    after: np.ndarray
    type_ids: tuple[np.ndarray, ...] | None  # of before, A (one id), between, B (one), after; None: it takes none
    pad_id: int
    pad_type_id: int
    pad_left: bool
    truncate_left: bool

    @property
    def specials(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


def pair_layout(tokenizer) -> PairLayout:
    """Read the layout off the tokenizer. Raises `TeacherError` if it does not join pairs with a fixed template."""
    first, second = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _PROBES)
    encoded = tokenizer(*_PROBES)
    ids = list(encoded["input_ids"])
    start = _find(ids, first, 0)
    stop = start + len(first)
    other = _find(ids, second, stop) if start >= 0 else -1
    if start < 0 or other < 0:
        raise TeacherError(
            f"the tokenizer ({type(tokenizer).__name__}) does not join two texts with a fixed template, "
            "so it cannot be used for a cross-encoder"
        )
    bounds = [0, start, stop, other, other + len(second), len(ids)]
    type_ids = None
    if "token_type_ids" in encoded:
        parts = [np.array(encoded["token_type_ids"][a:b], np.int64) for a, b in pairwise(bounds)]
        parts[1], parts[3] = np.unique(parts[1]), np.unique(parts[3])
        if len(parts[1]) > 1 or len(parts[3]) > 1:
            raise TeacherError(f"the tokenizer ({type(tokenizer).__name__}) varies type ids within one text")
        type_ids = tuple(parts)
    return PairLayout(
        before=np.array(ids[:start], np.int64),
        between=np.array(ids[stop:other], np.int64),
        after=np.array(ids[other + len(second) :], np.int64),
        type_ids=type_ids,
        pad_id=tokenizer.pad_token_id or 0,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_left=tokenizer.padding_side == "left",
        truncate_left=tokenizer.truncation_side == "left",
    )


def truncated_lengths(first: np.ndarray, second: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths after `longest_first` truncation: the longer text is cut first, then both to half of `budget`.

    first, second: lengths, int [n]; returns two int64 [n]. The rule is that of `tokenizers::truncate_encodings`.
    """
    first, second = np.asarray(first, np.int64), np.asarray(second, np.int64)
    swap = first > second
    short, long = np.where(swap, second, first), np.where(swap, first, second)
    long_cut = np.where(short > budget, short, np.maximum(short, budget - short))
    halve = short + long_cut > budget
    short_kept = np.where(halve, budget // 2, short)
    long_kept = np.where(halve, budget // 2 + budget % 2, long_cut)
    fits = first + second <= budget
    long_kept = np.where(fits, long, long_kept)
    return np.where(swap, long_kept, short_kept), np.where(swap, short_kept, long_kept)


def pair_lengths(layout: PairLayout, first: np.ndarray, second: np.ndarray, max_length: int) -> np.ndarray:
    """Number of tokens of each assembled pair, special tokens included, int64 [n]."""
    lengths = truncated_lengths(first, second, max_length - layout.specials)
    return lengths[0] + lengths[1] + layout.specials


@dataclass(frozen=True)
class JoinedPairs:
    """The tokens of n pairs, one pair after the other: int64 [tokens] each, and the number of each pair's."""

    ids: np.ndarray
    type_ids: np.ndarray | None
    lengths: np.ndarray  # int64 [n]

    def padded(self, layout: PairLayout) -> dict[str, np.ndarray]:
        """Model inputs, int64 [n, longest pair]: `input_ids`, `attention_mask` and, if there are any, type ids."""
        width = int(self.lengths.max(initial=0))
        column = np.arange(width)
        # row by row, as the tokens follow each other
        inside = column >= width - self.lengths[:, None] if layout.pad_left else column < self.lengths[:, None]
        inputs = {"input_ids": np.full(inside.shape, layout.pad_id, np.int64)}
        inputs["input_ids"][inside] = self.ids
        inputs["attention_mask"] = inside.astype(np.int64)
        if self.type_ids is not None:
            inputs["token_type_ids"] = np.full(inside.shape, layout.pad_type_id, np.int64)
            inputs["token_type_ids"][inside] = self.type_ids
        return inputs


def join_pairs(layout: PairLayout, first: RaggedTokens, second: RaggedTokens, max_length: int) -> JoinedPairs:
    """Join the texts of n pairs, token ids without special tokens, cut to `max_length` tokens together."""
    kept = truncated_lengths(first.lengths, second.lengths, max_length - layout.specials)
    lengths = kept[0] + kept[1] + layout.specials
    starts = np.cumsum(lengths) - lengths
    ids = np.empty(int(lengths.sum()), np.int64)
    types = None if layout.type_ids is None else np.empty_like(ids)
    place = starts

    def put(values: np.ndarray, at: np.ndarray, part: int) -> None:
        ids[at] = values
        if types is not None and layout.type_ids is not None and at.size:
            types[at] = layout.type_ids[part]

    for number, (special, text) in enumerate(((layout.before, first), (layout.between, second))):
        put(special, place[:, None] + np.arange(len(special)), 2 * number)
        place, keep = place + len(special), kept[number]
        skipped = text.lengths - keep if layout.truncate_left else 0
        put(text.ids[ranges(text.starts + skipped, keep)], ranges(place, keep), 2 * number + 1)
        place = place + keep
    put(layout.after, place[:, None] + np.arange(len(layout.after)), 4)
    return JoinedPairs(ids, types, lengths)


def _find(ids: list[int], part: list[int], start: int) -> int:
    for at in range(start, len(ids) - len(part) + 1):
        if ids[at : at + len(part)] == part:
            return at
    return -1
