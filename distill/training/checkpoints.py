"""Checkpoints of a run: everything needed to resume exactly, at any world size.

One folder per checkpoint, written by rank 0 under a temporary name, its marker file last, then renamed. State is
stored unpartitioned and by parameter name, so that a run can resume with another number of processes or ZeRO stage.
"""

from __future__ import annotations

import logging
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from distill.errors import StorageError, TrainingError
from distill.run.files import (
    locked,
    read_object,
    remove_leftovers,
    storage_errors,
    sync,
    write_atomic,
    write_json,
    xxh128_file,
)
from distill.run.fingerprint import check_same
from distill.run.layout import RunFolder
from distill.student.base import Student
from distill.training.world import World

log = logging.getLogger(__name__)
CHECKPOINT_FORMAT = 1
STATE, MARKER = "state.pt", "complete.json"
SIGHT_SECONDS = 120.0  # wait for a checkpoint to appear: NFS clients cache a folder's listing for up to a minute


def save(
    folder: RunFolder, step: int, state: dict[str, Any], fields: dict[str, Any], keep_last: int, best: int | None = None
) -> Path:
    """Commit `state` as the checkpoint of `step`, then remove all but the newest `keep_last`. On rank 0 only.

    `best`: the step whose parameters, saved by `save_best`, are the best so far; parameters that no checkpoint names
    are removed.
    """
    path = folder.checkpoint(step)
    temporary, replaced = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{kind}") for kind in ("tmp", "old"))
    with storage_errors(path):
        temporary.mkdir(parents=True)
        try:
            torch.save(state, temporary / STATE)
            sync(temporary / STATE)
            write_json(
                temporary / MARKER,
                {
                    "format": CHECKPOINT_FORMAT,
                    "step": step,
                    "best": best,
                    "fields": fields,
                    "xxh128": xxh128_file(temporary / STATE),
                },
            )
            if path.exists():  # the same step again, after an abandoned one
                path.rename(replaced)
            temporary.rename(path)
            sync(path.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    remove_leftovers(folder.checkpoints, ".*")
    _remove_old(folder, path, keep_last)
    return path


def _remove_old(folder: RunFolder, newest: Path, keep_last: int) -> None:
    """Remove all checkpoints but the last `keep_last` up to `newest`, and best parameters that none of them names."""
    finished = _finished(folder)
    index = finished.index(newest)  # later checkpoints were damaged, and skipped when the run resumed
    for old in (*finished[: index + 1][:-keep_last], *finished[index + 1 :]):
        shutil.rmtree(old)
    best_steps = {marker.get("best") for checkpoint in _finished(folder) if (marker := _marker(checkpoint))}
    for parameters in folder.checkpoints.glob("best-*.pt"):
        if parameters not in {folder.best(step) for step in best_steps if step is not None}:
            parameters.unlink()


def save_best(folder: RunFolder, step: int, parameters: dict[str, torch.Tensor]) -> None:
    """Save the parameters of `step` as a candidate for the final model, until no checkpoint names it as the best."""
    with write_atomic(folder.best(step)) as temporary:
        torch.save(parameters, temporary)


def load_best(folder: RunFolder, step: int) -> dict[str, torch.Tensor]:
    """Load the parameters that `save_best` saved for `step`."""
    return torch.load(folder.best(step), map_location="cpu", weights_only=True)


def newest(folder: RunFolder, fields: dict[str, Any]) -> Path | None:
    """Find the newest checkpoint, None if there is none. Damaged ones are skipped, with a warning.

    Raises `FingerprintError` for a checkpoint of another recipe, `TrainingError` for one in another format.
    """
    for path in reversed(_finished(folder)):
        marker = _marker(path)
        if marker is None:
            continue
        if marker["format"] != CHECKPOINT_FORMAT:
            raise TrainingError(
                f"{path}: the checkpoint has format {marker['format']}, but this version reads {CHECKPOINT_FORMAT}; "
                "finish the run with the version that started it, or remove the folder"
            )
        check_same(folder.checkpoints, marker["fields"], fields)
        if xxh128_file(path / STATE) == marker["xxh128"]:
            return path
        log.warning("%s is damaged (checksum mismatch); falling back to the previous checkpoint", path)
    return None


def _marker(path: Path) -> dict[str, Any] | None:
    """Read the marker of a checkpoint; None, with a warning, if it is damaged."""
    try:
        marker = read_object(path / MARKER)
        if missing := {"format", "fields", "xxh128", "best"} - marker.keys():
            raise StorageError(f"{path / MARKER}: damaged: without {', '.join(sorted(missing))}")
    except StorageError as error:
        log.warning("%s; falling back to the previous checkpoint", error)
        return None
    return marker


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint that another process may have chosen: shared file systems show new files late.

    Raises `TrainingError` if it does not appear within `SIGHT_SECONDS`.
    """
    deadline = time.monotonic() + SIGHT_SECONDS
    while not (path / MARKER).exists():
        if time.monotonic() > deadline:
            raise TrainingError(
                f"{path}: rank 0 resumes from this checkpoint, but {socket.gethostname()} does not see it; "
                "run_dir must be on a file system that all machines share"
            )
        time.sleep(0.5)
    return torch.load(path / STATE, map_location="cpu", weights_only=True)


def _finished(folder: RunFolder) -> list[Path]:
    """Committed checkpoints, oldest first.

    A checkpoint set aside to be replaced by another of the same step counts as long as that one is not committed.
    """
    by_name = {path.name: path for path in folder.checkpoints.glob("step-*") if (path / MARKER).exists()}
    for replaced in folder.checkpoints.glob(".step-*.old"):
        if (replaced / MARKER).exists():
            by_name.setdefault(replaced.name.split(".")[1], replaced)
    return [path for _, path in sorted(by_name.items())]


def load_parameters(student: Student, parameters: dict[str, torch.Tensor]) -> None:
    """Copy parameters and extra state, by name, into a student that is not partitioned."""
    with torch.no_grad():
        for name, tensor in (*student.named_parameters(), *student.extra_state().items()):
            tensor.copy_(parameters[name])


@contextmanager
def locked_for_training(folder: RunFolder, world: World) -> Iterator[None]:
    """Lock the run folder on rank 0; every rank raises `TrainingError` if another training holds the lock."""
    with ExitStack() as held:
        free = True
        if world.rank == 0:
            try:
                held.enter_context(locked(folder.checkpoints, wait=False))
            except BlockingIOError:
                free = False
        if not world.min(int(free)):
            raise TrainingError(
                f"{folder.root}: another process is training in this folder; wait for it, stop it, or choose another "
                "run_dir"
            )
        yield
