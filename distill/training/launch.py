"""Starting the training processes of one machine, or taking one's place among those that a launcher started."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from distill import config, errors
from distill.data.layout import RunFolder
from distill.recipe_file import dump_recipe
from distill.training.preemption import SIGNALS, mark

GRACE_SECONDS = 120  # for the other processes to end by themselves after one has


def placed() -> bool:
    """Whether a launcher (torchrun, deepspeed, srun) started this process as one of several; srun's variables are
    rewritten as torch's, which everything below reads."""
    environment = os.environ
    if "RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
        environment.setdefault("MASTER_PORT", str(20_000 + int(environment["SLURM_JOB_ID"]) % 20_000))
        environment.update(
            RANK=environment["SLURM_PROCID"],
            LOCAL_RANK=environment["SLURM_LOCALID"],
            WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
        )
    return "RANK" in environment and "MASTER_ADDR" in environment


def first_host(nodelist: str) -> str:
    """The first host of Slurm's compressed list: "node[03-05,9],other" is node03."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodelist)
    assert match is not None, nodelist
    return match[1] + (match[2] or "")


def processes_here(recipe: config.Recipe) -> int:
    """How many processes to start: as the recipe says, else one a GPU, or one."""
    if recipe.train.processes is not None:
        return recipe.train.processes
    import torch

    return max(torch.cuda.device_count(), 1)


def start(recipe: config.Recipe, folder: RunFolder, processes: int) -> dict[str, Any]:
    """Run `train` in so many processes of this machine and wait for them; signals to stop are passed on.

    Returns what rank 0 returned. Raises what a process raised, if a person can mend it, or a `TrainingError`.
    """
    folder.logs.mkdir(parents=True, exist_ok=True)
    environment = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // processes))),
    }
    with tempfile.TemporaryDirectory(prefix="distill-train-") as temporary:
        recipe_file = Path(temporary) / "recipe.yaml"
        recipe_file.write_text(dump_recipe(recipe), encoding="utf-8")
        outcomes = [Path(temporary) / f"rank-{rank}.json" for rank in range(processes)]
        workers = [_worker(recipe_file, folder, outcome, rank, environment) for rank, outcome in enumerate(outcomes)]
        first = _wait(workers)
        return _outcome(workers, outcomes, folder, first)


def _worker(
    recipe_file: Path, folder: RunFolder, outcome: Path, rank: int, environment: dict[str, str]
) -> subprocess.Popen:
    command = [sys.executable, "-m", "distill.training.worker", str(recipe_file), str(folder.root), str(outcome)]
    with open(_log_file(folder, rank), "w", encoding="utf-8") as output:
        stream = None if rank == 0 else output  # rank 0 speaks for all
        return subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )


def _wait(workers: list[subprocess.Popen]) -> int | None:
    """Until all have ended; which one failed first. Once one has, the others get some time, then are ended."""
    before = (
        {
            number: signal.signal(number, lambda number, _: [worker.send_signal(number) for worker in workers])
            for number in SIGNALS
        }
        if threading.current_thread() is threading.main_thread()
        else {}
    )
    deadline, first = math.inf, None
    try:
        while True:
            running = any(worker.poll() is None for worker in workers)
            failed = [rank for rank, worker in enumerate(workers) if worker.returncode]
            if first is None and failed:
                # of several that are seen together, one that was killed made the others fail
                first = min(failed, key=lambda rank: workers[rank].returncode > 0)
                deadline = time.monotonic() + GRACE_SECONDS
            if not running or time.monotonic() > deadline:
                return first
            time.sleep(0.1)
    finally:
        for worker in workers:  # also after Ctrl-C in this process
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(
    workers: list[subprocess.Popen], outcomes: list[Path], folder: RunFolder, first: int | None
) -> dict[str, Any]:
    told = {rank: json.loads(path.read_text(encoding="utf-8")) for rank, path in enumerate(outcomes) if path.exists()}
    failures = [(rank, outcome) for rank, outcome in told.items() if "error" in outcome]
    for _, outcome in failures:
        raise getattr(errors, outcome["error"])(outcome["message"])
    if any(-worker.returncode in SIGNALS for worker in workers):  # before they could handle them
        mark(folder, step=0)
        raise errors.Preempted("asked to stop before training began; start it again")
    if first is not None:
        where = "above" if first == 0 else f"in {_log_file(folder, first)}"
        raise errors.TrainingError(
            f"training process {first} ended with status {workers[first].returncode}; its output is {where}"
        )
    return told[0]["summary"]


def _log_file(folder: RunFolder, rank: int) -> Path:
    return folder.logs / f"train-rank-{rank}.log"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
