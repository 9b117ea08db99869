"""The C allocator for training on a CPU: keep freed memory, since the next step allocates the same blocks again."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make malloc reuse freed memory instead of returning it to the system. Does nothing without glibc.

    By default large blocks come fresh from the system each time and are cleared page by page as they are written: a
    tenth to a third of a step with many graphs. The price is fragmentation: chunks differ in size, and over hundreds of
    them the process grows to two or three times the memory of one.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
