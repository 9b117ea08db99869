"""A slow teacher with known scores, for tests that interrupt a job."""

from __future__ import annotations

import time


class SlowTeacher:
    """Scores a pair by the lengths of its texts, taking `seconds` per shard."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def score(self, queries: list[str], passages: list[str]) -> list[float]:
        time.sleep(self._seconds)
        return [expected(query, passage) for query, passage in zip(queries, passages, strict=True)]


def expected(query: str, passage: str) -> float:
    return len(passage) - len(query) / 8
