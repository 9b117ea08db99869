"""Slurm's commands, and the record of the jobs submitted for a run.

Every value is passed as one argument of a command; no shell interprets it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.errors import SlurmError, StorageError
from distill.run.files import read_json, write_json
from distill.run.layout import RunFolder

ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
    "REVOKED",
    "UNKNOWN",
}


@dataclass(frozen=True)
class Job:
    """A submitted job or job array; `id` as `squeue --jobs` takes it."""

    id: str
    stages: tuple[str, ...]
    log: str  # file name pattern, as sbatch takes it
    command: tuple[str, ...]


def ask(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a Slurm command and return its output. Raises `SlurmError` if the command is missing or fails."""
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]}: not found; run this on a machine that submits to Slurm")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SlurmError(f"{command[0]} failed: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout.strip()


def record_jobs(launch: Path, jobs: Sequence[Job]) -> None:
    """Record the jobs of one launch in its folder."""
    write_json(launch / "jobs.json", [asdict(job) for job in jobs])


def recorded_jobs(folder: RunFolder) -> list[Job]:
    """The jobs of all launches, oldest first."""
    records = [path for path in folder.jobs.glob("*/jobs.json") if path.parent.name.isdecimal()]
    jobs = []
    for path in sorted(records, key=lambda path: int(path.parent.name)):
        try:
            jobs += [Job(job["id"], tuple(job["stages"]), job["log"], tuple(job["command"])) for job in read_json(path)]
        except (KeyError, TypeError):
            raise StorageError(f"{path}: damaged, it is no list of jobs; remove it if they are over") from None
    return jobs


def job_states(ids: Collection[str]) -> dict[str, str]:
    """Each job's state in Slurm's words, with the number of tasks per state for an array; UNKNOWN: no longer known.

    Raises `SlurmError` if `squeue` fails.
    """
    counts: dict[str, Counter[str]] = {job: Counter() for job in ids}
    command = ["squeue", "--array", "--states=all", "--noheader", "--format=%F|%T|%r", f"--jobs={','.join(ids)}"]
    try:
        _count(counts, ask(command))
    except SlurmError as error:
        if "Invalid job id" not in str(error):  # its answer if it has forgotten the only job
            raise
    forgotten = {job: counts[job] for job in ids if not counts[job]}
    if forgotten:
        with contextlib.suppress(SlurmError):  # many clusters have no accounting
            _count(
                forgotten,
                ask(
                    [
                        "sacct",
                        "--allocations",
                        "--array",
                        "--noheader",
                        "--parsable2",
                        "--format=JobID,State",
                        f"--jobs={','.join(forgotten)}",
                    ]
                ),
            )
    return {job: _in_words(states) for job, states in counts.items()}


def live(state: str) -> bool:
    """Whether a job in this state, as `job_states` returns it, is waiting or running."""
    return any(part.lstrip("0123456789 ").split()[0] not in ENDED for part in state.split(", "))


def _count(counts: dict[str, Counter[str]], output: str) -> None:
    """Count the states in the output of squeue or sacct."""
    for line in output.splitlines():
        job, state, *reason = line.split("|")
        states = counts.get(job.split("_")[0])
        if states is not None:
            has_reason = state == "PENDING" and reason and reason[0] not in ("None", "")
            states[f"PENDING ({reason[0]})" if has_reason else state] += 1


def _in_words(states: Counter[str]) -> str:
    if not states:
        return "UNKNOWN"
    if len(states) == 1:
        return next(iter(states))
    return ", ".join(f"{count} {state}" for state, count in states.most_common())
