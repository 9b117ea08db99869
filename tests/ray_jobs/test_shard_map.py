"""The sharded map on real actors: deaths, exceptions, caps, groups."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from distill.errors import TeacherError
from distill.run.layout import RunFolder
from ray_jobs.devices import lost_device
from ray_jobs.shard_map import JobFailed, Resources, shard_map
from tests.ray_jobs.job_workers import Doubler, Item, LosesItsDevice, Stillborn, Unborn

TWO = Resources(cpus=1, actors=2)


def run(items, folder, max_tries=3, worker=Doubler, arguments=None):
    results, deaths = {}, []
    shard_map(
        worker,
        (str(folder),) if arguments is None else arguments,
        items,
        resources=TWO,
        max_tries=max_tries,
        done=lambda item, result: results.__setitem__(item.name, result),
        on_worker_death=deaths.append,
    )
    return results, deaths


def test_every_task_runs_once_and_both_actors_take_tasks(cluster, tmp_path):
    items = [Item(f"{i}-x", seconds=0.05) for i in range(30)]
    results, deaths = run(items, tmp_path)
    assert {name: result[0] for name, result in results.items()} == {f"{i}-x": 2 * i for i in range(30)}
    assert all((tmp_path / item.name).read_text() == "1" for item in items)
    assert len({result[1] for result in results.values()}) == 2
    assert not deaths


def test_an_empty_list_of_tasks_is_done_at_once(cluster, tmp_path):
    assert run([], tmp_path) == ({}, [])


def test_a_death_reschedules_both_tasks_and_counts_a_try_for_the_running_one_only(cluster, tmp_path):
    items = [Item("1-dies-once"), Item("2-x"), Item("3-dies-once"), Item("4-x"), Item("5-x")]
    results, deaths = run(items, tmp_path, max_tries=2)
    assert {name: result[0] for name, result in results.items()} == {item.name: 2 * int(item.name[0]) for item in items}
    assert len(deaths) == 2


def test_a_task_that_always_kills_its_worker_stops_the_job_with_its_name(cluster, tmp_path):
    with pytest.raises(JobFailed, match="2-dies-always: its worker died 3 times"):
        run([Item("1-x"), Item("2-dies-always"), Item("3-x")], tmp_path)


def test_a_lost_device_is_named_in_the_error(cluster, tmp_path):
    folder, began = RunFolder(tmp_path), time.time()
    with pytest.raises(
        JobFailed,
        match=r"worker died 2 times; the last: on \S+.*: CUDA error: an illegal memory "
        r"access was encountered \(full message in .*lost-devices.jsonl\)",
    ):
        shard_map(
            LosesItsDevice,
            (str(tmp_path),),
            [Item("1-x")],
            resources=TWO,
            max_tries=2,
            done=lambda *_: None,
            diagnose=lambda task, since: lost_device(task.name, folder, since),
        )
    assert "manual" in folder.lost_devices.read_text()
    assert lost_device("1-x", folder, time.time() + 120) is None and lost_device("2-x", folder, began) is None


def test_an_exception_in_a_workers_code_stops_the_job_with_its_traceback(cluster, tmp_path):
    with pytest.raises(JobFailed, match=r"(?s)3-bug.*ZeroDivisionError: a bug"):
        run([Item(f"{i}-x") for i in range(3)] + [Item("3-bug")], tmp_path)


def test_a_distill_error_keeps_its_type_and_names_the_task(cluster, tmp_path):
    with pytest.raises(TeacherError, match=r"^1-user: a user's error$"):
        run([Item("1-user")], tmp_path)


def test_actors_that_never_start_stop_the_job(cluster, tmp_path):
    with pytest.raises(JobFailed, match="without finishing a task"):
        run([Item("1-x")], tmp_path, worker=Stillborn, arguments=())


def test_a_constructor_that_always_fails_stops_the_job_with_its_error(cluster, tmp_path):
    with pytest.raises(JobFailed, match=r"(?s)without finishing a task; the last: .*ValueError: no such setting"):
        run([Item("1-x")], tmp_path, worker=Unborn, arguments=())


def test_an_actor_stays_with_its_group_while_that_has_tasks(cluster, tmp_path):
    items = [Item(f"{i}-{group}", group, 0.4) for group in "ab" for i in range(8)]
    results, _ = run(items, tmp_path)
    first = {group: {results[f"{i}-{group}"][1] for i in range(4)} for group in "ab"}
    assert not first["a"] & first["b"]


def test_our_own_sigterm_handler_stays_in_place_during_a_job_and_after_it():
    program = (
        "import os, signal, sys\n"
        "from distill.config import Cluster\n"
        "from ray_jobs.cluster import ray_cluster\n"
        "received = []\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))\n"
        "with ray_cluster(Cluster(cpus=1)):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(75 if len(received) == 2 else 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 75
