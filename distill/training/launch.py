"""Start this machine's training processes, or join those that a launcher has started.

`torch.distributed.launcher.elastic_launch` does not serve here: it kills the processes 30 s after SIGTERM, too soon to
save a checkpoint.
"""

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill import config, errors
from distill.errors import RecipeError, TrainingError
from distill.recipe.load import dump_recipe
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.run.signals import STOP_SIGNALS
from distill.training.preemption import STOPPED_EARLY, mark

GRACE_SECONDS = 120  # for the other processes to exit by themselves after one has failed


def under_launcher() -> bool:
    """Whether a launcher started this process with a rank: torchrun, deepspeed, or srun after `adopt_slurm_ranks`."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def adopt_slurm_ranks() -> None:
    """Under srun with several tasks, set torch's environment variables (RANK, ...) from Slurm's."""
    environment = os.environ
    if "RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
        environment.setdefault("MASTER_PORT", str(20_000 + int(environment["SLURM_JOB_ID"]) % 20_000))
        environment.update(
            RANK=environment["SLURM_PROCID"],
            LOCAL_RANK=environment["SLURM_LOCALID"],
            WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
        )


def first_host(nodelist: str) -> str:
    """First host of Slurm's compressed list: "node[03-05,9],other" is node03, "rack[1-2]_blade[3-4]" rack1_blade3."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodelist)
    if first is None:
        raise TrainingError(f"SLURM_STEP_NODELIST is {nodelist!r}, which is no list of hosts; set MASTER_ADDR")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def processes_here(recipe: config.Recipe) -> int:
    """Number of processes to start: as the recipe says, else one per GPU, else one.

    Raises `RecipeError` for more processes than GPUs.
    """
    import torch

    gpus, processes = torch.cuda.device_count(), recipe.train.processes
    if processes is not None and gpus and processes > gpus:
        raise RecipeError(
            f"train.processes is {processes}, but this machine has {gpus} GPU{'s' if gpus > 1 else ''}; leave it out "
            "for one process per GPU, or set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
        )
    return processes or max(gpus, 1)


def start(run: Run, processes: int) -> dict[str, Any]:
    """Run `train` in `processes` processes on this machine and wait for them; stop signals are forwarded.

    Returns rank 0's result. Raises a process's own error if it was a `DistillError`, else a `TrainingError`.
    """
    run.folder.logs.mkdir(parents=True, exist_ok=True)
    environment = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // processes))),
    }
    with tempfile.TemporaryDirectory(prefix="distill-train-") as temporary:
        recipe_file = Path(temporary) / "recipe.yaml"
        recipe_file.write_text(dump_recipe(run.recipe), encoding="utf-8")
        outcomes = [Path(temporary) / f"rank-{rank}.json" for rank in range(processes)]
        workers = [
            _worker(recipe_file, run.folder, outcome, rank, environment) for rank, outcome in enumerate(outcomes)
        ]
        with _stop_signals_forwarded(workers):
            failed = _wait(workers)
        return _outcome(workers, outcomes, run.folder, failed)


def _worker(
    recipe_file: Path, folder: RunFolder, outcome: Path, rank: int, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start the process of one rank, which writes its result to `outcome`."""
    command = [sys.executable, "-m", "distill.training.worker", str(recipe_file), str(folder.root), str(outcome)]
    with open(_log_file(folder, rank), "w", encoding="utf-8") as output:
        stream = None if rank == 0 else output  # only rank 0 writes to the terminal
        return subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            # a terminal sends Ctrl-C to them, too; this process ends them
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )


@contextmanager
def _stop_signals_forwarded(workers: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Forward stop signals to the workers inside this block; only the main thread can handle signals."""

    def forward(number: int, _frame: object) -> None:
        for worker in workers:
            worker.send_signal(number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    forwarded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, forward) for number in forwarded} if in_main_thread else {}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(workers: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all processes have exited; returns the rank that failed first.

    After a failure the others have `GRACE_SECONDS` to exit, and are then killed.
    """
    deadline, first = math.inf, None
    try:
        while True:
            running = any(worker.poll() is None for worker in workers)
            failed = [rank for rank, worker in enumerate(workers) if worker.returncode]
            if first is None and failed:
                # of several failures seen together, one by a signal (negative code) made the others fail
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


def _outcome(
    workers: list[subprocess.Popen[bytes]], outcome_files: list[Path], folder: RunFolder, failed: int | None
) -> dict[str, Any]:
    """Rank 0's result, or the error of the first rank that reports one. `failed`: the rank that failed first."""
    outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in outcome_files if path.exists()]
    for outcome in outcomes:
        if "error" in outcome:
            raise getattr(errors, outcome["error"])(outcome["message"])
    if any(-worker.returncode in STOP_SIGNALS for worker in workers):  # killed before they could handle the signal
        mark(folder, step=0)
        raise errors.Preempted(STOPPED_EARLY)
    if failed is not None:
        output = "above" if failed == 0 else f"in {_log_file(folder, failed)}"
        raise errors.TrainingError(
            f"training process {failed} exited with status {workers[failed].returncode}; its output is {output}"
        )
    return outcomes[0]["summary"]


def _log_file(folder: RunFolder, rank: int) -> Path:
    return folder.logs / f"train-rank-{rank}.log"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
