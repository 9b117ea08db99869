"""Limits that the system sets: on processes and threads (`ulimit -u`, a container's pids), memory and open files."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import psutil

from distill.errors import LimitError

_SPARE_THREADS = 8  # of a stage, beside one per core: for reading ahead, progress, the tokenizers' pool


def require_threads(what: str, needed: int | None = None, otherwise: str = "set OMP_NUM_THREADS=1") -> None:
    """Raise `LimitError` if this process may not start `needed` threads (None: one per core, and a few), for `what`.

    Libraries meet the limit in native code, where it ends the process or is waited out. `otherwise` is what to do where
    the limit cannot be raised.
    """
    needed = needed or _SPARE_THREADS + int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    for left, limit in (_of_user(), _of_container()):
        if left is not None and left < needed:
            raise LimitError(
                f"{what} needs about {needed} threads, and {limit} leaves {max(0, left)}: raise it, end other "
                f"processes, or {otherwise}"
            )


def limit_error(error: BaseException) -> LimitError | None:
    """The limit of the system that an error tells of, if any."""
    number, text = error.errno if isinstance(error, OSError) else None, str(error)
    if number in (errno.EMFILE, errno.ENFILE):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return LimitError(f"too many open files: {soft} are allowed (ulimit -n; up to {hard} may be set); raise this")
    if "can't start new thread" in text or text.endswith(os.strerror(errno.EAGAIN)):
        return LimitError(
            "a thread or process could not be started: the limit of processes (ulimit -u), the container's (pids.max) "
            "or of memory (ulimit -v) is reached; raise it, or set OMP_NUM_THREADS=1"
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM or "DefaultCPUAllocator: can't allocate" in text:
        return LimitError(
            f"out of memory ({text.splitlines()[0] if text else type(error).__name__}): use a machine or a job with "
            "more, or lower batch sizes; the same command resumes from what is finished"
        )
    return None


def _of_user() -> tuple[int | None, str]:
    """Number of threads that the user may still start, if limited; root never is."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY or os.getuid() == 0:
        return None, ""
    running = 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids, threads = process.info["uids"], process.info["num_threads"]
        running += threads or 0 if uids is not None and uids.real == os.getuid() else 0
    return soft - running, f"the user's limit of {soft:,} (ulimit -u)"


def _of_container() -> tuple[int | None, str]:
    """Number of threads that the innermost control group with a limit may still start."""
    least: tuple[int | None, str] = None, ""
    for folder in _control_groups():
        try:
            limit = int((folder / "pids.max").read_text())
            left = limit - int((folder / "pids.current").read_text())
        except (OSError, ValueError):  # no such controller, or "max"
            continue
        if least[0] is None or left < least[0]:
            least = left, f"the limit of {limit:,} of the job or container ({folder}/pids.max)"
    return least


def _control_groups() -> list[Path]:
    """Folders of this process's control group and those above it, of either version."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "pids"):
            root = Path("/sys/fs/cgroup") / controllers
            group = root / path.strip("/")
            folders += [group, *(above for above in group.parents if above.is_relative_to(root))]
    return folders
