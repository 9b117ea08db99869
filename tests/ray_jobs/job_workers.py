"""Workers and teachers that tests run in real Ray actors."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.errors import TeacherError
from distill.run.layout import RunFolder
from ray_jobs.devices import ending_with_the_device


@dataclass(frozen=True)
class Item:
    name: str
    group: str = "g"
    seconds: float = 0.0


class Doubler:
    """Doubles the number in an item's name; misbehaves as the name says. `folder` counts the starts of each item."""

    def __init__(self, folder: str):
        self.folder, self.groups = Path(folder), []

    def ready(self) -> int:
        return os.getpid()

    def run(self, item: Item) -> tuple[int, int, int]:
        started = self.folder / item.name
        times = int(started.read_text()) + 1 if started.exists() else 1
        started.write_text(str(times))
        if item.group not in self.groups:
            self.groups.append(item.group)
        time.sleep(item.seconds)
        if "bug" in item.name:
            raise ZeroDivisionError("a bug")
        if "user" in item.name:
            raise TeacherError("a user's error")
        if ("dies-once" in item.name and times == 1) or "dies-always" in item.name:
            os._exit(1)
        return 2 * int(item.name.split("-")[0]), os.getpid(), len(self.groups)


class LosesItsDevice:
    """Raises what PyTorch raises for a GPU that this process can no longer use."""

    def __init__(self, folder: str):
        self.folder = RunFolder(Path(folder))

    def ready(self) -> int:
        return os.getpid()

    def run(self, item: Item) -> None:
        with ending_with_the_device(item.name, self.folder):
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nSearch for it in the manual")


class Stillborn:
    def __init__(self):
        os._exit(1)

    def ready(self) -> int:
        return 0


class Unborn:
    def __init__(self):
        raise ValueError("no such setting")

    def ready(self) -> int:
        return 0


class Steady:
    """A teacher that takes the seconds written beside its log per shard, and logs process, time and first query."""

    def __init__(self, log: str, nan: bool = False, offset: float = 0.0):
        self.log, self.nan, self.offset = Path(log), nan, offset

    def score(self, queries: list[str], passages: list[str]) -> np.ndarray:
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {time.time_ns()} {queries[0]}\n")
        pace = self.log.with_suffix(".seconds")
        time.sleep(float(pace.read_text()) if pace.exists() else 0)
        scores = np.array([len(q) * 100.0 + len(p) + 1 / (1 + len(q)) for q, p in zip(queries, passages, strict=True)])
        scores += self.offset
        if self.nan:
            scores[len(scores) // 2] = np.nan
        return scores
