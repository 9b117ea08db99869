"""The C allocator in training on a CPU: freed memory is kept, since the next chunk takes much the same again, but
not without end, since no two chunks are quite alike and their holes add up."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SLACK = 1.25  # of what a chunk took, before holes are given back
PAGE = os.sysconf("SC_PAGE_SIZE")


class Heap:
    """The process's memory between chunks; glibc on Linux only, elsewhere nothing is done.

    By default glibc returns large blocks to the system as soon as they are freed, and the next ones are cleared page
    by page as they are written: a tenth to a third of a step that holds many graphs.
    """

    def __init__(self) -> None:
        try:
            self._libc = ctypes.CDLL("libc.so.6")
            self._libc.mallopt(M_MMAP_MAX, 0)
            self._libc.mallopt(M_TRIM_THRESHOLD, -1)
            self._floor, self._chunk = _resident(), None
        except (OSError, AttributeError):
            self._libc = None

    def chunk_done(self) -> None:
        """Give holes back where there is a quarter more of them than the first chunk since the last time took."""
        if self._libc is None:
            return
        resident = _resident()
        if self._chunk is None:
            self._chunk = max(resident - self._floor, 0)
        elif resident > self._floor + SLACK * self._chunk:
            self._libc.malloc_trim(0)
            self._floor, self._chunk = _resident(), None


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE
