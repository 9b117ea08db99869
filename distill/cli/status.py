"""`distill status` for people: a line a stage, the scoring job below."""

from __future__ import annotations

from distill.pipeline import StageState
from distill.reporting.scoring import print_scoring


def print_status(states: list[StageState]) -> None:
    for place, state in enumerate(states):
        if state.round is not None and (not place or states[place - 1].round != state.round):
            print(f"round {state.round}")
        job = f"[Slurm job {state.slurm['job']}: {state.slurm['state']}] " if state.slurm else ""
        print(f"{state.stage:<9} {state.state:<8} {job}{state.reason}".rstrip())
        for path in state.damaged:
            print(f"          damaged: {path}; remove its manifest.json and run the stage again")
    for state in states:
        if state.job is not None:
            print(f"\nround {state.round}" if state.round is not None else "")
            print_scoring(state.job)
