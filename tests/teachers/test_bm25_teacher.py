"""The BM25 teacher's index is built once for all workers and launches, and rebuilt if it is damaged."""

from __future__ import annotations

from distill.config import Teacher
from tests.teachers.scoring import scores_of


def test_the_index_is_built_once_and_rebuilt_only_if_it_is_damaged(folder, pairs):
    cfg, index = Teacher(kind="bm25"), folder.index("bm25")

    def files() -> dict[str, tuple[int, int]]:
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in index.glob("*.*")}

    built = files()  # by the miner
    assert "postings.arrow" in built
    scores = scores_of(cfg, folder, pairs)
    assert scores_of(cfg, folder, pairs).tobytes() == scores.tobytes() and files() == built
    (index / "idf.npy").write_bytes((index / "idf.npy").read_bytes()[:-4])
    assert scores_of(cfg, folder, pairs).tobytes() == scores.tobytes()
    assert all(files()[name] != built[name] for name in built)
