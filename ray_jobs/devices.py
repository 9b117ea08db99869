"""What a worker knows of its device: which kind Ray gave it, and when it is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator

import ray

from distill.data.files import append_json_line, read_json_lines
from distill.data.layout import RunFolder

log = logging.getLogger(__name__)
_LOST = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]")  # running out of memory is none of them
_CLOCKS = 5.0  # seconds that two machines' clocks may differ


def given_device() -> str | None:
    """What Ray gave this actor; None, in a process without Ray: what the machine has."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return "cuda" if ray.get_gpu_ids() else "cpu"


@contextlib.contextmanager
def ending_with_the_device(task: str, folder: RunFolder) -> Iterator[None]:
    """End this process on a CUDA error: the device is lost to it, and another worker takes over. What the error was
    stands in the run folder, where the driver looks."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        try:
            log.error("%s: %s", task, error)
            append_json_line(
                folder.lost_devices,
                {
                    "task": task,
                    "host": socket.gethostname(),
                    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
                    "time": round(time.time(), 3),
                    "error": str(error),
                },
            )
        finally:  # also with a full disk: an exception would end the whole job
            os._exit(70)


def lost_device(task: str, folder: RunFolder, since: float) -> str | None:
    """What the worker that last ran a task wrote, `since` that time, of the device it lost; for people."""
    lines = [
        line
        for line in read_json_lines(folder.lost_devices)
        if line["task"] == task and line["time"] >= since - _CLOCKS
    ]
    if not lines:
        return None
    last = lines[-1]
    gpu = f", GPU {last['gpus']}" if last["gpus"] else ""
    return f"on {last['host']}{gpu}: {last['error'].splitlines()[0]} (the whole message is in {folder.lost_devices})"
