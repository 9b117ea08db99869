"""One training process started by `launch.start`: python -m distill.training.worker RECIPE RUN_FOLDER OUTCOME."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from distill.data.layout import RunFolder
from distill.errors import DataError, DistillError, TrainingError
from distill.recipe_file import load_recipe
from distill.training.preemption import watching


def main(recipe_file: str, root: str, outcome_file: str) -> int:
    with watching():  # before the imports, which take seconds
        from distill.training.loop import train_process

        try:
            recipe = load_recipe(recipe_file)
            outcome, status = {"summary": train_process(recipe, replace(RunFolder.of(recipe), root=Path(root)))}, 0
        except DistillError as error:
            kind = TrainingError if isinstance(error, DataError) else type(error)  # has its place in the message
            outcome, status = {"error": kind.__name__, "message": str(error)}, error.exit_status
    Path(outcome_file).write_text(json.dumps(outcome), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
