"""`dropout.cpp` with autograd: torch draws masks on a CPU one number at a time, ten times slower."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.native import native, pointer

SOURCE = Path(__file__).with_name("dropout.cpp")
DTYPES = (torch.float32, torch.bfloat16)


def dropout(x: Tensor, p: float) -> Tensor:
    """As `F.dropout(x, p, training=True)`, with `p` rounded to 1/65536; one draw of torch's generator seeds the mask.

    Falls back to torch's own on devices other than CPUs, for dtypes not in `DTYPES`, and without a compiler.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or x.dtype not in DTYPES or p >= 1 or _library() is None:
        return F.dropout(x, p, training=True)
    return _Dropout.apply(x, p, int(torch.randint(2**63 - 1, ())))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int) -> Tensor:
        ctx.p, ctx.seed = p, seed
        return masked(x, p, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return masked(grad, ctx.p, ctx.seed), None, None


def masked(x: Tensor, p: float, seed: int) -> Tensor:
    """Apply the mask of `seed`, which depends on nothing else: the backward recomputes it instead of storing it."""
    library = _library()
    assert library is not None, "without a compiler, `dropout` uses torch's own"
    x = x.contiguous()
    out = torch.empty_like(x)
    threshold = round(p * 65536)
    library.dropout(
        pointer(x),
        pointer(out),
        x.numel(),
        seed,
        threshold,
        65536 / (65536 - threshold),
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native(SOURCE)
    if library is not None:
        address, size = ctypes.c_void_p, ctypes.c_int64
        library.dropout.argtypes = [
            address,
            address,
            size,
            ctypes.c_uint64,
            ctypes.c_uint32,
            ctypes.c_float,
            ctypes.c_int,
            ctypes.c_int,
        ]
        library.dropout.restype = None
    return library
