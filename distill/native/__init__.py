"""C++ files, compiled for this machine on first use and loaded with ctypes.

A library is cached in the user's cache folder, under a hash of its source, compiler and processor. It appears there
in one step, so that processes may build it at the same time without a lock.
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
_HEADERS = Path(__file__).parent  # for all sources; others lie beside theirs


@functools.cache
def native(source: Path, *flags: str) -> ctypes.CDLL | None:
    """Load `source`, compiled for this processor; None, with a warning, if it cannot be compiled.

    `flags`: of the compiler, besides `FLAGS`.
    """
    try:
        return load(source, "-march=native", *flags)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or error
        logger.warning(
            "the fast code in %s could not be compiled, a slower one is used; install g++ or set CXX: %s",
            source.name,
            output,
        )
        return None


def load(source: Path, *flags: str) -> ctypes.CDLL:
    """Load `source`, compiled with `flags`, from the cache or compiled now."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("no C++ compiler found")
    command = [compiler, *FLAGS, *flags, f"-I{_HEADERS}", str(source)]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    headers = sorted({*_HEADERS.glob("*.h"), *source.parent.glob("*.h")})
    texts = [path.read_text(encoding="utf-8") for path in (source, *headers)]
    key = "\n".join([*texts, compiler, *FLAGS, *flags, version, _processor()])
    with _cache_folder() as folder:
        path = Path(folder) / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            built = path.with_suffix(f".{os.getpid()}")
            try:
                subprocess.run([*command, "-o", str(built)], capture_output=True, text=True, check=True, timeout=300)
                os.replace(built, path)
            finally:
                built.unlink(missing_ok=True)
        return ctypes.CDLL(str(path))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Address of a tensor's data, null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@contextlib.contextmanager
def _cache_folder() -> Iterator[str]:
    """Folder for compiled libraries: the user's cache, or a temporary one if the cache is not writable."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splade-distill"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        yield str(folder)
    else:
        with tempfile.TemporaryDirectory() as temporary:  # a loaded library outlives its file
            yield temporary


def _processor() -> str:
    """Processor model and instruction sets, which decide what `-march=native` means: machines may share a home."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features")}))
