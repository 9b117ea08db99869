"""A training process started by `launch.start`: python -m distill.training.worker RECIPE RUN_FOLDER OUTCOME."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.errors import DataError, DistillError, TrainingError
from distill.recipe.load import load_recipe
from distill.run.files import stage_errors
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.training.preemption import watching
from distill.training.stage import outputs


def main(recipe_file: str, root: str, outcome_file: str) -> int:
    """Train, write the summary or the error to `outcome_file`, and return the exit status."""
    with watching():  # before the imports, which take seconds
        from distill.training.trainer import train_process

        try:
            recipe = load_recipe(recipe_file)
            run = Run(recipe, replace(RunFolder.of(recipe), root=Path(root)))
            with stage_errors(run.folder.root):
                outcome: dict[str, Any] = {"summary": train_process(run, *outputs(run))}
            status = 0
        except DistillError as error:
            # a `DataError` takes its position apart; the message has it already
            kind = TrainingError if isinstance(error, DataError) else type(error)
            outcome, status = {"error": kind.__name__, "message": str(error)}, error.exit_status
    Path(outcome_file).write_text(json.dumps(outcome), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
