"""Measurement for the benchmarks: time, alternating with the peer, and peak memory above the idle process."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(threads: int) -> str:
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    bf16 = {", AMX": torch.cpu._is_amx_tile_supported(), ", AVX512-bf16": torch.cpu._is_avx512_bf16_supported()}
    return f"CPU, {threads} threads" + next((name for name, supported in bf16.items() if supported), "")


def take_turns(functions: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Time each function `repeats` times after a warm-up, in seconds; alternating, so that other load affects all."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_above_idle(function: Callable[[], None]) -> float:
    """Peak gigabytes above idle while the function runs: of the GPU if there is one, else of the process."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - idle) / 1e9
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    idle = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    function()
    return resident("VmHWM") - idle


def resident(field: str) -> float:
    """A memory figure of this process from /proc/self/status, in gigabytes."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if field in line)
    return int(line.split()[1]) * 1024 / 1e9
