"""Commands on finished runs: `compare` and `push`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distill.cli.options import Limit, Overrides, RecipeFile
from distill.recipe.expand import open_runs
from distill.recipe.load import load_recipe
from distill.reporting.comparison import print_comparison


def add_commands(app: typer.Typer) -> None:
    app.command()(compare)
    app.command()(push)


def compare(
    run_a: Annotated[Path, typer.Argument(help="A run folder, or a TREC run file.")],
    run_b: Annotated[Path, typer.Argument(help="Another one, judged on the same queries.")],
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", "-m", help="A metric of ir-measures, nDCG@10 by default; may be repeated."),
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", help="Judgements for TREC run files, in BEIR's or TREC's format.")
    ] = None,
    queries: Annotated[
        int, typer.Option("--queries", "-n", min=0, help="Number of most different queries to show.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test whether one run is better than another: means, paired t-test and randomisation test, wins and losses."""
    from distill.evaluation.compare import compare as compare_runs

    comparison = compare_runs(run_a, run_b, metric or ("nDCG@10",), qrels=qrels, most=queries)
    if as_json:
        print(json.dumps(comparison, indent=2, ensure_ascii=False))
    else:
        print_comparison(comparison)


def push(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    *,
    repo: Annotated[str, typer.Option("--repo", help="Repository on the hub, organisation/model; created if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Create it as a private repository.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch instead of main; created if missing.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the files and their sizes.")] = False,
) -> None:
    """Upload a finished run's last model to the Hugging Face hub, with its card, recipe and evaluation."""
    from distill.reporting.hub import push as push_run

    last = open_runs(load_recipe(recipe, overrides or ()), limit)[-1]
    print(push_run(last, repo, private=private, revision=revision, dry_run=dry_run))
