"""One process of a group that exchanges values and exits: python -m tests.training.exit_worker."""

from __future__ import annotations

import torch
import torch.distributed as dist

from distill.training.world import join


def main() -> None:
    world = join()
    values, gathered = torch.ones(100_000), torch.zeros(world.size * 100_000)
    for _ in range(50):
        dist.all_gather_into_tensor(gathered, values)
        dist.all_reduce(values)


if __name__ == "__main__":
    main()
