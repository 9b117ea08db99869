"""Volumes: sizes of the data, and the pairs, shards, steps and tokens that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.config import Recipe, max_length
from distill.planning.steps import number_of_steps

CHARACTERS_PER_TOKEN = 4.5  # English text, WordPiece
BYTES_PER_PAIR = 16  # candidates: row 8, rank 4, flags 2; and list offsets
BYTES_PER_SCORE = 4
ADAM_BYTES_PER_PARAMETER = 12  # float32 weights and two moments


@dataclass(frozen=True)
class Volumes:
    """Sizes of the data; lengths are means."""

    origin: str  # source of the sizes, in words
    passages: int
    queries: dict[str, int]
    passage_tokens: float
    query_tokens: float

    @property
    def texts(self) -> int:
        """Number of passages and queries."""
        return self.passages + sum(self.queries.values())


@dataclass(frozen=True)
class Counts:
    """Work of the stages. Pairs are an upper bound: two miners may find the same passage."""

    negatives: int  # mined per training query
    train_pairs: int
    pairs: int  # scored by each teacher
    shards: int
    text_tokens: float  # of the collection and all queries
    pair_tokens: dict[str, float]  # per pair and ranker, with three special tokens, cut to its maximum length
    teach_pairs: dict[str, int]  # per fine-tuned teacher and epoch, over all folds
    steps: int  # 0 without a student
    step_tokens: float

    @classmethod
    def of(cls, recipe: Recipe, size: Volumes) -> Counts:
        """Return the counts of a recipe on data of this size."""
        queries, train, student = size.queries["train"], recipe.train, recipe.student
        mined = size.queries if student is not None else {"train": queries}
        negatives = sum(miner.top + miner.sample for miner in recipe.mine.miners.values())
        rerank_queries = sum(mined.values()) - queries if recipe.score.rerank else 0
        pair_tokens = {
            name: min(size.query_tokens + size.passage_tokens + 3, teacher.max_length)
            for name, teacher in recipe.teachers.items()
            if teacher.reads_pairs
        }
        teach_pairs = {
            name: queries * max(cfg.folds - 1, 1) * (1 + cfg.negatives + cfg.random_negatives)
            for name, teacher in recipe.teachers.items()
            if (cfg := teacher.fine_tune)
        }
        passage_tokens = 0.0
        if student is not None:
            passage_tokens = min(size.passage_tokens + 2, max_length(student, "passage"))
        return cls(
            negatives,
            queries * (1 + negatives),
            queries * (1 + negatives) + rerank_queries * recipe.mine.rerank_depth,
            sum(math.ceil(count / recipe.mine.shard_queries) for count in mined.values()),
            size.passages * size.passage_tokens + sum(size.queries.values()) * size.query_tokens,
            pair_tokens,
            teach_pairs,
            number_of_steps(train, queries) if student is not None else 0,
            train.batch_size * (size.query_tokens + 2 + (1 + train.negatives) * passage_tokens),
        )


def in_bytes(size: float) -> str:
    """Format a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
