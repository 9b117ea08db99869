"""Errors that the user can fix.

The command line prints a `DistillError` as one message without a traceback, and exits with its `exit_status`. Any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class DistillError(Exception):
    """Base class; the message says what is wrong, where, and what to do."""

    exit_status = 2


class RecipeError(DistillError):
    """The recipe or one of its overrides is invalid."""


class DataError(DistillError):
    """An input file has unusable content. The message starts with `path`, `line` (1-based) and `field`, if known."""

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
    """A folder was made from other inputs, or by another recipe, than the current one."""


class StorageError(DistillError):
    """The disk is full, or stored data is missing or damaged."""


class LimitError(DistillError):
    """A limit that the system sets, on processes, memory or open files, is too low."""


class DeviceError(DistillError):
    """A GPU cannot be used, or not in the way that was asked for."""


class ModelError(DistillError):
    """A model cannot be found, downloaded or read."""


class NotCached(ModelError):
    """A file that the hub may have is not in the local cache, and the hub cannot be reached."""


class TeacherError(ModelError):
    """A teacher cannot be loaded, or returns unusable scores."""


class StudentError(ModelError):
    """A student cannot be built, loaded or saved."""


class TrainingError(DistillError):
    """Training cannot start or continue."""


class ClusterError(DistillError):
    """The Ray that this command started has ended. Nothing is wrong with the input: the same command resumes."""

    exit_status = 1


class SlurmError(DistillError):
    """Slurm is not installed, or rejects a request."""


class HubError(DistillError):
    """A run cannot be uploaded, or the hub rejects it."""


class Preempted(DistillError):
    """The run was asked to stop and has saved its state; the same command resumes it."""

    exit_status = 75  # EX_TEMPFAIL, on which job scripts requeue by convention


class Stop(BaseException):
    """A stop signal or Ctrl-C. It is no `Exception`, so that nothing takes it for a failure and goes on."""

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status
