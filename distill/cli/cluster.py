"""Commands for clusters: `plan`, `submit`, `cancel`."""

from __future__ import annotations

from typing import Annotated

import typer

from distill.cli.options import MOST, Limit, Overrides, RecipeFile, Redo, Round
from distill.cli.plan import print_estimate
from distill.errors import RecipeError
from distill.pipeline.estimate import estimate
from distill.pipeline.submit import cancel_jobs, submit_jobs
from distill.recipe.load import load_recipe


def add_commands(app: typer.Typer) -> None:
    for command in (plan, submit, cancel):
        app.command()(command)


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    *,
    gpus: Annotated[
        int, typer.Option("--gpus", "-g", min=1, max=MOST, help="Number of devices (cpu: machines like this).")
    ] = 1,
    gpu_type: Annotated[str, typer.Option("--gpu-type", "-t", help="h100, a100, l4, ...; cpu: this machine.")] = "h100",
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="Use the measured rates of a rehearsal or an earlier run, if there is one."
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate what a recipe costs: tokens, FLOPs, device-hours, wall time, disk, memory, jobs."""

    loaded = load_recipe(recipe, overrides or ())
    print_estimate(loaded, estimate(loaded, gpus, gpu_type, limit=limit, use_probe=probe), as_json=as_json)


def submit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    round: Round = None,
    redo: Redo = False,
    stage: Annotated[str | None, typer.Option("--stage", "-s", help="Only this stage.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every stage that is not done yet, in order.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be submitted.")] = False,
) -> None:
    """Submit stages to Slurm, with dependencies and the resources of the recipe's `slurm:` section."""

    if everything == (stage is not None):
        raise RecipeError("distill submit needs either --stage NAME or --all")
    if everything and round is not None:
        raise RecipeError("distill submit: --all submits every round; use --round with --stage")
    loaded = load_recipe(recipe, overrides or ())
    submit_jobs(loaded, only=stage, round=round, limit=limit, redo=redo, dry_run=dry_run)


def cancel(recipe: RecipeFile, overrides: Overrides = None, limit: Limit = None) -> None:
    """Cancel the Slurm jobs of a recipe's run. Finished output is kept."""

    cancel_jobs(load_recipe(recipe, overrides or ()), limit=limit)
