"""What a job did, as JSON lines in the run folder's logs: read by `distill status`, and at the next launch.

Every launch writes a file of its own, so launches on several machines never share one. The checksums in it tell a
damaged shard from a whole one before there is a manifest.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.data.layout import RunFolder


class JobLog:
    """Event log of the scoring job in one run folder: one line per event, flushed at once."""

    def __init__(self, folder: RunFolder):
        self._folder = folder.logs
        self._path = self._folder / (f"score-{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-"
                                     f"{os.getpid()}.jsonl")

    def write(self, event: str, **fields: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """Events of all launches so far; a line cut short by a crash is passed over."""
        for path in sorted(self._folder.glob("score-*.jsonl")):
            yield from read_events(path)

    def checksums(self) -> dict[str, set[str]]:
        """Task name -> the checksums its shard was committed with (several, if the device kind changed)."""
        known: dict[str, set[str]] = {}
        for event in self.events():
            if event["event"] == "done" and event["shard"] is not None:
                known.setdefault(event["task"], set()).add(event["shard"]["xxh128"])
        return known


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
