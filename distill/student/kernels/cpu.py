"""`head.cpp` with the interface of `blocked`, which is the fallback if no compiler is found."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from distill.native import native, pointer
from distill.student.kernels import blocked

SOURCE = Path(__file__).with_name("head.cpp")


def max_forward(
    hidden: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `blocked.max_forward`; bf16 is multiplied with float32 accumulation if the processor supports it."""
    library = _library()
    if library is None:
        return blocked.max_forward(hidden, rows, offsets, weight, bias)
    half = weight.dtype == torch.bfloat16 and bool(library.multiplies_bf16())
    dtype = torch.bfloat16 if half else torch.float32
    hidden, weight = hidden.to(dtype).contiguous(), weight.detach().to(dtype).contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    texts, (vocabulary, width) = offsets.numel() - 1, weight.shape
    indptr = torch.empty(texts + 1, dtype=torch.int64)
    handle = library.max_forward(
        pointer(hidden),
        pointer(rows),
        pointer(offsets),
        texts,
        pointer(weight),
        pointer(bias),
        vocabulary,
        width,
        half,
        torch.get_num_threads(),
        pointer(indptr),
    )
    if not handle:
        raise MemoryError("out of memory in the forward of the SPLADE head's CPU kernel")
    active = int(indptr[-1])
    terms, tokens = torch.empty(active, dtype=torch.int64), torch.empty(active, dtype=torch.int64)
    maxima = torch.empty(active)
    library.max_collect(handle, pointer(indptr), pointer(terms), pointer(maxima), pointer(tokens))
    return indptr, terms, maxima, rows[tokens]


def max_backward(
    indptr: Tensor,
    rows: Tensor,
    terms: Tensor,
    coefficients: Tensor,
    hidden: Tensor,
    weight: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `blocked.max_backward`."""
    library = _library()
    if library is None:
        return blocked.max_backward(indptr, rows, terms, coefficients, hidden, weight, needs)
    half = hidden.dtype == weight.dtype == torch.bfloat16
    dtype = torch.bfloat16 if half else torch.float32
    hidden, weight = hidden.to(dtype).contiguous(), weight.detach().to(dtype).contiguous()
    coefficients = coefficients.float().contiguous()
    vocabulary, width = weight.shape
    d_hidden = torch.zeros(hidden.shape) if needs[0] else None
    d_weight = torch.empty(weight.shape) if needs[1] else None
    d_bias = torch.empty(vocabulary) if needs[2] else None
    succeeded = library.max_backward(
        pointer(indptr),
        indptr.numel() - 1,
        pointer(rows),
        pointer(terms),
        pointer(coefficients),
        pointer(hidden),
        pointer(weight),
        vocabulary,
        width,
        half,
        torch.get_num_threads(),
        pointer(d_hidden),
        pointer(d_weight),
        pointer(d_bias),
    )
    if not succeeded:
        raise MemoryError("out of memory in the backward of the SPLADE head's CPU kernel")
    return d_hidden, d_weight, d_bias


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native(SOURCE)
    return library and declared(library)


def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the argument types of `head.cpp`'s functions; returns the library."""
    library.max_forward.restype = ctypes.c_void_p
    size, address, flag = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
    library.max_forward.argtypes = [*[address] * 3, size, *[address] * 2, size, size, flag, flag, address]
    library.max_collect.argtypes = [address] * 5
    library.max_collect.restype = None
    library.max_backward.argtypes = [address, size, *[address] * 5, size, size, flag, flag, *[address] * 3]
    return library
