"""A plan for people, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from distill.config import Recipe
from distill.estimate.estimate import Estimate, estimate
from distill.plan import in_bytes


def print_estimate(recipe: Recipe, gpus: int, gpu_type: str, *, use_probe: bool = True, as_json: bool = False) -> None:
    """Work out the plan of a recipe and print it."""
    found = estimate(recipe, gpus, gpu_type, use_probe)
    if as_json:
        print(json.dumps(as_dict(found), indent=2))
    else:
        _print(recipe, found)


def as_dict(found: Estimate) -> dict[str, Any]:
    memory = None if found.memory is None else {**asdict(found.memory), "total": found.memory.total}
    return {
        "gpus": found.gpus,
        "device": asdict(found.device),
        "sizes_from": found.sizes_from,
        "probe": None if found.probe is None else str(found.probe),
        "stages": [asdict(cost) for cost in found.costs],
        "disk_bytes": {stage.stage: stage.disk for stage in found.planned},
        "wall_seconds": found.wall_seconds,
        "device_seconds": found.device_seconds,
        "not_counted": found.not_counted,  # parts that both lack
        "training": {"ranks": found.ranks, "memory_bytes": memory},
        "slurm_jobs": found.jobs,
    }


def _print(recipe: Recipe, found: Estimate) -> None:
    console = Console()
    several = any(cost.round > 1 for cost in found.costs)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for title in (("round",) if several else ()) + (
        "stage",
        "",
        "tokens",
        "FLOPs",
        f"{found.device.name} hours",
        "wall",
        "goes by",
    ):
        table.add_column(
            title, justify="right" if title not in ("stage", "", "goes by") else "left", no_wrap=title != "goes by"
        )
    for cost in found.costs:
        table.add_row(
            *([str(cost.round)] if several else []),
            cost.stage,
            cost.part,
            _amount(cost.tokens),
            _amount(cost.flops),
            _hours(cost.device_seconds),
            _time(cost.wall_seconds),
            cost.basis + (f" [{cost.bound}]" if cost.bound else ""),
        )
    table.add_section()
    lacking = f"; {found.not_counted} part{'s' * (found.not_counted > 1)} not counted" if found.not_counted else ""
    table.add_row(
        *([""] if several else []),
        "at least" if lacking else "in all",
        "",
        "",
        "",
        _hours(found.device_seconds),
        _time(found.wall_seconds),
        f"one stage after the other{lacking}",
    )
    print(
        f"{recipe.name} on {found.gpus} x {found.device.name}; sizes from {found.sizes_from}; rates from "
        + (str(found.probe) if found.probe else "assumptions (`distill run --limit 200` on such a device measures)")
    )
    console.print(table, markup=False)
    print(f"disk, without models: {in_bytes(sum(stage.disk or 0 for stage in found.planned))}")
    if found.memory is not None:
        memory = found.memory
        print(
            f"memory of each of {found.ranks} training processes: {in_bytes(memory.total)} (states "
            f"{in_bytes(memory.states)}, a chunk's graph {in_bytes(memory.graph)}, kept graphs at most "
            f"{in_bytes(memory.kept)}, the batch {in_bytes(memory.batch)}); {found.device.name} has "
            f"{in_bytes(found.device.memory)}"
        )
        if memory.total > found.device.memory:
            print("that does not fit: lower train.chunk_tokens or train.activation_budget, or raise the ZeRO stage")
    print(f"Slurm jobs with `distill submit --all`: {found.jobs}")


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
