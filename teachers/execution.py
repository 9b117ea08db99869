"""The execution record: settings that decide whether bytes repeat (device, precision, batch size), not what they mean.

It is resolved at a job's first launch and frozen beside the scores until the teacher itself changes; `dtype` and
`batch_tokens` in the recipe take precedence over it. Precision `auto` is bfloat16 on a GPU that multiplies it
natively. On an older GPU with tensor cores it is float16, except for language models, whose activations exceed
float16's range: those get float32. On a CPU it is bfloat16 if that is native and a short measurement shows it faster.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill import config
from distill.errors import StorageError, TeacherError
from distill.planning.devices import chosen_precision
from distill.run.device import default_device, grow_segments
from distill.run.files import locked, read_object, write_json
from distill.run.seals import is_damaged, sealed
from teachers.spec import TeacherSpec

if TYPE_CHECKING:
    from distill.retrieval.encode import Precision

log = logging.getLogger(__name__)

_CPU_BATCH_TOKENS = 4096  # keeps a batch's activations near the caches; larger batches gain nothing
_GPU_BATCH_TOKENS = 65536


@dataclass(frozen=True)
class Execution:
    device: str  # "cpu" or "cuda"
    precision: Precision  # of the matrix products; logits are always float32
    threads: int  # CPU threads per worker
    batch_tokens: int  # padded tokens per batch, at most

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def with_batch_tokens(self, tokens: int) -> Execution:
        return replace(self, batch_tokens=tokens)

    def apply_threads(self) -> None:
        torch.set_num_threads(self.threads)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=self.dtype)


def resolve_execution(cfg: config.Teacher, device: str | None = None, threads: int | None = None) -> Execution:
    """Settings for this machine. `device` None: CUDA if available; `threads` None: torch's number."""
    device = device or default_device()
    precision: Precision = "float32"
    if cfg.kind not in ("bm25", "custom"):  # bm25 has no products, and a user-defined class chooses for itself
        precision = chosen_precision(cfg.dtype, device)
    if cfg.dtype == "auto" and cfg.kind == "llm" and precision == "float16":
        precision = "float32"
    tokens = cfg.batch_tokens or (_CPU_BATCH_TOKENS if device == "cpu" else _GPU_BATCH_TOKENS)
    return Execution(device, precision, threads or torch.get_num_threads(), tokens)


def read_record(path: Path, identity: str) -> Execution | None:
    """Read the frozen record of a teacher; None if there is none of this `identity`, or it is damaged (a warning)."""
    if not path.exists():
        return None
    try:
        record = read_object(path)
        if record.pop("teacher", None) != identity:
            return None
        frozen = Execution(**record)
        if not isinstance(frozen.threads, int) or not isinstance(frozen.batch_tokens, int) or is_damaged(path):
            raise ValueError("not what was written")
    except (StorageError, TypeError, ValueError) as error:
        log.warning("%s: a damaged execution record (%s); the settings are resolved again", path, error)
        return None
    return frozen


def frozen_execution(spec: TeacherSpec, identity: str, device: str | None, threads: int) -> Execution:
    """The frozen record, with the recipe's own `dtype` and `batch_tokens` applied.

    The first worker of the first launch resolves and writes it; a teacher of another `identity` (a fingerprint) gets a
    new one. On another kind of device than the record's, settings for this device are returned: shards store the
    settings they were made with, and equal bytes are no longer promised. Raises `TeacherError` for a GPU that torch
    cannot use.
    """
    path, cfg = spec.execution_record, spec.config
    device = device or default_device()
    if device == "cuda" and not torch.cuda.is_available():
        raise TeacherError(
            f"a worker on {socket.gethostname()} was given a GPU, but torch finds none there: install a "
            "torch built for CUDA (and its driver), or set score.gpus to 0"
        )
    if device == "cuda":
        grow_segments()
    with locked(path):
        frozen = read_record(path, identity)
        if frozen is None:
            frozen = resolve_execution(cfg, device, threads)
            with sealed(path):
                write_json(path, {"teacher": identity, **frozen.record()})
    if frozen.device != device:
        return resolve_execution(cfg, device, threads)
    return replace(
        frozen,
        precision=frozen.precision if cfg.dtype == "auto" else cfg.dtype,
        batch_tokens=cfg.batch_tokens or frozen.batch_tokens,
    )
