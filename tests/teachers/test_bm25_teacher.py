"""The index of the BM25 teacher is made once for all workers and launches, and makes no difference to the scores."""

from __future__ import annotations

import numpy as np

from distill.config import Teacher
from distill.mining.bm25 import build_index
from teachers import bm25
from teachers.base import open_teacher, prepare


def test_bm25_indexes_the_collection_once_and_again_where_the_index_is_damaged(folder, pairs, monkeypatch):
    built = []
    monkeypatch.setattr(
        bm25, "build_index", lambda store, **options: (built.append(store), build_index(store, **options))[1]
    )
    cfg, index = Teacher(kind="bm25"), folder.scores("t", "index")

    def score() -> np.ndarray:
        prepare("t", cfg, folder, ["test"])
        return open_teacher("t", cfg, folder).score(pairs)

    scores = score()
    assert score().tobytes() == scores.tobytes() and len(built) == 1
    (index / "indices.npy").write_bytes((index / "indices.npy").read_bytes()[:-4])
    assert score().tobytes() == scores.tobytes() and len(built) == 2
