"""`distill score --shard I/N`: the tasks of a job array, as real processes that share nothing but the run folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distill.errors import RecipeError
from distill.pipeline.run import parse_part
from distill.recipe.load import dump_recipe
from distill.run.joblog import JobLog
from distill.run.manifest import read_manifest, verify
from tests.helpers.stages import score_local
from tests.ray_jobs.small_job import recipe_for, score_bytes, write_job


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
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status and standard error."""
        process = self.start(*arguments)
        stderr = process.communicate()[1]
        return process.returncode, stderr


@pytest.fixture
def job(tmp_path):
    def make(name: str, **options) -> Task:
        folder = write_job(tmp_path / name)
        options = {"log": str(tmp_path / f"{name}.log"), **options}
        return Task(
            folder,
            recipe_for(
                folder, {"steady": {"kind": "custom", "cls": "tests.ray_jobs.job_workers:Steady", "options": options}}
            ),
        )

    return make


def test_concurrent_tasks_give_the_bytes_of_one_process_and_the_last_one_finishes(tmp_path, tiny_sentence):
    # a bi-encoder: its tasks also share the vectors of common passages
    teachers = {"dense": {"kind": "bi-encoder", "model": str(tiny_sentence), "max_length": 48, "dtype": "float32"}}
    folder, whole = write_job(tmp_path / "array"), write_job(tmp_path / "whole")
    array = Task(folder, recipe_for(folder, teachers))
    tasks = [array.start("--shard", f"{index}/2") for index in range(2)]
    score_local(recipe_for(whole, teachers), whole)
    stderr = [task.communicate()[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], stderr
    assert score_bytes(folder) == score_bytes(whole)
    for split in ("train", "test"):
        assert not verify(folder.scores("dense", split))
        assert read_manifest(folder.scores("dense", split)) == read_manifest(whole.scores("dense", split))
    done = [event["task"] for event in JobLog(folder).events() if event["event"] == "done"]
    assert len([name for name in done if "part-" in name]) == 13  # every shard once
    assert "done already" in array.run("--shard", "1/2")[1]


def test_a_task_scores_only_its_own_shards_and_reports_the_number_left_to_others(job):
    task = job("array")
    status, stderr = task.run("--shard", "1/3")
    assert status == 0 and "8 shards are left to other tasks" in stderr
    assert len(score_bytes(task.folder)) == 5 and read_manifest(task.folder.scores("steady", "train")) is None
    assert task.run("--shard", "1/3")[0] == 0
    assert [event["tasks"] for event in JobLog(task.folder).events() if event["event"] == "start"] == [5, 0]


@pytest.mark.parametrize("part", ["8/8", "0/0", "-1/4", "3", "1/2/3", "a/b", "/", ""])
def test_parse_part_refuses_anything_but_i_of_n(part):
    with pytest.raises(RecipeError, match=f"^'{part}' is not a valid part: write I/N"):
        parse_part(part)


def test_a_wrong_shard_option_ends_with_status_2_before_anything_is_written(job):
    task = job("array")
    status, stderr = task.run("--shard", "8/8")
    assert status == 2 and stderr.startswith("distill: '8/8' is not a valid part") and stderr.count("\n") == 1
    assert not (task.folder.root / "scores").exists()


def test_scores_of_another_recipe_stop_a_task_until_redo_sets_them_aside(job):
    before = job("array", offset=1.0)
    assert before.run("--shard", "0/2")[0] == 0
    task = job("array")
    status, stderr = task.run("--shard", "0/2")  # the earlier output is unfinished: it has no manifest yet
    assert status == 2 and "teacher.options.offset 1.0 -> (absent)" in stderr and "--redo" in stderr
    tasks = [task.start("--shard", f"{index}/2", "--redo") for index in range(2)]
    outputs = [each.communicate()[1] for each in tasks]
    assert [each.returncode for each in tasks] == [0, 0], outputs
    assert len(score_bytes(task.folder)) == 13 and not verify(task.folder.scores("steady", "train"))
    assert len(list((task.folder.root / "replaced").glob("*/scores/steady/*/part-*.arrow"))) == 6


def test_a_task_with_limit_looks_for_candidates_in_the_rehearsals_folder(job):
    status, stderr = job("array").run("--shard", "0/2", "--limit", "3")
    assert status == 2 and "array-limit-3" in stderr and "run `distill mine` first" in stderr
