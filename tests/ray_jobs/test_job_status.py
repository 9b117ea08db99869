"""`distill status` on jobs that run, are finished, stopped with an error, or were killed: real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_job import committed, recipe_for, write_job

from distill.errors import TeacherError
from distill.recipe_file import dump_recipe
from ray_jobs.job_status import job_status
from ray_jobs.score import score, score_local

HERE = Path(__file__).parent
SPLITS = ("train", "test")


def distill(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "distill.cli", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(HERE), "COLUMNS": "120"},
    ).stdout


def steady(tmp_path: Path, **options) -> dict:
    return {
        "steady": {
            "kind": "custom",
            "cls": "job_workers:Steady",
            "options": {"log": str(tmp_path / "calls.log"), **options},
        }
    }


def test_before_the_first_launch_there_is_nothing_to_say(tmp_path):
    assert job_status(write_job(tmp_path / "run"), ("steady",), SPLITS) is None


def test_a_finished_job_adds_up_to_what_it_returned(cluster, tmp_path, tiny_classifier):
    folder = write_job(tmp_path / "run")
    ranker = {"kind": "cross-encoder", "model": str(tiny_classifier), "max_length": 48}
    teachers = {"ranker": ranker, **steady(tmp_path)}
    start = time.monotonic()
    counters = score(recipe_for(folder, teachers), folder)
    seconds = time.monotonic() - start
    status = job_status(folder, tuple(teachers), SPLITS)
    assert [(row.teacher, row.done, row.shards, row.in_flight, row.failed) for row in status.teachers] == [
        ("ranker", 13, 13, 0, 0),
        ("steady", 13, 13, 0, 0),
    ]
    ranker, other = status.teachers
    assert ranker.padding == pytest.approx(1 - counters["tokens"] / counters["padded_tokens"], abs=1e-4)
    assert ranker.pairs_per_second > 26 * 12 / seconds and ranker.tokens_per_second > counters["tokens"] / seconds
    assert other.padding is None and other.tokens_per_second is None  # it counts no tokens
    assert [(launch.state, launch.pid, launch.deaths) for launch in status.launches] == [("finished", os.getpid(), 0)]


def test_a_job_is_watched_while_it_runs_and_after_it_was_killed(tmp_path):
    folder, recipe = write_job(tmp_path / "run"), tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(recipe_for(folder, steady(tmp_path))))
    (tmp_path / "calls.seconds").write_text("0.05")
    driver = subprocess.Popen(
        [sys.executable, "-m", "distill.cli", "score", str(recipe), "--shard", "0/1"],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        stderr=subprocess.DEVNULL,
    )
    try:
        while committed(folder) < 4:
            assert driver.poll() is None
            time.sleep(0.02)
        (tmp_path / "calls.seconds").write_text("600")
        while _moving(folder):
            assert driver.poll() is None
        status = job_status(folder, ("steady",), SPLITS)
        row = status.teachers[0]
        assert status.launches[0].state == "running" and status.launches[0].pid == driver.pid
        assert 4 <= row.done < 13 and row.in_flight == 1 and row.failed == 0
        # it took 12 pairs x 2 a shard, at row.pairs_per_second
        assert row.seconds_left == pytest.approx((13 - row.done) * 24 / row.pairs_per_second, rel=0.15)
        shown = distill("status", str(recipe))
        assert f"{row.done}/13" in shown and "running" in shown and str(driver.pid) in shown
    finally:
        driver.kill()
        driver.wait()
    states = {state["stage"]: state for state in json.loads(distill("status", str(recipe), "--json"))}
    job = states["score"]["job"]
    assert job["launches"][0]["state"] == "killed" and "job" not in states["mine"]
    assert (job["teachers"][0]["done"], job["teachers"][0]["in_flight"]) == (row.done, 0)
    assert job["teachers"][0]["seconds_left"] is None


def test_a_job_that_stopped_says_why(tmp_path):
    folder = write_job(tmp_path / "run")
    with pytest.raises(TeacherError):
        score_local(recipe_for(folder, steady(tmp_path, nan=True)), folder)
    status = job_status(folder, ("steady",), SPLITS)
    assert status.launches[0].state == "stopped" and "returned nan" in status.launches[0].error
    assert (status.teachers[0].done, status.teachers[0].failed) == (0, 1)


def test_a_log_cut_short_is_still_read(tmp_path):
    folder = write_job(tmp_path / "run")
    score_local(recipe_for(folder, steady(tmp_path)), folder)
    log = next(folder.logs.glob("score-*.jsonl"))
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-2]) + lines[-2][:30])  # as after a power cut: neither the last "done" nor the end
    status = job_status(folder, ("steady",), SPLITS)
    assert status.launches[0].state == "killed" and status.teachers[0].done == 13


def test_status_loads_neither_torch_nor_a_teacher(tmp_path):
    folder, recipe = write_job(tmp_path / "run"), tmp_path / "recipe.yaml"
    score_local(recipe_for(folder, steady(tmp_path)), folder)
    recipe.write_text(dump_recipe(recipe_for(folder, steady(tmp_path))))
    code = (
        "import sys\nfrom distill.cli import app\napp(sys.argv[1:], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, "status", str(recipe)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    ).stdout
    assert "13/13" in shown and shown.endswith("set()\n")


def _moving(folder) -> bool:
    """Whether shards still come: the pace was just changed."""
    before = committed(folder)
    time.sleep(0.3)
    return committed(folder) != before
