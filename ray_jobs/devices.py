"""What a worker knows of its device: which kind Ray gave it, and when it is lost."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

log = logging.getLogger(__name__)


def given_device() -> str | None:
    """What Ray gave this actor; None, in a process without Ray: what the machine has."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    return "cuda" if ray.get_gpu_ids() else "cpu"


@contextlib.contextmanager
def ending_with_the_device(task: str) -> Iterator[None]:
    """End this process on a CUDA error: the device is lost to it, and another worker takes over."""
    try:
        yield
    except RuntimeError as error:
        if "CUDA error" not in str(error):
            raise
        log.error("%s: %s", task, error)
        os._exit(70)
