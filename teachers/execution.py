"""The execution record: what makes a shard's bytes repeat, and nothing of what they mean.

Resolved once, at a job's first launch, and frozen beside the scores for as long as the teacher stays what it is; the
recipe's own `dtype` and `batch_tokens` go before it. `auto` precision is bfloat16 on a GPU that
multiplies it natively; on an older one with tensor cores float16, but float32 for language models, whose activations
pass float16's range; on a CPU bfloat16 where it is native and a short measurement shows that it is faster.
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill import config
from distill.data.files import locked, read_json, write_json
from distill.errors import TeacherError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CPU_BATCH_TOKENS = 4096  # activations of a batch stay near the caches; more gains nothing
_GPU_BATCH_TOKENS = 65536


@dataclass(frozen=True)
class Execution:
    device: str  # "cpu" or "cuda"
    precision: str  # float32, bfloat16 or float16: of the matrix products; logits are always float32
    threads: int  # of the CPU's products, per worker
    batch_tokens: int

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def with_batch_tokens(self, tokens: int) -> Execution:
        return replace(self, batch_tokens=tokens)

    def apply_threads(self) -> None:
        torch.set_num_threads(self.threads)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=_DTYPES[self.precision])


def resolve_execution(cfg: config.Teacher, device: str | None = None, threads: int | None = None) -> Execution:
    """The record for this machine: `device` None takes CUDA where there is one, `threads` None torch's own number."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if cfg.kind in ("bm25", "custom"):  # whose products, if any, are their own affair
        precision = "float32"
    else:
        precision = cfg.dtype if cfg.dtype != "auto" else fastest_precision(device)
    if cfg.dtype == "auto" and cfg.kind == "llm" and precision == "float16":
        precision = "float32"
    tokens = cfg.batch_tokens or (_CPU_BATCH_TOKENS if device == "cpu" else _GPU_BATCH_TOKENS)
    return Execution(device, precision, threads or torch.get_num_threads(), tokens)


def frozen_execution(path: Path, cfg: config.Teacher, device: str | None, threads: int, identity: str) -> Execution:
    """The record in `path`, with what the recipe now says itself; resolved and written there by the first worker of
    the first launch, anew for a teacher of another `identity` (a fingerprint).

    On another kind of device than the record's, one for this device is returned: shards carry the record they were
    made under, and equal bytes are no longer promised. Raises `TeacherError` for a GPU that torch cannot use.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise TeacherError(
            f"a worker on {socket.gethostname()} was given a GPU, but torch finds none there: install a "
            "torch built for CUDA (and its driver), or set score.gpus to 0"
        )
    with locked(path):
        record = read_json(path) if path.exists() else {}
        if record.get("teacher") != identity:
            record = {"teacher": identity, **resolve_execution(cfg, device, threads).record()}
            write_json(path, record)
    del record["teacher"]
    frozen = Execution(**record)
    if frozen.device != device:
        return resolve_execution(cfg, device, threads)
    return replace(
        frozen,
        precision=frozen.precision if cfg.dtype == "auto" else cfg.dtype,
        batch_tokens=cfg.batch_tokens or frozen.batch_tokens,
    )


def fastest_precision(device: str) -> str:
    """What `auto` means on "cpu" or "cuda" here: bfloat16, float16 or float32."""
    if device != "cpu":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16"
        return "float16" if torch.cuda.get_device_capability() >= (7, 0) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native and _seconds(torch.bfloat16) < 0.8 * _seconds(torch.float32) else "float32"


def _seconds(dtype: torch.dtype) -> float:
    """Best of a few runs of one feed-forward product of a small ranker."""
    x, w = torch.ones(1024, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - start)
    return best
