"""One process of a group that exchanges values, leaves it and exits: python -m tests.training.exit_worker.

Fails if a thread of gloo's is left, which could abort the exit.
"""

from __future__ import annotations

from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import groups

from distill.training.world import join


def main() -> None:
    world = join()
    deepspeed.init_distributed("gloo", verbose=False)
    with world.leaving():
        copy = groups._clone_world_group()  # what DeepSpeed's engine communicates in
        values, gathered = torch.ones(100_000), torch.zeros(world.size * 100_000)
        for group in [None, copy] * 25:
            dist.all_gather_into_tensor(gathered, values, group=group)
            dist.all_reduce(values, group=group)
        del group, copy
    threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
    assert "pt_gloo_runloop" not in threads, threads


if __name__ == "__main__":
    main()
