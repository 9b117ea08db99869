"""The device of this process, and what its errors mean."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from distill.errors import DeviceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
log = logging.getLogger(__name__)
_MEMORY = re.compile(r"out of memory|can't allocate memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second: torch before 2.9
_LOST = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "NCCL error")


def default_device() -> str:
    """Return "cuda" if torch can use a GPU, else "cpu".

    Raises `DeviceError` if this machine has an NVIDIA GPU that this process may open, but torch cannot use: two cores
    of a GPU machine are hardly what was asked for. With CUDA_VISIBLE_DEVICES= (empty) the CPU is used.
    """
    import torch

    if torch.cuda.is_available():
        grow_segments()
        return "cuda"
    if (found := unused_gpu()) is not None:
        raise DeviceError(f"{found}; set CUDA_VISIBLE_DEVICES= (empty) to use the CPU all the same")
    return "cpu"


def grow_segments() -> None:
    """Let torch's memory on GPUs grow in place, unless the environment sets its allocator. Call before it allocates.

    Batches differ in shape; without this, memory that is nearly full falls into pieces that fit none of the next ones.
    """
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ.update(dict.fromkeys(_ALLOCATOR, "expandable_segments:True"))


def unused_gpu(devices: Path = Path("/dev")) -> str | None:
    """Say why torch does not use an NVIDIA GPU of this machine; None if there is none, or it is hidden."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (not visible.strip() or visible.startswith(("-", "NoDevFiles"))):
        return None
    gpu = next((path for path in sorted(devices.glob("nvidia[0-9]*")) if _opens(path)), None)
    if gpu is None or torch.cuda.is_available():
        return None
    driver = "unknown"
    with contextlib.suppress(OSError, IndexError):
        driver = re.findall(r"\d+\.\d+[\d.]*", Path("/proc/driver/nvidia/version").read_text())[0]
    remedy = (
        "install torch built for CUDA"
        if torch.version.cuda is None
        else f"update the driver, or install a torch for it (this one is built for CUDA {torch.version.cuda})"
    )
    return f"this machine has a GPU ({gpu}, driver {driver}) that torch {torch.__version__} cannot use: {remedy}"


def _opens(path: Path) -> bool:
    """Whether this process may use a device; batch systems show those of other jobs, too."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means out of memory: torch's, cuBLAS', Triton's or the driver's, or that of a CPU kernel.

    Ask before `lost_device`: some of these begin with "CUDA error".
    """
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error)))


def lost_device(error: BaseException) -> bool:
    """Whether an exception means that the process can no longer use its GPU."""
    return not ran_out_of_memory(error) and any(words in str(error) for words in _LOST)


def until_it_fits(run: Callable[[int], T], batch_tokens: int) -> tuple[T, int]:
    """Call `run(batch_tokens)`, with half the tokens until its batches fit in memory; returns result and tokens."""
    while True:
        try:
            return run(batch_tokens), batch_tokens
        except (RuntimeError, MemoryError) as error:
            if batch_tokens <= 1 or not ran_out_of_memory(error):
                raise
        free_cached_memory()  # outside the handler: inside it, the exception's frames still hold the tensors
        batch_tokens //= 2


def on_device(device: torch.device) -> torch.cuda.device:
    """Make a device the current one, on which Triton launches; it need not be the tensors'."""
    import torch

    return torch.cuda.device(device if device.type == "cuda" else -1)


def if_it_fits(use: Callable[[], T], device: str, what: str) -> T | None:
    """Return `use()`; None, with a warning that names `what`, if the device has no memory for it."""
    try:
        return use()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        log.warning("%s has too little memory for %s; processor cores search instead: %s", device, what, error)
    free_cached_memory()  # outside the handler: inside it, the exception's frames still hold the tensors
    return None


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device; a GPU goes on with its work meanwhile, which pinned memory permits.

    A tensor that is on the device already is returned as it is.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def free_memory(device: str) -> int:
    """Bytes of a GPU that nobody uses, with those that torch keeps for later."""
    import torch

    free_cached_memory()
    return torch.cuda.mem_get_info(device)[0]


def free_cached_memory() -> None:
    """Give memory that torch keeps for later back to the GPU, if one is in use."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
