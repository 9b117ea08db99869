"""`dropout.cpp` behind autograd: torch draws a CPU's masks one number after the other, ten times slower."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.student.kernels import compiled
from distill.student.kernels.compiled import pointer

DTYPES = (torch.float32, torch.bfloat16)


def dropout(x: Tensor, p: float) -> Tensor:
    """As `F.dropout(x, p, training=True)`, `p` rounded to 1/65536; one draw of torch's generator decides the mask.

    On devices other than CPUs, for other dtypes and without a compiler it is torch's own.
    """
    if p == 0:
        return x
    if x.device.type != "cpu" or x.dtype not in DTYPES or p >= 1 or _library() is None:
        return F.dropout(x, p, training=True)
    return _Dropout.apply(x, p, int(torch.randint(2**63 - 1, ())))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p, seed):
        ctx.p, ctx.seed = p, seed
        return _masked(x, p, seed)

    @staticmethod
    def backward(ctx, grad):
        return _masked(grad, ctx.p, ctx.seed), None, None


def _masked(x: Tensor, p: float, seed: int) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    threshold = round(p * 65536)
    _library().dropout(
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
    library = compiled.native("dropout.cpp")
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
