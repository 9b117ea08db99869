"""`distill benchmark`: checkpoints on the judged collections of a suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from distill.cli.options import MOST, Redo, TrustRemoteCode
from distill.recipe.suites import load_suite, suite_names


def add_commands(app: typer.Typer) -> None:
    app.command()(benchmark)


def benchmark(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="Folders, hub names or package:NAME/FOLDER.")
    ],
    suite: Annotated[
        str,
        typer.Option("--suite", help=f"{', '.join(suite_names())}, or a YAML file of your own (docs/benchmark.md)."),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with one folder per collection, in BEIR's layout.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for texts, indexes, runs and results [runs/benchmark-SUITE].")
    ] = None,
    collections: Annotated[
        list[str] | None, typer.Option("--collection", "-c", help="Measure this one only; may be repeated.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch what is not in --data through ir_datasets (optional extra).")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out what is missing instead of stopping.")
    ] = False,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", min=1, max=MOST, help="Padded tokens of a batch.")
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option("--precision", help="Of the encoders' products."),
    ] = "float32",
    trust_remote_code: TrustRemoteCode = False,
    redo: Redo = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure checkpoints beside BM25 and published figures on the judged collections of a suite."""
    from distill.pipeline.benchmark import Options, chosen
    from distill.pipeline.benchmark import benchmark as run_benchmark
    from distill.reporting.benchmark import print_benchmark, write_pages

    loaded, name = load_suite(suite), Path(suite).stem
    options = Options(
        data=data,
        out=out or Path("runs") / f"benchmark-{name}",
        download=download,
        allow_missing=allow_missing,
        batch_tokens=batch_tokens,
        precision=precision,
        trust_remote_code=trust_remote_code,
        redo=redo,
    )
    result = run_benchmark(checkpoints, chosen(loaded, collections or ()), options)
    write_pages(result, name, options.out)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        print_benchmark(result, name)
        print(f"results: {options.out / 'benchmark.json'}, benchmark.md, benchmark.svg")
