"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MOST = 10**9  # of numbers on the command line

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML), e.g. configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PATH=VALUE]...",
        help="Overrides, e.g. train.lr=1e-5 run_dir=/scratch/run; ~PATH takes a part away, e.g. ~teachers.bm25.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the code of a class that the checkpoint names; only for checkpoints whose origin you trust.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST,
        help="Rehearse with N queries of every split, in a separate run folder (<run>-limit-N).",
    ),
]
Redo = Annotated[
    bool,
    typer.Option(
        "--redo",
        help="If the existing output was made from another recipe, set it aside and run again instead of stopping.",
    ),
]
Round = Annotated[
    int | None,
    typer.Option("--round", min=1, max=MOST, help="Round of a recipe with several; the first by default."),
]
