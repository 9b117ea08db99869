"""The state of every stage of a recipe, read from the run folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from distill.errors import DistillError, SlurmError
from distill.pipeline import slurm
from distill.pipeline.registry import stages_of
from distill.pipeline.resolve import known_values
from distill.run.manifest import verify
from distill.run.output import Output
from distill.run.run import Run
from distill.run.seals import damaged as damaged_files
from distill.run.stage import Stage


@dataclass(frozen=True)
class StageState:
    """`state`: done, pending (output missing or incomplete), or stale (made from other inputs, see `reason`)."""

    stage: str
    state: Literal["done", "pending", "stale"]
    reason: str = ""
    stale: tuple[Path, ...] = ()
    damaged: tuple[str, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] | None = None  # progress of the stage's job, from `Stage.progress`
    slurm: dict[str, Any] | None = None  # the last job submitted for it and its state, see `distill.pipeline.slurm`
    damaged_caches: tuple[str, ...] = ()  # made again by the stage that reads them
    round: int | None = None  # counted from 1; None for a recipe with one round

    def as_dict(self) -> dict[str, Any]:
        tree = {**asdict(self), "stale": [str(path) for path in self.stale]}
        return {key: value for key, value in tree.items() if value is not None}


def stage_states(runs: Sequence[Run], *, verify: bool = False) -> list[StageState]:
    """The state of every stage of the given rounds, in order; `verify` compares every finished file's checksum."""
    states: list[StageState] = []
    for number, run in enumerate(runs, start=1):
        of_round = _round_states(run, verify, waits=bool(states) and states[-1].state != "done")
        states += [replace(state, round=number) for state in of_round] if len(runs) > 1 else of_round
    return states


def stage_state(stage: Stage, outputs: Sequence[Output], *, check: bool = False) -> StageState:
    """Compare a stage's outputs with the run folder; `check` also verifies the files' checksums."""
    states = [output.state() for output in outputs]
    stale = [
        (output.folder, state.difference)
        for output, state in zip(outputs, states, strict=True)
        if state.kind == "stale"
    ]
    counts = {
        str(output.folder): state.manifest.counts
        for output, state in zip(outputs, states, strict=True)
        if state.manifest is not None
    }
    damaged = tuple(
        str(output.folder / shard.name)
        for output, state in zip(outputs, states, strict=True)
        if check and state.manifest is not None
        for shard in verify(output.folder)
    )
    if stale:
        reasons = "\n".join(difference for _, difference in stale)
        return StageState(stage.name, "stale", reasons, tuple(folder for folder, _ in stale), damaged, counts)
    missing = sum(state.kind == "missing" for state in states)
    if missing:
        reason = f"{len(outputs) - missing} of {len(outputs)} outputs exist" if missing < len(outputs) else ""
        return StageState(stage.name, "pending", reason, damaged=damaged, counts=counts)
    return StageState(stage.name, "done", damaged=damaged, counts=counts)


def state_or_reason(stage: Stage, run: Run, *, check: bool = False) -> StageState:
    """Like `stage_state`, but an error that would stop the stage becomes the reason why it is pending."""
    try:
        return stage_state(stage, stage.outputs(run), check=check)
    except (DistillError, OSError) as error:
        return StageState(stage.name, "pending", f"cannot start: {error}")


def _round_states(run: Run, check: bool, waits: bool) -> list[StageState]:
    """The states of one round's stages; `waits`: the previous round is not done."""
    states: list[StageState] = []
    run = known_values(run)[0]
    for stage in stages_of(run):
        if states and states[-1].state != "done":
            state = StageState(stage.name, "pending", f"after {states[-1].stage}")
        elif waits:
            state = StageState(stage.name, "pending", "after the previous round")
        else:
            state = state_or_reason(stage, run, check=check)
        caches = tuple(map(str, damaged_files(stage.caches(run.folder)))) if check else ()
        states.append(replace(state, job=stage.progress(run), damaged_caches=caches))
    jobs = {stage: job for job in slurm.recorded_jobs(run.folder) for stage in job.stages}  # the last job of each stage
    if jobs:
        known = _slurm_states({job.id for job in jobs.values()})
        states = [
            replace(state, slurm={"job": job.id, "state": known[job.id], "log": job.log})
            if (job := jobs.get(state.stage))
            else state
            for state in states
        ]
    return states


def _slurm_states(jobs: set[str]) -> dict[str, str]:
    try:
        return slurm.job_states(jobs)
    except SlurmError as error:  # this machine may have no Slurm
        return dict.fromkeys(jobs, f"unknown, {error}")
