"""`distill score --shard I/N`: the tasks of a job array, as real processes that share nothing but the run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_job import recipe_for, score_bytes, write_job

from distill.data.manifest import read_manifest, verify
from distill.errors import RecipeError
from distill.recipe_file import dump_recipe
from ray_jobs.joblog import JobLog
from ray_jobs.score import parse_part, score_local

HERE = Path(__file__).parent


class Task:
    """`distill score` on the recipe of one run folder, in a process of its own."""

    def __init__(self, folder, recipe):
        self.folder, self.recipe = folder, folder.root.with_suffix(".yaml")
        self.recipe.write_text(dump_recipe(recipe), encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "distill.cli", "score", str(self.recipe), *arguments],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status, and what it said."""
        process = self.start(*arguments)
        said = process.communicate()[1]
        return process.returncode, said


@pytest.fixture
def job(tmp_path):
    def make(name: str, **options) -> Task:
        folder = write_job(tmp_path / name)
        options = {"log": str(tmp_path / f"{name}.log"), **options}
        return Task(
            folder, recipe_for(folder, {"steady": {"kind": "custom", "cls": "job_workers:Steady", "options": options}})
        )

    return make


def test_tasks_that_run_together_give_the_bytes_of_one_process_and_the_last_one_finishes(tmp_path, tiny_sentence):
    # a bi-encoder: its tasks also share the vectors of the passages that they have in common
    teachers = {"dense": {"kind": "bi-encoder", "model": str(tiny_sentence), "max_length": 48, "dtype": "float32"}}
    folder, whole = write_job(tmp_path / "array"), write_job(tmp_path / "whole")
    array = Task(folder, recipe_for(folder, teachers))
    tasks = [array.start("--shard", f"{index}/2") for index in range(2)]
    score_local(recipe_for(whole, teachers), whole)
    said = [task.communicate()[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert score_bytes(folder) == score_bytes(whole)
    for split in ("train", "test"):
        assert not verify(folder.scores("dense", split))
        assert read_manifest(folder.scores("dense", split)) == read_manifest(whole.scores("dense", split))
    done = [event["task"] for event in JobLog(folder).events() if event["event"] == "done"]
    assert len([name for name in done if "part-" in name]) == 13  # every shard once
    assert "done already" in array.run("--shard", "1/2")[1]


def test_a_task_leaves_the_shards_of_others_alone_and_says_how_many(job):
    task = job("array")
    status, said = task.run("--shard", "1/3")
    assert status == 0 and "8 shards are left to other tasks" in said
    assert len(score_bytes(task.folder)) == 5 and read_manifest(task.folder.scores("steady", "train")) is None
    assert task.run("--shard", "1/3")[0] == 0  # the same task again finds nothing of its own to do
    assert [event["tasks"] for event in JobLog(task.folder).events() if event["event"] == "start"] == [5, 0]


@pytest.mark.parametrize("part", ["8/8", "0/0", "-1/4", "3", "1/2/3", "a/b", "/", ""])
def test_a_bad_part_is_refused(part):
    with pytest.raises(RecipeError, match=f"^'{part}' is no part of the shards: write I/N"):
        parse_part(part)


def test_a_bad_part_ends_with_status_2_before_anything_is_written(job):
    task = job("array")
    status, said = task.run("--shard", "8/8")
    assert status == 2 and said.startswith("distill: '8/8' is no part") and said.count("\n") == 1
    assert not (task.folder.root / "scores").exists()


def test_scores_of_another_recipe_stop_a_task_until_redo_sets_them_aside(job):
    before = job("array", offset=1.0)
    assert before.run("--shard", "0/2")[0] == 0
    task = job("array")
    status, said = task.run("--shard", "0/2")  # the earlier output is half-finished: there is no manifest yet
    assert status == 2 and "teacher.options.offset 1.0 -> (absent)" in said and "--redo" in said
    together = [task.start("--shard", f"{index}/2", "--redo") for index in range(2)]
    said = [one.communicate()[1] for one in together]
    assert [one.returncode for one in together] == [0, 0], said
    assert len(score_bytes(task.folder)) == 13 and not verify(task.folder.scores("steady", "train"))
    assert len(list((task.folder.root / "replaced").glob("*/scores/steady/*/part-*.arrow"))) == 6


def test_limit_is_a_folder_of_its_own(job):
    status, said = job("array").run("--shard", "0/2", "--limit", "3")
    assert status == 2 and "array-limit-3" in said and "run `distill mine` first" in said
