"""What is known of a split's queries and passages, so that nothing relevant becomes a negative."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.store.identity import Copies
from distill.store.judgements import Judgements
from distill.store.texts import TextStore


@dataclass(frozen=True)
class Known:
    """What is known of a split's queries and passages: judgements, copies, own documents, and equal queries."""

    judgements: Judgements
    passages: TextStore
    copies: Copies
    own: dict[int, int]  # query row -> passage row
    equal: dict[int, np.ndarray]  # query row -> the positives of all queries with its text

    def positives(self, query: int) -> np.ndarray:
        """Positives of a query, by descending grade, then by row."""
        rows, grades = self.judgements.of(query)
        rows, grades = rows[grades > 0], grades[grades > 0]
        return rows[np.lexsort((rows, -grades))]

    def judged(self, query: int) -> np.ndarray:
        """The positives, and the passages of the collection that training variants among them were cut from."""
        return self._with_origins(self.positives(query))

    def excluded(self, query: int) -> np.ndarray:
        """What can be no negative: the positives, those of queries with the same text, all copies of their texts, and
        the query's own document."""
        query = int(query)
        own = [self.own[query]] if query in self.own else []
        positives = self._with_origins(self.equal.get(query, self.positives(query)))
        return self.copies.with_copies(np.concatenate([positives, np.array(own, np.int64)]))

    def _with_origins(self, rows: np.ndarray) -> np.ndarray:
        origins = self.passages.origin(rows)
        return np.concatenate([rows, origins[origins >= 0]])
