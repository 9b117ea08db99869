"""The process group: this process's rank and device, and collectives on small values."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from distill.errors import Preempted, RecipeError
from distill.run.device import default_device

T = TypeVar("T")
TIMEOUT = timedelta(minutes=60)  # of collectives: one rank may evaluate or save while the others wait


@dataclass(frozen=True)
class World:
    """This process's rank and device among `size` processes. The methods are collective."""

    rank: int
    size: int
    device: torch.device
    flags: dist.ProcessGroup | None = None  # gloo, for small messages on the CPU; None: the default group is gloo

    def all_reduce_max(self, values: list[int]) -> list[int]:
        """The largest value of any rank, elementwise."""
        if self.size == 1:
            return values
        message = torch.tensor(values)
        dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self.flags)
        return message.tolist()

    def max(self, value: int) -> int:
        """The largest `value` of any rank."""
        return self.all_reduce_max([value])[0]

    def min(self, value: int) -> int:
        """The smallest `value` of any rank."""
        return -self.max(-value)

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.flags)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's `value` in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value, group=self.flags)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            self.max(0)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Leave the process group after the block, also if all ranks have agreed to stop it (`Preempted`).

        After any other exception, the other ranks may still be in a collective that this one would wait for.
        """
        try:
            yield
        except Preempted:
            self._leave()
            raise
        self._leave()

    def _leave(self) -> None:
        """Destroy the group, and see its gloo threads through their last work.

        A thread that frees a tensor while the interpreter ends would abort the process (pytorch/pytorch#190489). NCCL
        has none: its group is left to the exit.
        """
        from deepspeed import comm

        if self.device.type == "cuda":
            if self.flags is not None:
                dist.destroy_process_group(self.flags)
        elif comm.is_initialized():
            comm.destroy_process_group()  # with DeepSpeed's copies of the group
        else:
            dist.destroy_process_group()
        gc.collect()  # the last reference to a group waits for its threads
        time.sleep(0.1)  # ZeRO-3's closures keep theirs for ever: let its threads have the interpreter's lock


def own_device() -> torch.device:
    """Return the CPU, or this process's GPU among the visible ones, after making it torch's current device."""
    if default_device() == "cpu":
        return torch.device("cpu")
    # modulo, since a launcher may make only its own GPU visible to each process
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def join() -> World:
    """Join the process group that the environment describes, or create one of this process alone."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    device = own_device()
    cuda = device.type == "cuda"
    if cuda:
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed uses it as the device index
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=TIMEOUT)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    flags = dist.new_group(backend="gloo", timeout=TIMEOUT) if cuda and dist.get_world_size() > 1 else None
    world = World(dist.get_rank(), dist.get_world_size(), device, flags)
    if cuda:
        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index))
        refuse_shared_devices(world.gather((socket.gethostname(), uuid)))
    return world


def refuse_shared_devices(devices: list[tuple[str, str]]) -> None:
    """Raise `RecipeError` if two ranks have the same (host, GPU): NCCL cannot connect them."""
    (host, uuid), ranks = Counter(devices).most_common(1)[0]
    if ranks > 1:
        raise RecipeError(
            f"train.processes: {ranks} training processes on {host} have the same GPU ({uuid}); start one process per "
            "GPU, and let each see its own GPU or all of them"
        )
