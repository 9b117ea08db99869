"""A worker's device: the kind that Ray assigned, and what happens when it is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator

import ray

from distill.run.device import lost_device as is_lost
from distill.run.files import append_json_line, read_json_lines
from distill.run.layout import RunFolder

log = logging.getLogger(__name__)
_CLOCK_SKEW = 5.0  # seconds that two machines' clocks may differ


def given_device() -> str | None:
    """The device that Ray assigned to this actor; None in a process without Ray, which uses what the machine has."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return "cuda" if ray.get_gpu_ids() else "cpu"


@contextlib.contextmanager
def ending_with_the_device(task: str, folder: RunFolder) -> Iterator[None]:
    """End this process on a CUDA error: it has lost the device, and another worker takes over. The error is written to
    the run folder, where the driver reads it."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
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
        finally:  # even with a full disk: an exception would end the whole job
            os._exit(70)


def lost_device(task: str, folder: RunFolder, since: float) -> str | None:
    """Describe the device that a task's worker lost, for messages; None if none was reported `since` that time."""
    lines = [
        line
        for line in read_json_lines(folder.lost_devices)
        if line["task"] == task and line["time"] >= since - _CLOCK_SKEW
    ]
    if not lines:
        return None
    last = lines[-1]
    gpu = f", GPU {last['gpus']}" if last["gpus"] else ""
    return f"on {last['host']}{gpu}: {last['error'].splitlines()[0]} (full message in {folder.lost_devices})"
