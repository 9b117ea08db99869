"""`cpu.cpp`, compiled for the machine at hand on first use, and called through ctypes.

The library is kept in the user's cache folder, under a name that holds its source, compiler and processor, and
appears there in one step, so that processes may build it at the same time without a lock. Where no compiler is found
the plain torch kernels (`blocked`) do the work, and one warning says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from distill.student.kernels import blocked

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpu.cpp")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC", "-pthread")


def max_forward(hidden: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None
                ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `blocked.max_forward`, bf16 multiplied with float32 accumulation where the processor can."""
    library = _library()
    if library is None:
        return blocked.max_forward(hidden, rows, offsets, weight, bias)
    half = weight.dtype == torch.bfloat16 and bool(library.multiplies_bf16())
    dtype = torch.bfloat16 if half else torch.float32
    hidden, weight = hidden.to(dtype).contiguous(), weight.detach().to(dtype).contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    texts, (vocabulary, width) = offsets.numel() - 1, weight.shape
    indptr = torch.empty(texts + 1, dtype=torch.int64)
    handle = library.max_forward(_pointer(hidden), _pointer(rows), _pointer(offsets), texts, _pointer(weight),
                                 _pointer(bias), vocabulary, width, half, torch.get_num_threads(), _pointer(indptr))
    if not handle:
        raise MemoryError("no memory for the head's forward")
    active = int(indptr[-1])
    terms, tokens = torch.empty(active, dtype=torch.int64), torch.empty(active, dtype=torch.int64)
    maxima = torch.empty(active)
    library.max_collect(handle, _pointer(indptr), _pointer(terms), _pointer(maxima), _pointer(tokens))
    return indptr, terms, maxima, rows[tokens]


def max_backward(indptr: Tensor, rows: Tensor, terms: Tensor, coefficients: Tensor, hidden: Tensor, weight: Tensor,
                 needs: tuple[bool, bool, bool]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
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
    done = library.max_backward(_pointer(indptr), indptr.numel() - 1, _pointer(rows), _pointer(terms),
                                _pointer(coefficients), _pointer(hidden), _pointer(weight), vocabulary, width, half,
                                torch.get_num_threads(), _pointer(d_hidden), _pointer(d_weight), _pointer(d_bias))
    if not done:
        raise MemoryError("no memory for the head's backward")
    return d_hidden, d_weight, d_bias


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled library, built if it is not there; None, with a warning, where it cannot be."""
    try:
        return load_library("-march=native")
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or error
        logger.warning("the CPU head's fast kernel could not be built, a slower one takes its place: %s", output)
        return None


def load_library(architecture: str) -> ctypes.CDLL:
    """The library compiled for `architecture` (a compiler flag), from the cache or built now."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("no C++ compiler found (install g++, or name one in CXX)")
    command = [compiler, *FLAGS, architecture, str(SOURCE)]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = "\n".join([SOURCE.read_text(encoding="utf-8"), *command[:-1], version, _processor()])
    with _cache_folder() as folder:
        path = Path(folder) / f"head-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            built = path.with_suffix(f".{os.getpid()}")
            try:
                subprocess.run([*command, "-o", str(built)], capture_output=True, text=True, check=True, timeout=300)
                os.replace(built, path)
            finally:
                built.unlink(missing_ok=True)
        library = ctypes.CDLL(str(path))
    library.max_forward.restype = ctypes.c_void_p
    size, address, flag = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
    library.max_forward.argtypes = [*[address] * 3, size, *[address] * 2, size, size, flag, flag, address]
    library.max_collect.argtypes = [address] * 5
    library.max_collect.restype = None
    library.max_backward.argtypes = [address, size, *[address] * 5, size, size, flag, flag, *[address] * 3]
    return library


@contextlib.contextmanager
def _cache_folder() -> Iterator[str]:
    """A folder for compiled libraries: the user's cache, or where that cannot be written one for the moment."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splade-distill"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        yield str(folder)
    else:
        with tempfile.TemporaryDirectory() as temporary:  # a loaded library outlives its file
            yield temporary


def _processor() -> str:
    """What decides which instructions `-march=native` means: a home may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features")}))
