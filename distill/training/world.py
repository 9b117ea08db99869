"""This process's place among the others: rank, device, process group, and agreement between ranks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(minutes=60)  # one rank may evaluate or save while the others wait


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    flags: dist.ProcessGroup | None = None  # gloo, for small messages on the CPU; None: the default group is gloo

    def agree(self, flag: int) -> int:
        """The largest `flag` of any rank."""
        if self.size == 1:
            return flag
        message = torch.tensor(flag)
        dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self.flags)
        return int(message)

    def maximum(self, values: list[int]) -> list[int]:
        """Element by element, the largest of any rank."""
        if self.size == 1:
            return values
        message = torch.tensor(values)
        dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self.flags)
        return message.tolist()

    def minimum(self, value: int) -> int:
        return -self.agree(-value)

    def from_first(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.flags)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, by rank, on every rank."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value, group=self.flags)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            self.agree(0)


def own_device() -> torch.device:
    """The CPU, or this process's GPU among those that it sees; that is torch's current one then."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # a launcher may show each process its own GPU alone
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def join() -> World:
    """Join the process group that the environment describes (see `launch.place`), or make one of this process alone."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    device = own_device()
    cuda = device.type == "cuda"
    if cuda:
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes it for the device's number
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=PATIENCE)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=PATIENCE)
    flags = dist.new_group(backend="gloo", timeout=PATIENCE) if cuda and dist.get_world_size() > 1 else None
    return World(dist.get_rank(), dist.get_world_size(), device, flags)
