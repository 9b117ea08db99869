"""Devices: peak speed and memory by their data sheets; for this machine, by a measurement."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from distill.config import Dtype
from distill.errors import RecipeError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """`flops`: operations per second of dense 16-bit matrix products; `memory`: bytes."""

    name: str
    flops: float
    memory: float
    cuda: bool = True


DEVICES = {
    device.name: device
    for device in (
        Device("t4", 65e12, 16e9),
        Device("v100", 125e12, 32e9),
        Device("a10", 125e12, 24e9),
        Device("l4", 121e12, 24e9),
        Device("l40s", 362e12, 48e9),
        Device("a100", 312e12, 80e9),
        Device("h100", 989e12, 80e9),
        Device("h200", 989e12, 141e9),
        Device("b200", 2250e12, 180e9),
        Device("mi300x", 1307e12, 192e9),
    )
}


def device(name: str) -> Device:
    """Return a device by name; `cpu` is this machine, whose speed is measured. Raises `RecipeError` for other names."""
    if name == "cpu":
        return _this_machine()
    if name not in DEVICES:
        raise RecipeError(f"--gpu-type {name!r} is not known; known: {', '.join(DEVICES)}, and cpu for this machine")
    return DEVICES[name]


def _this_machine() -> Device:
    import psutil
    import torch

    dtype = getattr(torch, fastest_precision("cpu"))
    return Device("cpu", peak_flops(torch.device("cpu"), dtype), float(psutil.virtual_memory().total), cuda=False)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of a large matrix product of random numbers.

    Of constants it would be faster than any product that is asked for, since a GPU's clock depends on its power.
    """
    import torch

    size = 8192 if device.type == "cuda" else 1024
    own = torch.Generator(device).manual_seed(0)  # torch's own generators stay as they are
    a = torch.randn(size, size, device=device, generator=own).to(dtype)
    best = math.inf
    for _ in range(5):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            a @ a
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1000
        else:
            began = time.perf_counter()
            a @ a
            seconds = time.perf_counter() - began
        best = min(best, seconds)
    return 2.0 * size**3 / best


def fastest_precision(device: str) -> Literal["float32", "bfloat16", "float16"]:
    """Return the precision that `auto` stands for on "cpu" or "cuda".

    GPU: bfloat16 if native, else float16 with tensor cores, else float32. CPU: bfloat16 if native and faster in a short
    measurement, else float32.
    """
    import torch

    if device != "cpu":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16"
        return "float16" if torch.cuda.get_device_capability() >= (7, 0) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native and _seconds(torch.bfloat16) < 0.8 * _seconds(torch.float32) else "float32"


def chosen_precision(precision: Dtype, device: str) -> Literal["float32", "bfloat16", "float16"]:
    """Return the precision that a recipe's field names, on "cpu" or "cuda"."""
    return fastest_precision(device) if precision == "auto" else precision


def _seconds(dtype: torch.dtype) -> float:
    """Return the best time of five runs of one feed-forward product of a small ranker."""
    import torch

    x, w = torch.ones(1024, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - start)
    return best
