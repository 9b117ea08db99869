"""Scoring as Slurm jobs: as an array, and on Ray clusters of two allocations that share their machines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from distill.run.joblog import JobLog
from distill.run.layout import RunFolder
from distill.run.manifest import verify
from distill.store.candidates import read_candidates
from distill.store.scores import read_scores
from distill.store.texts import TextStore
from tests.slurm.slow_teacher import expected
from tests.slurm.slurm_cluster import wait_until

pytestmark = pytest.mark.slurm
ODD = "a b;touch ODD-$(id -u)'\"&|*%j"  # a name that a shell, or Slurm, would expand


def scores(folder: RunFolder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder.root)): path.read_bytes()
        for path in (folder.root / "scores").rglob("*")
        if path.is_file() and path.name.startswith("part-")
    }


@pytest.fixture(scope="module")
def runs(new_run):
    """An array, and two Ray jobs on the same two machines, one submitted with sbatch; all submitted together."""
    runs = {
        "array": new_run(ODD, "score", slurm={"array": 3, "max_parallel": 2, "setup": ["export ODD='$HOME; \"x\"'"]}),
        "ray": new_run(
            "ray",
            "score",
            slurm={"nodes": 2, "cpus": 1, "options": ["--nodelist=n1,n2"]},
            cluster={"object_store_gib": 0.1},
        ),
        "neighbour": new_run("neighbour", "score"),
    }
    runs["array"].submit("--stage", "score")
    runs["ray"].submit("--stage", "score")
    runs["neighbour"].sbatch(
        "--nodelist=n1,n2",
        "--cpus-per-task=1",
        "slurm/score_ray.sbatch",
        str(runs["neighbour"].file),
        "cluster.object_store_gib=0.1",
    )
    return runs


@pytest.mark.parametrize("name", ["array", "ray", "neighbour"])
def test_scoring_jobs_give_the_bytes_of_a_run_without_slurm(runs, finished, name):
    run = runs[name]
    run.wait()
    assert scores(run.folder) == scores(RunFolder(finished.folder)), run.output()
    assert not verify(run.folder.scores("tuned", "train"))


def test_the_array_tasks_score_every_shard_once(runs):
    run = runs["array"]
    run.wait()
    done = [event["task"] for event in JobLog(run.folder).events() if event["event"] == "done"]
    assert len(done) == len(set(done))
    assert len(list(run.folder.jobs.glob("1/score-*_[012].out"))) == 3
    assert not list(Path().glob("ODD-*"))


def test_concurrent_ray_jobs_each_use_two_machines_and_leave_nothing_behind(runs, slurm):
    for name in ("ray", "neighbour"):
        run = runs[name]
        run.wait()
        assert slurm.nodes_of(run.ids[0]) == ["n1", "n2"]
        assert not list(run.folder.jobs.glob("ray-*"))


@pytest.mark.parametrize("kind", ["array", "ray"])
def test_preempted_scoring_requeues_itself_and_resumes_with_the_missing_shards(new_run, slurm, kind):
    slow = {"kind": "custom", "cls": "tests.slurm.slow_teacher:SlowTeacher", "options": {"seconds": 4}}
    run = new_run(
        f"preempted {kind}",
        "score",
        teachers={"slow": slow},
        cluster={"object_store_gib": 0.1},
        slurm={"array": 1 if kind == "array" else None, "options": ["--nodelist=n3"]},
    )
    run.submit("--stage", "score")
    committed = run.folder.scores("slow", "train")
    wait_until("a first shard", lambda: any(committed.glob("part-*")), seconds=200)
    first = {path: path.stat().st_mtime_ns for path in committed.glob("part-*")}
    urgent = slurm.run(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodelist=n3",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 1",
    )
    slurm.wait(urgent, seconds=100)
    assert not (committed / "manifest.json").exists()
    run.wait()
    assert "is requeued and will resume with the missing shards" in run.output()
    assert {path: path.stat().st_mtime_ns for path in first} == first
    done = Counter(event["task"] for event in JobLog(run.folder).events() if event["event"] == "done")
    assert set(done.values()) == {1}
    for split in ("train", "test"):
        assert_expected(run.folder, split)


def assert_expected(folder: RunFolder, split: str) -> None:
    queries, passages = TextStore.open(folder.queries(split)), TextStore.open(folder.passages)
    for shard, scores in read_scores(folder, "slow", split):
        candidates = read_candidates(folder.candidates(split) / shard)
        texts = zip(queries.texts(candidates.pair_queries), passages.texts(candidates.passages), strict=True)
        assert scores.values.tolist() == [expected(query, passage) for query, passage in texts]
