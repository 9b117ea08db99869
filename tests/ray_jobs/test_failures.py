"""Other failures: full disks and object stores, joining and lost nodes, two drivers, a jumping clock."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from distill.config import Cluster
from distill.errors import StorageError
from distill.recipe.load import dump_recipe
from distill.run.joblog import JobLog
from distill.run.manifest import read_manifest
from ray_jobs.job_status import job_status
from tests.helpers.stages import score, score_local
from tests.ray_jobs.chaos import PATIENCE, DriverStarter, wait_for
from tests.ray_jobs.small_job import committed, recipe_for, score_bytes, score_files, steady, write_job


def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    folder = write_job(tmp_path / "undisturbed")
    score_local(recipe_for(folder, steady(tmp_path)), folder)
    return score_files(folder)


def commits(folder) -> Counter:
    """Number of commits per task, by the job's log."""
    return Counter(
        event["task"] for event in JobLog(folder).events() if event["event"] == "done" and event["shard"] is not None
    )


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("with_ray", [True, False])
def test_a_full_disk_stops_the_job_naming_the_file_and_it_resumes_with_space(cluster, tmp_path, small_disk, with_ray):
    run = score if with_ray else score_local
    folder = write_job(small_disk / "run")
    recipe = recipe_for(folder, steady(tmp_path))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with open(ballast, "r+b") as file:
        file.truncate(ballast.stat().st_size - 12 * 4096)
    with pytest.raises(StorageError, match=r"/disk/run/.*: no space left on the disk"):
        run(recipe, folder)
    before = score_bytes(folder)
    assert read_manifest(folder.scores("steady", "train")) is None
    ballast.unlink()
    run(recipe, folder)
    whole = undisturbed(tmp_path)
    assert score_files(folder) == whole
    assert 0 < len(before) < 13 and before.items() <= whole.items()


def test_a_full_object_store_does_not_affect_the_job(cluster, tmp_path):
    hoard = [ray.put(np.full(1 << 20, i, np.uint8)) for i in range(100)]  # of 100 MiB
    folder = write_job(tmp_path / "run")
    score(recipe_for(folder, steady(tmp_path)), folder)
    assert score_files(folder) == undisturbed(tmp_path)
    assert len(hoard) == 100  # held until here


def test_two_drivers_on_one_cluster_commit_each_shard_once(cluster, tmp_path):
    folder = write_job(tmp_path / "run")
    recipe = recipe_for(folder, steady(tmp_path, seconds=0.1), actors=1).model_copy(
        update={"cluster": Cluster(address=ray.get_runtime_context().gcs_address)}
    )
    start = DriverStarter(tmp_path / "recipe.yaml", dump_recipe(recipe))
    drivers = [start(), start()]
    assert [driver.wait(timeout=PATIENCE) for driver in drivers] == [0, 0]
    assert score_files(folder) == undisturbed(tmp_path)
    assert set(commits(folder).values()) == {1} and len(commits(folder)) == 13


def test_fewer_machines_than_cluster_nodes_are_an_error():
    asks_for_two = (
        "from distill.config import Cluster; from ray_jobs import cluster; cluster.JOIN_SECONDS = 1\n"
        "with cluster.ray_cluster(Cluster(cpus=1, nodes=2, object_store_gib=0.1)): print('started')"
    )
    done = subprocess.run([sys.executable, "-c", asks_for_two], capture_output=True, text=True)
    assert "RecipeError: cluster: 1 of 2 machines (cluster.nodes) joined in 1 s" in done.stderr
    assert "started" not in done.stdout


@pytest.mark.slow
def test_a_job_survives_nodes_that_join_and_nodes_that_are_lost(tmp_path):
    from ray.cluster_utils import Cluster as Nodes

    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    nodes = Nodes(
        initialize_head=True,
        head_node_args={
            **small,
            "num_cpus": 0,
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 500,
                "health_check_failure_threshold": 4,
            },
        },
    )
    driver = None
    try:
        first = nodes.add_node(num_cpus=1, **small)
        folder = write_job(tmp_path / "run", queries=40, per_shard=1)
        recipe = recipe_for(folder, steady(tmp_path, seconds=0.3), actors=None).model_copy(
            update={"cluster": Cluster(address=nodes.address)}
        )
        driver = DriverStarter(tmp_path / "recipe.yaml", dump_recipe(recipe))()
        wait_for(lambda: committed(folder) >= 2, driver)
        assert len(_scorers(tmp_path)) == 1
        _set_pace(tmp_path, 5)  # shards are left when the second node's worker has started, however slow the machine
        nodes.add_node(num_cpus=1, **small)
        wait_for(lambda: len(_scorers(tmp_path)) == 2, driver)  # the job follows the cluster
        _set_pace(tmp_path, 0.3)
        nodes.remove_node(first, allow_graceful=False)
        assert committed(folder) < 41
        assert driver.wait(timeout=PATIENCE) == 0
    finally:
        if driver is not None:
            driver.kill()
            driver.wait()
        nodes.shutdown()
    assert [event["event"] for event in JobLog(folder).events()].count("death") >= 1
    whole = write_job(tmp_path / "whole", queries=40, per_shard=1)
    score_local(recipe_for(whole, steady(tmp_path)), whole)
    assert score_files(folder) == score_files(whole)


def test_a_jumping_clock_changes_neither_scores_nor_status(tmp_path, monkeypatch):
    folder = write_job(tmp_path / "run")
    recipe = recipe_for(folder, steady(tmp_path, seconds=0.02))
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))  # 1970 to 2096
    for part in range(3):
        score_local(recipe, folder, part=(part, 3))
        launch = job_status(folder, ("steady",), ("train", "test")).launches[0]
        assert launch.state == "finished" and launch.seconds_since_event >= 0
    assert [event["event"] for event in JobLog(folder).events()].count("start") == 3
    row = job_status(folder, ("steady",), ("train", "test")).teachers[0]
    assert row.done == 13 and 24 < row.pairs_per_second < 24 / 0.02  # 24 pairs in 0.02 s at best
    assert score_files(folder) == undisturbed(tmp_path)


def _set_pace(tmp_path: Path, seconds: float) -> None:
    """Change the seconds per shard of the teacher `steady`, while it works."""
    new = tmp_path / "calls.new"
    new.write_text(str(seconds))
    new.replace(tmp_path / "calls.seconds")


def _scorers(tmp_path: Path) -> set[str]:
    """Process ids of the workers that have started a shard."""
    log = tmp_path / "calls.log"
    return {line.split(" ", 1)[0] for line in log.read_text().splitlines()} if log.exists() else set()


@pytest.mark.slow  # Ray looks for its gcs_server for a minute before it lets its driver go
def test_a_driver_whose_ray_was_killed_ends_with_a_message_leaves_nothing_and_resumes(tmp_path):
    folder = write_job(tmp_path / "run", queries=24, per_shard=1)
    recipe, file = recipe_for(folder, steady(tmp_path, seconds=0.5)), tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tests.ray_jobs.drive", str(file)]
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: committed(folder) >= 2, driver)
    started = psutil.Process(driver.pid).children(recursive=True)
    kill = [process for process in started if process.name() == "gcs_server"]
    kill += [process for process in started if process.name().startswith("ray::ScoreWorker")]
    assert len(kill) >= 2
    for process in kill:
        process.kill()
    message = driver.communicate(timeout=300)[1]
    assert driver.returncode == 1 and "ClusterError: gcs_server of the Ray that this command started" in message
    assert not psutil.wait_procs(started, timeout=30)[1]
    before = score_files(folder)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert before.items() <= score_files(folder).items() and committed(folder) == 26
