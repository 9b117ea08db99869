"""What can go wrong in a way a person can mend.

Every `DistillError` is printed by the command line as one message, without a traceback, and ends the
process with its `exit_status`. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class DistillError(Exception):
    """Base of all errors that say what is wrong, where, and what to do."""

    exit_status = 2


class RecipeError(DistillError):
    """The recipe, or an override of it, is not valid."""


class DataError(DistillError):
    """An input file holds something that cannot be used.

    `path`, `line` (1-based) and `field` are prefixed to the message as far as they are known.
    """

    def __init__(
        self, message: str, *, path: str | Path | None = None, line: int | None = None, field: str | None = None
    ):
        where = str(path) if path is not None else ""
        if line is not None:
            where += f":{line}" if where else f"line {line}"
        if field is not None:
            where += f" [{field}]" if where else f"field {field}"
        super().__init__(f"{where}: {message}" if where else message)
        self.path, self.line, self.field = path, line, field


class FingerprintError(DistillError):
    """A folder was made from other inputs or by another recipe than the one at hand."""


class StorageError(DistillError):
    """The disk is full, or a file on it is damaged."""


class TeacherError(DistillError):
    """A teacher cannot be loaded, or returns scores that cannot be used."""


class StudentError(DistillError):
    """A student cannot be built, loaded or saved."""


class TrainingError(DistillError):
    """Training cannot start or cannot go on."""


class SlurmError(DistillError):
    """Slurm is not there, or refuses what it is asked."""


class HubError(DistillError):
    """A run cannot be shared, or the hub refuses it."""


class Preempted(DistillError):
    """The run was asked to stop, has saved its state, and should be started again."""

    exit_status = 75  # EX_TEMPFAIL: the convention that job scripts requeue on
