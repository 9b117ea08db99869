"""Checkpoints of a run: all that is needed to go on as if nothing had happened, at any world size.

One folder a checkpoint, written by rank 0 under a temporary name, its marker last, then renamed. State is kept whole
and by parameter name, so that another number of processes or another ZeRO stage can take it up.
"""

from __future__ import annotations

import logging
import math
import shutil
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.data.files import read_json, remove_leftovers, storage_errors, sync, write_atomic, write_json, xxh128_file
from distill.data.fingerprint import check_same
from distill.data.layout import RunFolder
from distill.errors import TrainingError
from distill.student.base import Student

log = logging.getLogger(__name__)
FORMAT = 1
STATE, MARKER = "state.pt", "complete.json"
SIGHT_SECONDS = 120.0  # NFS clients keep a folder's listing for up to a minute


@dataclass
class Standing:
    """Where a run stands: all of a checkpoint that is not tensors. `step` counts optimizer steps, bad ones included."""

    chunk_tokens: int
    precision: str
    device: str  # its kind
    graph_bytes: float = 0.0  # that a kept graph is reckoned to hold per padded token
    step: int = 0
    bad_steps: int = 0
    seconds: float = 0.0
    evaluated: int = 0  # the last step after which the development set was evaluated
    best_step: int | None = None
    best_score: float = -math.inf  # on the development set
    loss_scale: dict[str, Any] | None = None  # fp16


def save(
    folder: RunFolder, step: int, state: dict[str, Any], fields: dict[str, Any], keep_last: int, best: int | None = None
) -> Path:
    """Commit `state` as the checkpoint of `step`, then remove all but the newest `keep_last`. For rank 0 alone.

    `best`: the step whose parameters, saved by `save_best`, are the best so far; those that no checkpoint names go.
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
                    "format": FORMAT,
                    "step": step,
                    "best": best,
                    "fields": fields,
                    "xxh128": xxh128_file(temporary / STATE),
                },
            )
            if path.exists():  # the same step again: after an abandoned one
                path.rename(replaced)
            temporary.rename(path)
            sync(path.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    remove_leftovers(folder.checkpoints, ".*")
    finished = _finished(folder)
    here = finished.index(path)  # those after it were damaged, and passed over
    for old in (*finished[: here + 1][:-keep_last], *finished[here + 1 :]):
        shutil.rmtree(old)
    named = {read_json(kept / MARKER)["best"] for kept in _finished(folder)}
    for parameters in folder.checkpoints.glob("best-*.pt"):
        if parameters not in {_best_file(folder, step) for step in named if step is not None}:
            parameters.unlink()
    return path


def save_best(folder: RunFolder, step: int, parameters: dict[str, torch.Tensor]) -> None:
    with write_atomic(_best_file(folder, step)) as temporary:
        torch.save(parameters, temporary)


def load_best(folder: RunFolder, step: int) -> dict[str, torch.Tensor]:
    return torch.load(_best_file(folder, step), map_location="cpu", weights_only=True)


def _best_file(folder: RunFolder, step: int) -> Path:
    return folder.checkpoints / f"best-{step:08d}.pt"


def newest(folder: RunFolder, fields: dict[str, Any]) -> Path | None:
    """The newest checkpoint, None where there is none; a damaged one is passed over, with a warning.

    Raises `FingerprintError` where it belongs to another recipe, `TrainingError` for another version's.
    """
    for path in reversed(_finished(folder)):
        marker = read_json(path / MARKER)
        if marker["format"] != FORMAT:
            raise TrainingError(
                f"{path}: written in format {marker['format']}, this version reads format {FORMAT}; "
                "finish the run with the version that began it, or remove the folder"
            )
        check_same(folder.checkpoints, marker["fields"], fields)
        if xxh128_file(path / STATE) == marker["xxh128"]:
            return path
        log.warning("%s is damaged (its checksum differs); going back to the one before it", path)
    return None


def load(path: Path) -> dict[str, Any]:
    """The state of a checkpoint that another process may have chosen: shared folders show new files late.

    Raises `TrainingError` where it does not come in sight.
    """
    deadline = time.monotonic() + SIGHT_SECONDS
    while not (path / MARKER).exists():
        if time.monotonic() > deadline:
            raise TrainingError(
                f"{path}: the first process has found this checkpoint, but {socket.gethostname()} does "
                "not see it; run_dir must be on a file system that all machines share"
            )
        time.sleep(0.5)
    return torch.load(path / STATE, map_location="cpu", weights_only=True)


def _finished(folder: RunFolder) -> list[Path]:
    """Committed checkpoints, oldest first; one that was being replaced by another of its step counts until it is."""
    found = {path.name: path for path in folder.checkpoints.glob("step-*") if (path / MARKER).exists()}
    for old in folder.checkpoints.glob(".step-*.old"):
        if (old / MARKER).exists():
            found.setdefault(old.name.split(".")[1], old)
    return [path for _, path in sorted(found.items())]


def load_parameters(student: Student, parameters: dict[str, torch.Tensor]) -> None:
    """Copy whole parameters and counters, by name, into a student whose own are whole."""
    with torch.no_grad():
        for name, tensor in (*student.named_parameters(), *student.counters().items()):
            tensor.copy_(parameters[name])
