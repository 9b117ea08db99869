"""What is asked of Slurm, through its commands, and the record of the jobs that were submitted for a run.

Every value reaches Slurm as one argument of a command: no shell reads it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.data.files import read_json, write_json
from distill.data.layout import RunFolder
from distill.errors import SlurmError

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
    """A submitted job, or array of jobs: `id` is the one that `squeue --jobs` takes."""

    id: str
    stages: tuple[str, ...]
    log: str  # file name pattern, as sbatch takes it
    command: tuple[str, ...]


def ask(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a command of Slurm's prints. Raises `SlurmError` where it is not there, or fails."""
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]}: not found; is this a machine that submits to Slurm?")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SlurmError(f"{command[0]} failed: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout.strip()


def record_jobs(launch: Path, jobs: Sequence[Job]) -> None:
    """Write down the jobs of one launch, in its folder."""
    write_json(launch / "jobs.json", [asdict(job) for job in jobs])


def recorded_jobs(folder: RunFolder) -> list[Job]:
    """The jobs of all launches, the oldest first."""
    records = sorted(folder.jobs.glob("*/jobs.json"), key=lambda path: int(path.parent.name))
    return [
        Job(job["id"], tuple(job["stages"]), job["log"], tuple(job["command"]))
        for path in records
        for job in read_json(path)
    ]


def job_states(ids: Collection[str]) -> dict[str, str]:
    """Each job's state in Slurm's words, of an array how many tasks are in each; UNKNOWN: forgotten long ago.

    Raises `SlurmError` where `squeue` cannot be asked.
    """
    counts: dict[str, Counter[str]] = {job: Counter() for job in ids}
    command = ["squeue", "--array", "--states=all", "--noheader", "--format=%F|%T|%r", f"--jobs={','.join(ids)}"]
    try:
        _count(counts, ask(command))
    except SlurmError as error:
        if "Invalid job id" not in str(error):  # what it says of a single job that it has forgotten
            raise
    forgotten = {job: counts[job] for job in ids if not counts[job]}
    if forgotten:
        with contextlib.suppress(SlurmError):  # many have no accounting
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
    """Whether a job in this state, as `job_states` words it, waits or runs."""
    return any(part.lstrip("0123456789 ").split()[0] not in ENDED for part in state.split(", "))


def _count(counts: dict[str, Counter[str]], said: str) -> None:
    for line in said.splitlines():
        job, state, *reason = line.split("|")
        states = counts.get(job.split("_")[0])
        if states is not None:
            waits = state == "PENDING" and reason and reason[0] not in ("None", "")
            states[f"PENDING ({reason[0]})" if waits else state] += 1


def _in_words(states: Counter[str]) -> str:
    if not states:
        return "UNKNOWN"
    if len(states) == 1:
        return next(iter(states))
    return ", ".join(f"{count} {state}" for state, count in states.most_common())
