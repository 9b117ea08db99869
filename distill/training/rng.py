"""The state of the random generators that dropout draws from: kept for each chunk, and replayed in its second pass."""

from __future__ import annotations

import torch
from torch import Tensor


def rng_state(device: torch.device) -> list[Tensor]:
    """State of the generators that dropout draws from on `device`."""
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def set_rng_state(state: list[Tensor], device: torch.device) -> None:
    """Go on drawing from where `rng_state` was called."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
