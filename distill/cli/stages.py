"""`distill <stage>`, one command per stage of the registry, and `run` and `status` over all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from distill.cli.options import Limit, Overrides, RecipeFile, Redo, Round
from distill.cli.plan import print_dry_run
from distill.cli.status import print_status
from distill.pipeline.registry import STAGES
from distill.pipeline.run import parse_part, run_part, run_pipeline
from distill.pipeline.status import stage_states
from distill.recipe.expand import open_run, open_runs
from distill.recipe.load import load_recipe
from distill.run.stage import Stage

Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Run without Ray as task I (from 0) of a job array of N; the last task to end finishes the stage.",
    ),
]
Statistics = Annotated[bool, typer.Option("--stats", help="Then show statistics of the stage's output.")]


def add_commands(app: typer.Typer) -> None:
    for stage in STAGES:
        app.command(stage.name, help=stage.help)(_command(stage))
    app.command("run")(run)
    app.command()(status)


def _command(stage: Stage) -> Callable[..., None]:
    """The command of a stage, with the options that apply to it."""

    def execute(
        recipe: Path,
        overrides: list[str] | None,
        limit: int | None,
        round: int | None,
        redo: bool,
        *,
        shard: str | None = None,
        stats: bool = False,
    ) -> None:
        loaded = load_recipe(recipe, overrides or ())
        if shard is not None:
            run_part(open_run(loaded, limit, round), stage.name, parse_part(shard), redo)
            return
        run = run_pipeline(loaded, only=stage.name, round=round, limit=limit, redo=redo)
        if stats and stage.statistics is not None:
            stage.statistics(run)

    def command(
        recipe: RecipeFile, overrides: Overrides = None, limit: Limit = None, round: Round = None, redo: Redo = False
    ) -> None:
        execute(recipe, overrides, limit, round, redo)

    def in_parts(
        recipe: RecipeFile,
        overrides: Overrides = None,
        limit: Limit = None,
        round: Round = None,
        redo: Redo = False,
        shard: Shard = None,
    ) -> None:
        execute(recipe, overrides, limit, round, redo, shard=shard)

    def with_statistics(
        recipe: RecipeFile,
        overrides: Overrides = None,
        limit: Limit = None,
        round: Round = None,
        redo: Redo = False,
        stats: Statistics = False,
    ) -> None:
        execute(recipe, overrides, limit, round, redo, stats=stats)

    return in_parts if stage.part else with_statistics if stage.statistics else command


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    redo: Redo = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what each stage would do.")] = False,
) -> None:
    """Run every stage that is not done yet, and print the final table."""
    loaded = load_recipe(recipe, overrides or ())
    if dry_run:
        print_dry_run(loaded, limit)
    else:
        run_pipeline(loaded, limit=limit, redo=redo)


def status(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and compare its checksum.")] = False,
) -> None:
    """Show which stages of a recipe are done, why others must run, and the state of Slurm jobs."""

    states = stage_states(open_runs(load_recipe(recipe, overrides or ()), limit), verify=verify)
    if as_json:
        print(json.dumps([state.as_dict() for state in states], indent=2))
    else:
        print_status(states)
    if any(state.damaged or state.damaged_caches for state in states):
        raise typer.Exit(2)
