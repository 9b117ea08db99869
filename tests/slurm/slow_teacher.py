"""A teacher whose scores anyone can work out, and that takes its time: there is a middle to interrupt it in."""

from __future__ import annotations

import time


class SlowTeacher:
    """Scores a pair by the lengths of its texts, `seconds` a shard."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def score(self, queries: list[str], passages: list[str]) -> list[float]:
        time.sleep(self._seconds)
        return [expected(query, passage) for query, passage in zip(queries, passages, strict=True)]


def expected(query: str, passage: str) -> float:
    return len(passage) - len(query) / 8
