"""The data of an evaluation: searchable passages, judged queries and grades.

Judgements of passage variants count for the collection rows that the variants were cut from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from distill.errors import RecipeError
from distill.run.layout import RunFolder
from distill.store.identity import load_own_documents
from distill.store.judgements import load_judgements
from distill.store.texts import TextStore


@dataclass(frozen=True)
class Collection:
    """Stores and judgements of a split; made by `open_collection`."""

    passages: TextStore
    queries: TextStore
    split: str
    grades: dict[int, dict[int, int]]  # query row -> passage row -> grade; only queries with a positive
    own: dict[int, int]  # query row -> the passage that is the query itself, left out of its rankings
    excluded: dict[int, list[int]] = field(default_factory=dict)  # query row -> further passages that are left out

    @property
    def query_rows(self) -> np.ndarray:
        return np.fromiter(self.grades, np.int64, len(self.grades))

    def search_depth(self, depth: int) -> int:
        """How deep to search for rankings of `depth` passages."""
        return depth + bool(self.own) + max(map(len, self.excluded.values()), default=0)

    def rankings(self, rows: np.ndarray, depth: int) -> dict[int, np.ndarray]:
        """Query row -> its best `depth` passages, without the query's own document and the excluded ones.

        `rows`: passage rows int64 [judged queries, depth], best first; -1 after the last hit.
        """
        rankings = {}
        for query, hits in zip(self.grades, rows, strict=True):
            ranked = (hits >= 0) & (hits != self.own.get(query, -1))
            if query in self.excluded:
                ranked &= ~np.isin(hits, self.excluded[query])
            rankings[query] = hits[ranked][:depth]
        return rankings

    def excluding(self, grade: int) -> Collection:
        """Leave the passages that are judged `grade` or lower out of the rankings; those judgements do not count."""
        excluded = {
            query: [passage for passage, judged in graded.items() if judged <= grade]
            for query, graded in self.grades.items()
        }
        kept = {
            query: {passage: judged for passage, judged in graded.items() if judged > grade}
            for query, graded in self.grades.items()
        }
        return replace(self, grades=kept, excluded={query: rows for query, rows in excluded.items() if rows})


def open_collection(folder: RunFolder, split: str) -> Collection:
    """Open the stores and judgements of a split. Raises `RecipeError` if it has no judged query."""
    grades: dict[int, dict[int, int]] = {}
    if folder.judgements(split).exists():
        judgements = load_judgements(folder, split)
        passages = TextStore.open(folder.passages)
        origins = passages.origin(judgements.passages)
        rows = np.where(origins >= 0, origins, judgements.passages)
        for i, query in enumerate(judgements.queries.tolist()):
            span = slice(judgements.offsets[i], judgements.offsets[i + 1])
            graded = dict(zip(rows[span].tolist(), judgements.grades[span].tolist(), strict=True))
            if any(grade > 0 for grade in graded.values()):
                grades[query] = graded
    if not grades:
        raise RecipeError(f"evaluate.split is {split!r}, but the data in {folder.data} has no judged {split} queries")
    own = load_own_documents(folder, split)
    return Collection(passages, TextStore.open(folder.queries(split)), split, grades, own)
