"""The sharded map on real actors: deaths, exceptions, caps, groups."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from job_workers import Doubler, Item, LosesItsDevice, Stillborn, Unborn

from distill.data.layout import RunFolder
from distill.errors import TeacherError
from ray_jobs.devices import lost_device
from ray_jobs.shard_map import JobFailed, Resources, shard_map

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
        died=deaths.append,
    )
    return results, deaths


def test_every_task_is_run_once_and_both_actors_work(cluster, tmp_path):
    items = [Item(f"{i}-x", seconds=0.05) for i in range(30)]
    results, deaths = run(items, tmp_path)
    assert {name: result[0] for name, result in results.items()} == {f"{i}-x": 2 * i for i in range(30)}
    assert all((tmp_path / item.name).read_text() == "1" for item in items)
    assert len({result[1] for result in results.values()}) == 2
    assert not deaths


def test_no_tasks_no_actors(cluster, tmp_path):
    assert run([], tmp_path) == ({}, [])


def test_a_death_requeues_and_an_innocent_neighbour_is_not_blamed(cluster, tmp_path):
    items = [Item("1-dies-once"), Item("2-x"), Item("3-dies-once"), Item("4-x"), Item("5-x")]
    results, deaths = run(items, tmp_path, max_tries=2)
    assert {name: result[0] for name, result in results.items()} == {item.name: 2 * int(item.name[0]) for item in items}
    assert len(deaths) == 2


def test_a_task_that_kills_its_workers_is_given_up_by_name(cluster, tmp_path):
    with pytest.raises(JobFailed, match="2-dies-always: its worker died 3 times"):
        run([Item("1-x"), Item("2-dies-always"), Item("3-x")], tmp_path)


def test_what_befell_the_device_reaches_the_user(cluster, tmp_path):
    folder, began = RunFolder(tmp_path), time.time()
    with pytest.raises(
        JobFailed,
        match=r"worker died 2 times; the last: on \S+.*: CUDA error: an illegal memory "
        r"access was encountered \(the whole message is in .*lost-devices.jsonl\)",
    ):
        shard_map(
            LosesItsDevice,
            (str(tmp_path),),
            [Item("1-x")],
            resources=TWO,
            max_tries=2,
            done=lambda *_: None,
            why=lambda task, since: lost_device(task.name, folder, since),
        )
    assert "manual" in folder.lost_devices.read_text()
    assert lost_device("1-x", folder, time.time() + 120) is None and lost_device("2-x", folder, began) is None


def test_an_exception_of_the_program_stops_the_job_with_its_traceback(cluster, tmp_path):
    with pytest.raises(JobFailed, match=r"(?s)3-bug.*ZeroDivisionError: an error of the program"):
        run([Item(f"{i}-x") for i in range(3)] + [Item("3-bug")], tmp_path)


def test_an_error_for_people_stays_one(cluster, tmp_path):
    with pytest.raises(TeacherError, match=r"^1-user: an error to mend$"):
        run([Item("1-user")], tmp_path)


def test_actors_that_never_start_are_given_up(cluster, tmp_path):
    with pytest.raises(JobFailed, match="without finishing anything"):
        run([Item("1-x")], tmp_path, worker=Stillborn, arguments=())


def test_a_constructor_that_fails_again_and_again_is_given_up_with_its_error(cluster, tmp_path):
    with pytest.raises(JobFailed, match=r"(?s)without finishing anything; the last: .*ValueError: no such setting"):
        run([Item("1-x")], tmp_path, worker=Unborn, arguments=())


def test_actors_keep_to_their_group_while_it_lasts(cluster, tmp_path):
    items = [Item(f"{i}-{group}", group, 0.4) for group in "ab" for i in range(8)]
    results, _ = run(items, tmp_path)
    first = {group: {results[f"{i}-{group}"][1] for i in range(4)} for group in "ab"}
    assert not first["a"] & first["b"]


def test_a_signal_is_answered_by_our_own_handler_during_a_job_and_after_it():
    program = (
        "import os, signal, sys\n"
        "from distill.config import Cluster\n"
        "from ray_jobs.shard_map import ray_cluster\n"
        "asked = []\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))\n"
        "with ray_cluster(Cluster(cpus=1)):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(75 if len(asked) == 2 else 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 75
