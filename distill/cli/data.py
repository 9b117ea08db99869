"""Commands on data and checkpoints: `show`, `init`, `inspect`, `search`, `export`, `export-index`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distill.cli.init import write_recipe_for
from distill.cli.inspect import inspect_path, search_and_print
from distill.cli.options import MOST, Limit, Overrides, RecipeFile, Round, TrustRemoteCode
from distill.config import Recipe
from distill.export import export_scores
from distill.recipe.expand import open_run
from distill.recipe.load import dump_recipe, load_recipe


def add_commands(app: typer.Typer) -> None:
    for command in (show, init, inspect, search, export):
        app.command()(command)
    app.command("export-index")(export_index)


def show(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="Recipe file (YAML), e.g. configs/quickstart.yaml.")
    ] = None,
    overrides: Overrides = None,
    folder: Annotated[bool, typer.Option("--folder", help="Print the run folder alone, for scripts.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of all recipes instead, for editors.")
    ] = False,
) -> None:
    """Print the recipe with every default written out."""
    if schema and (recipe is not None or folder):
        raise typer.BadParameter("it describes all recipes; leave out RECIPE and --folder", param_hint="--schema")
    if schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2, ensure_ascii=False))
        return
    if recipe is None:
        raise typer.BadParameter("name a recipe file, or give --schema", param_hint="RECIPE")
    loaded = load_recipe(recipe, overrides or ())
    print(loaded.folder if folder else dump_recipe(loaded), end="\n" if folder else "")


def init(
    data: Annotated[
        Path,
        typer.Argument(
            help="A BEIR or MS MARCO folder, a dataset saved by `datasets`, or a JSONL, CSV, TSV or Parquet file."
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the recipe.")] = None,
    query_log: Annotated[
        Path | None,
        typer.Option(
            "--query-log", help="Queries without judgements to train on, too: .txt, JSONL, CSV, TSV or Parquet."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Inspect a folder or file, describe what it contains, and write a recipe for it."""

    print(write_recipe_for(data, output, query_log=query_log, force=force))


def inspect(
    path: Annotated[
        str, typer.Argument(help="A checkpoint (a folder, or a name on the hub), a shard (.arrow), or a store.")
    ],
    text: Annotated[str | None, typer.Argument(help="With a checkpoint: the text to encode.")] = None,
    rows: Annotated[
        int, typer.Option("--rows", "-n", min=1, max=MOST, help="Number of terms, or shard rows, to show.")
    ] = 20,
    query: Annotated[bool, typer.Option("--query", help="Encode the text as a query, not as a passage.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show a checkpoint's strongest terms for a text, or a shard's rows with their texts."""

    inspect_path(path, text, rows=rows, as_query=query, trust_remote_code=trust_remote_code)


def search(
    checkpoint: Annotated[str, typer.Argument(help="A SPLADE checkpoint: a folder, or a name on the hub.")],
    data: Annotated[Path, typer.Argument(help="A run folder, or a BEIR folder.")],
    query: Annotated[str, typer.Argument(help="What to search for.")],
    beside: Annotated[str | None, typer.Option("--beside", help="A second checkpoint to compare with.")] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, max=MOST, help="Number of passages to show.")] = 5,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Search passages with a checkpoint and show the matching terms."""

    search_and_print(checkpoint, data, query, beside=beside, top=top, trust_remote_code=trust_remote_code)


def export(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    round: Round = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .jsonl, .jsonl.gz, .parquet, or a name without an extension for a folder of "
            "`datasets`; naver: .json, .json.gz; trec: .run, .run.gz, .trec, .trec.gz.",
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="lists (one row per query with everything); triplet, n-tuple, labeled-list (sentence-transformers); "
            "flagembedding; naver; trec.",
        ),
    ] = "lists",
    teacher: Annotated[
        str | None, typer.Option("--teacher", "-t", help="Export this teacher's raw scores instead of the labels.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, dev or test.")] = "train",
    negatives: Annotated[
        int | None,
        typer.Option(
            "--negatives",
            "-n",
            min=1,
            max=MOST,
            help="Export the first N negatives of each query; leave out queries with fewer.",
        ),
    ] = None,
    ids: Annotated[
        bool,
        typer.Option(
            "--ids",
            help="Add columns of ids to the sentence-transformers layouts; drop them before training, or the trainer "
            "takes them for texts.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write scores or labels, with texts and ids, in a format that other tools read."""

    print(
        export_scores(
            open_run(load_recipe(recipe, overrides or ()), limit, round),
            output,
            format=format,
            teacher=teacher,
            split=split,
            negatives=negatives,
            ids=ids,
            force=force,
        )
    )


def export_index(
    checkpoint: Annotated[str, typer.Argument(help="A SPLADE checkpoint: a folder, or a name on the hub.")],
    data: Annotated[Path, typer.Argument(help="A run folder, or a BEIR folder, whose passages to encode.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    format: Annotated[str, typer.Option("--format", "-f", help="anserini, opensearch, qdrant, seismic.")] = "anserini",
    queries: Annotated[
        str | None, typer.Option("--queries", help="Also encode these queries: train, dev, test.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Encode a collection into the files that a search engine reads."""
    from distill.export.index_files import export_index

    print(export_index(checkpoint, data, output, format=format, split=queries, trust_remote_code=trust_remote_code))
