"""The other checkpoints that an evaluation compares the student with."""

from __future__ import annotations

from pathlib import Path

from distill.run.run import Run


def other_students(run: Run) -> dict[str, tuple[str, Path]]:
    """Checkpoints to compare with, name -> (title, folder): the untrained student and the previous round's student.

    `evaluate.start: false` leaves out the untrained student, as does a round that starts from the previous round's
    student, which would be listed twice.
    """
    students = {}
    if run.recipe.evaluate.start and (
        run.recipe.follows is None or run.recipe.trained_student.model != str(run.recipe.follows.checkpoint)
    ):
        students["start"] = ("student before training", run.folder.start)
    if run.recipe.follows is not None:
        students["previous"] = ("student of the round before", run.recipe.follows.checkpoint)
    return {name: (title, path) for name, (title, path) in students.items() if path.exists()}
