"""`distill submit --all`: the whole pipeline as dependent jobs; status and cancel."""

from __future__ import annotations

import json
import re

import pytest

from distill.pipeline.slurm import recorded_jobs
from distill.run.layout import RunFolder
from tests.slurm.slurm_cluster import wait_until

pytestmark = pytest.mark.slurm


def rows(folder: RunFolder) -> list[dict]:
    return json.loads(folder.evaluation.read_text())["rows"]


@pytest.fixture(scope="module")
def submitted(new_run):
    """The whole pipeline, with scoring as an array, submitted with one command."""
    run = new_run("whole $(id) run", slurm={"array": 2, "time": "30"})
    run.submit("--all")
    return run


def test_every_job_depends_on_the_one_before_and_status_shows_their_states(submitted):
    assert [job.stages for job in submitted.jobs] == [
        ("import", "mine", "teach"),
        ("score",),
        ("label",),
        ("train",),
        ("evaluate",),
    ]
    shown = submitted.distill("status").stdout
    assert re.search(r"^evaluate +pending +\[Slurm job \d+: PENDING \(Dependency\)\]", shown, re.MULTILINE), shown
    state = json.loads(submitted.distill("status", "--json").stdout)[0]["slurm"]
    assert state["job"] == submitted.jobs[0].id
    again = submitted.distill("submit", "--stage", "train")
    assert again.returncode == 2 and "of this run is still waiting or running" in again.stderr


def test_cancel_ends_running_and_waiting_jobs_and_none_requeues_itself(new_run, slurm):
    run = new_run("cancelled")
    run.submit("--all")
    wait_until("the first job to run", lambda: slurm.state(run.ids[0]) == "RUNNING", seconds=60)
    assert f"cancelled: {', '.join(run.ids)}" in run.distill("cancel").stdout
    wait_until("the jobs to end", lambda: slurm.run("squeue", "--noheader", f"--jobs={','.join(run.ids)}") == "", 60)
    assert [slurm.state(job) for job in run.ids] == ["CANCELLED"] * 5
    assert "no job of this run is waiting or running" in run.distill("cancel").stdout


def test_a_later_round_is_submitted_with_the_first_and_waits_for_its_student(new_run, slurm):
    run = new_run("rounds", "train")
    rounds = (
        "rounds=[{mine: {miners: {own: {kind: splade, model: round:previous, top: 3}}}, score: {rerank: false}, "
        "student: {model: round:previous}, train: {steps: 2}}]"
    )
    done = run.distill("submit", "--all", rounds)
    assert done.returncode == 0, done.stderr
    second = recorded_jobs(RunFolder(run.folder.round(2)))
    assert [job.stages for job in run.jobs] == [("train",), ("evaluate",)]
    assert [job.stages for job in second] == [("mine",), ("score",), ("label",), ("train",), ("evaluate",)]
    assert f"--dependency=afterok:{run.jobs[-1].id}" in second[0].command
    run.ids = [job.id for job in (*run.jobs, *second)]
    run.wait(seconds=400)
    states = json.loads(run.distill("status", rounds, "--json").stdout)
    assert {state["state"] for state in states} == {"done"} and {state["round"] for state in states} == {1, 2}
    assert [row["name"] for row in rows(RunFolder(run.folder.round(2)))] == ["BM25", "previous", "student"]


def test_a_single_stage_is_refused_while_earlier_stages_are_missing(new_run):
    done = new_run("alone").distill("submit", "--stage", "train")
    assert done.returncode == 2 and "train needs import, which is neither done nor submitted" in done.stderr


def test_a_job_that_slurm_refuses_is_reported_and_earlier_ones_are_cancelled(new_run, slurm):
    run = new_run("refused", slurm={"options": ["--hold"], "stages": {"label": {"partition": "nowhere; id"}}})
    done = run.distill("submit", "--all")
    assert done.returncode == 2 and "invalid partition specified: nowhere; id" in done.stderr, done.stderr
    assert [slurm.state(job.id) for job in run.jobs] == ["CANCELLED"] * 2


def test_the_submitted_pipeline_ends_with_the_table_of_a_run_without_slurm(submitted, finished):
    submitted.wait(seconds=400)
    assert rows(submitted.folder) == rows(RunFolder(finished.folder))
    assert f"checkpoint: {submitted.folder.model}" in submitted.output()
    assert "everything was done already" in submitted.distill("submit", "--all").stdout
