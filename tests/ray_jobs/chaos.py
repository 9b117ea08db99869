"""Random kills of a scoring job: which process dies, and after how much of the job, follows from the seed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from small_job import committed, recipe_for, score_files, write_job

from distill.config import Cluster
from distill.data.layout import RunFolder
from distill.recipe_file import dump_recipe
from ray_jobs.joblog import JobLog
from ray_jobs.score import score_local

HERE = Path(__file__).parent
PATIENCE = 120.0  # seconds without any progress


@dataclass
class Damage:
    """What was killed, seen to be dead."""

    workers: int = 0
    drivers: int = 0
    log: list[str] = field(default_factory=list)


def chaos(root: Path, shards: int, kills: int, drivers: int, seed: int) -> tuple[RunFolder, Damage]:
    """Run a job of `shards` shards on the running Ray; kill `drivers` of its drivers and workers for the rest.

    Each kill falls at random into the time between two commits; a killed driver is started again. Returns the run
    folder, finished, and what was killed.
    """
    rng, damage = random.Random(seed), Damage()
    folder = write_job(root / "chaos", queries=shards - 1, per_shard=1)
    recipe = recipe_for(folder, _steady(root, seconds=0.1), max_tries=kills).model_copy(
        update={"cluster": Cluster(address=ray.get_runtime_context().gcs_address)}
    )
    start = DriverStarter(root / "chaos.yaml", dump_recipe(recipe))
    moments = sorted(rng.uniform(0, shards - 4) for _ in range(kills))
    victims = ["driver"] * drivers + ["worker"] * (kills - drivers)
    rng.shuffle(victims)
    driver = start()
    try:
        for moment, victim in zip(moments, victims, strict=True):
            wait_for(lambda due=moment: committed(folder) >= due, driver)
            time.sleep(rng.uniform(0, 0.15))
            if victim == "driver":
                assert driver.poll() is None, f"the driver ended by itself with status {driver.returncode}"
                driver.kill()
                assert driver.wait() == -signal.SIGKILL
                damage.drivers += 1
                driver = start()
            else:
                before = damage.workers
                while damage.workers == before:  # those in sight may be going with a driver that was killed
                    wait_for(lambda: workers(), driver)
                    damage.workers += _kill_one(rng)
            damage.log.append(f"{victim} after {committed(folder)} shards")
        assert driver.wait(timeout=PATIENCE) == 0
    finally:
        driver.kill()
        driver.wait()
    return folder, damage


def undisturbed(root: Path, shards: int) -> RunFolder:
    """The same job in one process, without Ray and without kills."""
    folder = write_job(root / "undisturbed", queries=shards - 1, per_shard=1)
    score_local(recipe_for(folder, _steady(root, seconds=0)), folder)
    return folder


def check(root: Path, shards: int, kills: int, drivers: int, seed: int) -> None:
    """A job that was killed again and again ends with the bytes of one that was not, and scored nothing twice."""
    folder, damage = chaos(root, shards, kills, drivers, seed)
    scored = [line.split(" ", 2) for line in (root / "calls.log").read_text().splitlines()]
    (root / "calls.log").unlink()
    assert (damage.drivers, damage.workers) == (drivers, kills - drivers), damage.log
    events = list(JobLog(folder).events())
    kinds = Counter(event["event"] for event in events)
    assert kinds["start"] - kinds["end"] <= drivers and kinds["stopped"] == 0
    assert 0 < kinds["death"] <= kills - drivers  # those that a driver lived to see
    commits = Counter(event["task"] for event in events if event["event"] == "done" and event["shard"] is not None)
    assert max(commits.values()) == 1
    assert score_files(folder) == score_files(undisturbed(root, shards))
    assert len({pid for pid, *_ in scored}) > (kills - drivers) / 2  # workers did die with work in hand
    _no_scoring_after_commit(folder, scored)


def _no_scoring_after_commit(folder: RunFolder, scored: list[list[str]]) -> None:
    from distill.data.candidates import iterate_candidates
    from distill.data.texts import TextStore

    there = {}
    for split in ("train", "test"):
        texts = TextStore.open(folder.queries(split))
        for name, candidates in iterate_candidates(folder.candidates(split)):
            path = folder.scores("steady", split) / name
            there[texts.texts(candidates.query[:1])[0]] = path.stat().st_ctime_ns
    assert len(there) == len({query for *_, query in scored})
    late = [query for _, began, query in scored if int(began) > there[query]]
    assert not late, f"scored again after they were committed: {late}"


class DriverStarter:
    """Starts `distill score` on one recipe, each time in a process of its own."""

    def __init__(self, path: Path, recipe: str):
        self._path = path
        path.write_text(recipe, encoding="utf-8")

    def __call__(self) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(HERE / "drive.py"), str(self._path)],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )


def wait_for(condition, driver: subprocess.Popen) -> None:
    """Until something about a driver's job is so; fails if the driver ends before, or nothing happens for long."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert driver.poll() is None, f"the driver ended by itself with status {driver.returncode}"
        assert time.monotonic() < give_up, "the job stands still"
        time.sleep(0.03)


def workers(kind: str = "ScoreWorker") -> list[psutil.Process]:
    """Processes of actors on this process's Ray, at whatever they are."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())  # read once: a process that dies has none left
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if title.startswith(f"ray::{kind}"):
            found.append(process)
    return found


def _kill_one(rng: random.Random) -> int:
    """SIGKILL for one of the workers; how many died of it."""
    while alive := workers():
        victim = rng.choice(sorted(alive, key=lambda process: process.pid))
        try:
            victim.kill()
            victim.wait(timeout=PATIENCE)
        except psutil.NoSuchProcess:  # it went with a driver that was killed just before
            continue
        return 1
    return 0


def _steady(root: Path, seconds: float) -> dict:
    (root / "calls.seconds").write_text(str(seconds))
    return {"steady": {"kind": "custom", "cls": "job_workers:Steady", "options": {"log": str(root / "calls.log")}}}
