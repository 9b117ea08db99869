"""The run's one BM25 index: built in parallel to the same bytes, whole or not at all, and shared by all who search."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from distill.errors import LimitError
from distill.mining.stage import mining_fields
from distill.retrieval import term_counts
from distill.retrieval.analysis import Analyser
from distill.retrieval.bm25 import ENGLISH, build_index, open_index, run_index, save_index
from distill.retrieval.bm25_settings import Bm25Settings
from distill.run.fingerprint import fingerprint
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.candidates import iterate_candidates
from distill.store.texts import TextStore
from teachers.base import open_teacher
from teachers.identity import identity
from teachers.spec import TeacherSpec
from tests.helpers.small_run import QUERIES, small_recipe, write_passages, write_queries, write_run
from tests.helpers.stages import mine
from tests.teachers.scoring import FLOAT32, mined_pairs

ENOUGH = 3 * term_counts.BLOCK + 100  # passages: four blocks


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> TextStore:
    rng = np.random.default_rng(0)
    words = [f"w{number}ing" for number in range(5000)] + ["東京", "the"]
    texts = [" ".join(words[i] for i in row) for row in rng.zipf(1.2, (ENOUGH, 8)) % len(words)]
    return write_passages(tmp_path_factory.mktemp("large") / "passages.arrow", texts)


def files(home) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir()}


def test_the_files_do_not_depend_on_the_number_of_processes_nor_on_forgotten_words(large, tmp_path, monkeypatch):
    save_index(large, tmp_path / "two", workers=2)
    monkeypatch.setattr(term_counts, "_MOST_WORDS", 1000)  # no test can have more words than a process remembers
    save_index(large, tmp_path / "one", workers=1)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_small_collections_are_counted_in_this_process(large, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert len(build_index(large).terms) > 1000


def test_postings_in_several_runs_score_as_in_one(large, monkeypatch):
    queries = ["w1ing w2ing w3ing", "東京 w7ing"]
    expected = build_index(large).search(queries, 50)
    monkeypatch.setattr("distill.retrieval.bm25._RUN", 2)  # 500,000 passages would take too long here
    index = build_index(large)
    assert len(index.postings.runs) == 2
    for ours, theirs in zip(index.search(queries, 50), expected, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_a_killed_worker_is_told(tmp_path):
    passages = write_passages(
        tmp_path / "passages.arrow", ["some words"] * 12 * term_counts.BLOCK
    )  # more than asked for
    counting = term_counts.count_blocks(passages, Analyser(), workers=2)
    next(counting)
    for pid in workers_of(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(LimitError, match=r"counts words for BM25's index ended \(status -9\)"):
        list(counting)


def test_no_worker_outlives_an_abandoned_count(large):
    counting = term_counts.count_blocks(large, Analyser(), workers=2)
    next(counting)
    pids = workers_of(os.getpid())
    assert len(pids) == 2
    counting.close()
    assert not workers_of(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_build_leaves_no_index_and_no_process_and_the_next_one_is_whole(large, tmp_path, number):
    folder = RunFolder(tmp_path / "run")
    folder.data.mkdir(parents=True)
    folder.passages.symlink_to(large.path)
    home = folder.index("bm25")
    code = (
        "import sys; from pathlib import Path; from distill.run import signals; signals.install()\n"
        "from distill.retrieval import term_counts; term_counts._IN_PARALLEL_FROM = 1\n"
        "from distill.retrieval.bm25 import ENGLISH, shared_index; from distill.run.layout import RunFolder\n"
        "shared_index(RunFolder(Path(sys.argv[1])), ENGLISH)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder.root)], stderr=subprocess.DEVNULL)
    while not workers_of(process.pid):
        time.sleep(0.01)
        assert process.poll() is None
    pids = workers_of(process.pid)
    process.send_signal(number)
    process.wait(timeout=30)
    assert not home.exists()
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)
    run = Run(small_recipe(folder.root, data={"source": {"kind": "python-docs"}, "language": "en"}), folder)
    run_index(run)
    save_index(large, tmp_path / "expected", workers=1)
    assert files(home) == files(tmp_path / "expected")
    assert [path.name for path in home.parent.iterdir() if path.name.endswith(".tmp")] == []


def workers_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = [int(child) for child in file.read().split()]
    return [child for child in children if b"count_worker" in command_of(child)]


def command_of(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    return b"count_worker" in command_of(pid)


def test_the_index_is_built_once_for_miners_teachers_and_evaluation(tmp_path):
    folder = write_run(tmp_path)
    mine(small_recipe(tmp_path), folder)
    home = folder.index("bm25")
    built = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in home.iterdir()}
    run = Run(small_recipe(tmp_path), folder)
    run_index(run)
    spec = TeacherSpec.of(run, "bm25")
    open_teacher(spec, FLOAT32).score(mined_pairs(folder))
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in home.iterdir()} == built


def test_parameters_of_the_recipe_reach_every_user_of_bm25(tmp_path):
    folder = write_run(tmp_path)
    recipe = small_recipe(
        tmp_path,
        data={"source": {"kind": "python-docs"}, "language": "none"},
        bm25={"k1": 0.4, "b": 1.0, "stemming": False},
        mine={"rerank_depth": 20},
    )
    settings = Bm25Settings("none", False, 0.4, 1.0)
    expected = build_index(TextStore.open(folder.passages), settings)
    mine(recipe, folder)
    ((_, candidates),) = iterate_candidates(folder.candidates("test"))
    rows, _ = expected.search(QUERIES["test"], 20)
    for i in range(len(candidates)):
        span = slice(*candidates.offsets[i : i + 2])
        order = np.argsort(candidates.rank[span])
        found = rows[candidates.query[i]]
        assert candidates.passages[span][order].tolist() == found[found >= 0].tolist()
    run = Run(recipe, folder)
    assert run_index(run).statistics.settings == settings
    assert open_index(TextStore.open(folder.passages), folder.index("bm25"), ENGLISH) is None  # one home, one index
    pairs = mined_pairs(folder)
    scores = open_teacher(TeacherSpec.of(run, "bm25"), FLOAT32).score(pairs)
    texts = [QUERIES["test"][row] for row in pairs.query_rows]
    ours = np.concatenate(expected.score_pairs(texts, [np.array([row]) for row in pairs.passage_rows]))
    assert scores.tobytes() == ours.tobytes()


@pytest.mark.parametrize("change", [{"k1": 1.2}, {"b": 0.5}, {"stemming": False}, {"language": "german"}])
def test_every_output_that_depends_on_bm25_has_another_fingerprint(tmp_path, change):
    folder = write_run(tmp_path)

    def prints(**fields) -> list[str]:
        language = fields.pop("language", "english")
        recipe = small_recipe(tmp_path, data={"source": {"kind": "python-docs"}, "language": language}, bm25=fields)
        run = Run(recipe, folder)
        return [
            *(fingerprint(mining_fields(run, split)) for split in ("train", "test")),
            fingerprint(identity(TeacherSpec.of(run, "bm25"))),
        ]

    before, after = prints(), prints(**change)
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert prints(language="auto") == before  # the passages are English


def test_a_split_in_which_bm25_finds_nothing_is_told_with_the_remedy(tmp_path, caplog):
    folder = write_run(tmp_path)
    write_queries(folder.queries("test"), ["katze", "aktien", "regen", "hafen"])
    mine(small_recipe(tmp_path), folder)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("BM25 has no candidate for any of the 4 test queries" in message for message in told)
    assert any("data.language (english here)" in message and "dense or splade miner" in message for message in told)
    assert not any("train queries" in message and "BM25" in message for message in told)
