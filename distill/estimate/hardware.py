"""Devices that a plan can be made for: peak speed and memory as their makers' data sheets give them."""

from __future__ import annotations

from dataclasses import dataclass

from distill.errors import RecipeError


@dataclass(frozen=True)
class Device:
    """`flops`: operations a second of dense 16-bit matrix products; `memory`: bytes."""

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
    """The device of that name; `cpu` is this machine, whose speed is measured. `RecipeError` names the others."""
    if name == "cpu":
        return _this_machine()
    if name not in DEVICES:
        raise RecipeError(f"--gpu-type {name!r} is not known; known: {', '.join(DEVICES)}, and cpu for this machine")
    return DEVICES[name]


def _this_machine() -> Device:
    import psutil
    import torch

    from distill.training.measure import peak_flops
    from teachers.execution import fastest_precision

    dtype = getattr(torch, fastest_precision("cpu"))
    return Device("cpu", peak_flops(torch.device("cpu"), dtype), float(psutil.virtual_memory().total), cuda=False)
