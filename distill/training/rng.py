"""State of the random generators that dropout draws from: saved per chunk, and restored for its second pass."""

from __future__ import annotations

import torch
from torch import Tensor


def rng_state(device: torch.device) -> list[Tensor]:
    """Get the state of the generators that dropout on `device` draws from."""
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def set_rng_state(state: list[Tensor], device: torch.device) -> None:
    """Restore the state that `rng_state` returned."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
