"""Print what a recipe costs, as a table or JSON: the output of `run --dry-run` and of `plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from distill.config import Recipe
from distill.pipeline.estimate import Estimate, dry_run
from distill.planning.volumes import in_bytes
from distill.run.truncation import TruncationRecord


def print_dry_run(recipe: Recipe, limit: int | None = None) -> None:
    """Print what `distill run` would do: pairs, shards, steps, tokens and disk space of every stage."""
    disk = 0.0
    for round in dry_run(recipe, limit):
        print(f"{round.run.recipe.name}, into {round.run.folder.root}; sizes from {round.size.origin}")
        for field, words in round.chosen.items():
            print(f"  {field}: {words}")
        for stage in round.planned:
            bytes_ = "" if stage.cost.disk is None else f"  [{in_bytes(stage.cost.disk)}]"
            print(f"  {stage.stage:<9} {stage.cost.work}{bytes_}")
            disk += stage.cost.disk or 0
        _print_truncation(round.truncation)
    print(f"  disk space in total, without models: {in_bytes(disk)}")


def _print_truncation(record: TruncationRecord | None) -> None:
    """Print what the models do not read, once the data are imported."""
    if record is not None:
        for figure in record.figures:
            print(f"  {'! ' if figure.alarming else ''}{figure.sentence()}")
        for reader, reason in record.unknown.items():
            print(f"  ! not known what the {reader} cuts: {reason}")


def print_estimate(recipe: Recipe, plan: Estimate, *, as_json: bool = False) -> None:
    if as_json:
        print(json.dumps(as_dict(plan), indent=2))
    else:
        _print(recipe, plan)


def as_dict(plan: Estimate) -> dict[str, Any]:
    memory = None if plan.memory is None else {**asdict(plan.memory), "total": plan.memory.total}
    return {
        "gpus": plan.gpus,
        "device": asdict(plan.device),
        "sizes_from": plan.sizes_from,
        "probe": None if plan.probe is None else str(plan.probe),
        "stages": [{"round": round, "stage": stage, **asdict(cost)} for round, stage, cost in plan.costs],
        "disk_bytes": {planned.stage: planned.cost.disk for planned in plan.planned},
        "wall_seconds": plan.wall_seconds,
        "device_seconds": plan.device_seconds,
        "not_counted": plan.not_counted,  # number of parts that both leave out
        "training": {"ranks": plan.ranks, "memory_bytes": memory} if plan.ranks else None,
        "slurm_jobs": plan.jobs,
        "truncation": None if plan.truncation is None else asdict(plan.truncation),
    }


def _print(recipe: Recipe, plan: Estimate) -> None:
    console = Console()
    several = any(planned.round > 1 for planned in plan.planned)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for title in (("round",) if several else ()) + (
        "stage",
        "",
        "tokens",
        "FLOPs",
        f"{plan.device.name} hours",
        "wall",
        "basis",
    ):
        table.add_column(
            title, justify="right" if title not in ("stage", "", "basis") else "left", no_wrap=title != "basis"
        )
    for number, stage, cost in plan.costs:
        table.add_row(
            *([str(number)] if several else []),
            stage,
            cost.part,
            _amount(cost.tokens),
            _amount(cost.flops),
            _hours(cost.device_seconds),
            _time(cost.wall_seconds),
            cost.basis + (f" [{cost.bound}]" if cost.bound else ""),
        )
    table.add_section()
    omitted = f"; {plan.not_counted} part{'s' * (plan.not_counted > 1)} not counted" if plan.not_counted else ""
    table.add_row(
        *([""] if several else []),
        "at least" if omitted else "in all",
        "",
        "",
        "",
        _hours(plan.device_seconds),
        _time(plan.wall_seconds),
        f"one stage after the other{omitted}",
    )
    print(
        f"{recipe.name} on {plan.gpus} x {plan.device.name}; sizes from {plan.sizes_from}; rates from "
        + (str(plan.probe) if plan.probe else "assumptions (`distill run --limit 200` on such a device measures)")
    )
    console.print(table, markup=False)
    print(f"disk space, without models: {in_bytes(sum(planned.cost.disk or 0 for planned in plan.planned))}")
    if plan.memory is not None:
        memory = plan.memory
        print(
            f"memory per training process ({plan.ranks}): {in_bytes(memory.total)} (weights and optimizer "
            f"{in_bytes(memory.states)}, a chunk's graph {in_bytes(memory.graph)}, kept graphs at most "
            f"{in_bytes(memory.kept)}, the batch {in_bytes(memory.batch)}); {plan.device.name} has "
            f"{in_bytes(plan.device.memory)}"
        )
        if memory.total > plan.device.memory:
            print("this does not fit: lower train.chunk_tokens or train.activation_budget, or raise the ZeRO stage")
    _print_truncation(plan.truncation)
    print(f"Slurm jobs with `distill submit --all`: {plan.jobs}")


def _amount(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _hours(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 3600:,.2f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
