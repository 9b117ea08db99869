"""Print `distill status`: one line per stage, and the scoring job below."""

from __future__ import annotations

from distill.pipeline.status import StageState
from distill.reporting.scoring import print_scoring


def print_status(states: list[StageState]) -> None:
    for index, state in enumerate(states):
        if state.round is not None and (not index or states[index - 1].round != state.round):
            print(f"round {state.round}")
        job = f"[Slurm job {state.slurm['job']}: {state.slurm['state']}] " if state.slurm else ""
        print(f"{state.stage:<9} {state.state:<8} {job}{state.reason}".rstrip())
        for path in state.damaged:
            print(f"          damaged: {path}; remove its manifest.json and run the stage again")
        for path in state.damaged_caches:
            print(f"          damaged: {path}; the next stage that reads it makes it again")
    for state in states:
        if state.job is not None:
            print(f"\nround {state.round}" if state.round is not None else "")
            print_scoring(state.job)
