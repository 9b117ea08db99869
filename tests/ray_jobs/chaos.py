"""Random kills of a scoring job; the seed decides which process dies, and when."""

from __future__ import annotations

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

from distill.config import Cluster
from distill.recipe.load import dump_recipe
from distill.run.joblog import JobLog
from distill.run.layout import RunFolder
from distill.store.candidates import iterate_candidates
from distill.store.texts import TextStore
from tests.helpers.stages import score_local
from tests.ray_jobs.small_job import committed, recipe_for, score_files, steady, write_job

PATIENCE = 120.0  # seconds without any progress


@dataclass
class Damage:
    """Number of killed processes, each seen to be dead."""

    workers: int = 0
    drivers: int = 0
    log: list[str] = field(default_factory=list)


def chaos(root: Path, shards: int, kills: int, drivers: int, seed: int) -> tuple[RunFolder, Damage]:
    """Run a job of `shards` shards on the running Ray and kill `drivers` of its drivers, and workers for the rest.

    Each kill falls at a random moment between two commits; a killed driver is started again. Returns the finished run
    folder and the number of kills.
    """
    rng, damage = random.Random(seed), Damage()
    folder = write_job(root / "chaos", queries=shards - 1, per_shard=1)
    recipe = recipe_for(folder, steady(root, seconds=0.1), max_tries=kills).model_copy(
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
                while damage.workers == before:  # the listed ones may end with a killed driver
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
    score_local(recipe_for(folder, steady(root, seconds=0)), folder)
    return folder


def check(root: Path, shards: int, kills: int, drivers: int, seed: int) -> None:
    """Check that a job with kills ends with the bytes of one without, and scores no committed shard again."""
    folder, damage = chaos(root, shards, kills, drivers, seed)
    scored = [line.split(" ", 2) for line in (root / "calls.log").read_text().splitlines()]
    (root / "calls.log").unlink()
    assert (damage.drivers, damage.workers) == (drivers, kills - drivers), damage.log
    events = list(JobLog(folder).events())
    kinds = Counter(event["event"] for event in events)
    assert kinds["start"] - kinds["end"] <= drivers and kinds["stopped"] == 0
    assert 0 < kinds["death"] <= kills - drivers  # those that a driver saw
    commits = Counter(event["task"] for event in events if event["event"] == "done" and event["shard"] is not None)
    assert max(commits.values()) == 1
    assert score_files(folder) == score_files(undisturbed(root, shards))
    assert len({pid for pid, *_ in scored}) > (kills - drivers) / 2  # workers did die while scoring
    _no_scoring_after_commit(folder, scored)


def _no_scoring_after_commit(folder: RunFolder, scored: list[list[str]]) -> None:
    committed_at = {}
    for split in ("train", "test"):
        texts = TextStore.open(folder.queries(split))
        for name, candidates in iterate_candidates(folder.candidates(split)):
            path = folder.scores("steady", split) / name
            committed_at[texts.texts(candidates.query[:1])[0]] = path.stat().st_ctime_ns
    assert len(committed_at) == len({query for *_, query in scored})
    late = [query for _, began, query in scored if int(began) > committed_at[query]]
    assert not late, f"scored again after they were committed: {late}"


class DriverStarter:
    """Starts `distill score` on one recipe, each time in a new process."""

    def __init__(self, path: Path, recipe: str):
        self._path = path
        path.write_text(recipe, encoding="utf-8")

    def __call__(self) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.ray_jobs.drive", str(self._path)], stderr=subprocess.DEVNULL
        )


def wait_for(condition, driver: subprocess.Popen) -> None:
    """Wait for a condition; fails if the driver ends first, or after `PATIENCE` seconds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert driver.poll() is None, f"the driver ended by itself with status {driver.returncode}"
        assert time.monotonic() < give_up, "the job makes no progress"
        time.sleep(0.03)


def workers(kind: str = "ScoreWorker") -> list[psutil.Process]:
    """Processes of the actors on this process's Ray, idle or busy."""
    actors = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())  # read once: a dying process loses it
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if title.startswith(f"ray::{kind}"):
            actors.append(process)
    return actors


def _kill_one(rng: random.Random) -> int:
    """Kill one of the workers; returns the number killed."""
    while alive := workers():
        victim = rng.choice(sorted(alive, key=lambda process: process.pid))
        try:
            victim.kill()
            victim.wait(timeout=PATIENCE)
        except psutil.NoSuchProcess:  # it ended with a driver that was killed before
            continue
        return 1
    return 0
