"""`distill status` on real jobs: running, finished, stopped with an error, killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from distill.errors import TeacherError
from distill.recipe.load import dump_recipe
from ray_jobs.job_status import job_status
from tests.helpers.stages import score, score_local
from tests.ray_jobs.small_job import committed, recipe_for, steady, write_job

SPLITS = ("train", "test")


def distill(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "distill.cli", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "120"},
    ).stdout


def test_there_is_no_status_before_the_first_launch(tmp_path):
    assert job_status(write_job(tmp_path / "run"), ("steady",), SPLITS) is None


def test_status_of_a_finished_job_agrees_with_the_jobs_counters(cluster, tmp_path, tiny_classifier):
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


def test_foreign_files_and_lines_in_the_logs_are_passed_over(tmp_path):
    folder = write_job(tmp_path / "run")
    score_local(recipe_for(folder, steady(tmp_path)), folder)
    before = job_status(folder, ("steady",), SPLITS)
    (own,) = folder.logs.glob("score-*.jsonl")
    foreign = '5\nnull\n[]\n{}\n{"event": 3}\n{"event": "done"}\n{"event": "note", "time": 1}\n"text"\n{"eve'
    with open(own, "a") as file:
        file.write(foreign)
    (folder.logs / "score-backup.jsonl").write_text("{}")
    (folder.logs / "score-0007-host-12.jsonl").write_text(foreign)
    after = job_status(folder, ("steady",), SPLITS)
    assert after.teachers == before.teachers and after.launches[0].state == "finished"
    score_local(recipe_for(folder, steady(tmp_path)), folder)


def test_status_of_a_running_job_and_after_it_is_killed(tmp_path):
    folder, recipe = write_job(tmp_path / "run"), tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(recipe_for(folder, steady(tmp_path))))
    (tmp_path / "calls.seconds").write_text("0.05")
    driver = subprocess.Popen(
        [sys.executable, "-m", "distill.cli", "score", str(recipe), "--shard", "0/1"], stderr=subprocess.DEVNULL
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
        # 24 pairs per shard, at row.pairs_per_second
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


def test_status_of_a_stopped_job_has_its_error(tmp_path):
    folder = write_job(tmp_path / "run")
    with pytest.raises(TeacherError):
        score_local(recipe_for(folder, steady(tmp_path, nan=True)), folder)
    status = job_status(folder, ("steady",), SPLITS)
    assert status.launches[0].state == "stopped" and "returned nan" in status.launches[0].error
    assert (status.teachers[0].done, status.teachers[0].failed) == (0, 1)


def test_a_truncated_log_is_still_read(tmp_path):
    folder = write_job(tmp_path / "run")
    score_local(recipe_for(folder, steady(tmp_path)), folder)
    log = next(folder.logs.glob("score-*.jsonl"))
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-2]) + lines[-2][:30])  # without its last "done" and its end
    status = job_status(folder, ("steady",), SPLITS)
    assert status.launches[0].state == "killed" and status.teachers[0].done == 13


def test_status_loads_neither_torch_nor_a_teacher(tmp_path):
    folder, recipe = write_job(tmp_path / "run"), tmp_path / "recipe.yaml"
    score_local(recipe_for(folder, steady(tmp_path)), folder)
    recipe.write_text(dump_recipe(recipe_for(folder, steady(tmp_path))))
    code = (
        "import sys\nfrom distill.cli.app import app\napp(sys.argv[1:], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, "status", str(recipe)], capture_output=True, text=True, check=True
    ).stdout
    assert "13/13" in shown and shown.endswith("set()\n")


def _moving(folder) -> bool:
    """Whether shards are still being committed."""
    before = committed(folder)
    time.sleep(0.3)
    return committed(folder) != before
