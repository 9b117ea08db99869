"""What a split is evaluated on: the searchable passages, the judged queries, and the grades.

Judgements of passage variants stand at the collection rows that the variants were cut from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.data.judgements import load_judgements
from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.errors import RecipeError


@dataclass(frozen=True)
class Collection:
    """The stores and judgements of a split; `open_collection` opens one."""

    passages: TextStore
    queries: TextStore
    split: str
    grades: dict[int, dict[int, int]]  # query row -> passage row -> grade; queries with a positive only

    @property
    def query_rows(self) -> np.ndarray:
        return np.fromiter(self.grades, np.int64, len(self.grades))


def open_collection(folder: RunFolder, split: str) -> Collection:
    """The stores and judgements of a split. Raises `RecipeError` where it has no judged query."""
    grades: dict[int, dict[int, int]] = {}
    if folder.judgements(split).exists():
        judgements = load_judgements(folder, split)
        passages = TextStore.open(folder.passages)
        origins = passages.origin(judgements.passages)
        rows = np.where(origins >= 0, origins, judgements.passages)
        for i, query in enumerate(judgements.queries.tolist()):
            at = slice(judgements.offsets[i], judgements.offsets[i + 1])
            graded = dict(zip(rows[at].tolist(), judgements.grades[at].tolist(), strict=True))
            if any(grade > 0 for grade in graded.values()):
                grades[query] = graded
    if not grades:
        raise RecipeError(f"evaluate.split is {split!r}, but the data in {folder.data} has no judged {split} queries")
    return Collection(passages, TextStore.open(folder.queries(split)), split, grades)
