"""Batches from several datasets: each global batch from one of them, as sentence-transformers' multi-dataset samplers.

The choice depends only on (seed, step), so it is the same for any number of processes. The state is the step and the
state of each dataset's sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill.config import Mixing
from distill.training.batches import Batch, Sampler

_CHOICE = 2  # stream of random numbers; the samplers use 0 and 1


class MixedSampler:
    """Endless global batches, each from one of the samplers and returned with its name."""

    def __init__(self, samplers: Mapping[str, Sampler], mixing: Mixing, seed: int):
        self._samplers, self._seed, self._step = dict(samplers), seed, 0
        self._names = list(self._samplers)
        self._chances = (
            None
            if mixing.by == "round-robin"
            else chances([sampler.queries for sampler in self._samplers.values()], mixing.temperature)
        )

    def state_dict(self) -> dict[str, Any]:
        """The state; with a single sampler, that sampler's own state."""
        if len(self._samplers) == 1:
            return self._samplers[self._names[0]].state_dict()
        return {
            "step": self._step,
            "seed": self._seed,
            "samplers": {name: sampler.state_dict() for name, sampler in self._samplers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the position at which `state_dict` was called, over the same datasets."""
        if len(self._samplers) == 1:
            self._samplers[self._names[0]].load_state_dict(state)
            return
        self._step, self._seed = state["step"], state["seed"]
        for name, sampler in self._samplers.items():
            sampler.load_state_dict(state["samplers"][name])

    def next_batch(self, batch_size: int) -> tuple[str, Batch]:
        name = self._names[self._choice()]
        self._step += 1
        return name, self._samplers[name].next_batch(batch_size)

    def _choice(self) -> int:
        if self._chances is None:
            return self._step % len(self._names)
        rng = np.random.default_rng([self._seed, self._step, _CHOICE])
        return int(rng.choice(len(self._names), p=self._chances))


def chances(sizes: list[int], temperature: float) -> np.ndarray:
    """Shares proportional to size^(1/temperature), as T5 mixes its tasks (arXiv 1910.10683, section 3.5.2)."""
    shares = np.asarray(sizes, np.float64) ** (1 / temperature)
    return shares / shares.sum()
