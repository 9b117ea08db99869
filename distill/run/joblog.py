"""Event log of a job, as JSON lines in the run folder; `distill status` and the next launch read it.

Each launch writes its own file, `score-<number>-<host>-<pid>.jsonl`, so launches on several machines never share one.
The number orders them. Durations come from a monotonic clock; the wall-clock times in events are for people. A driver
holds a lock on its file while it lives. The checksums in the log identify damaged shards before there is a manifest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.run.files import read_json_lines, storage_errors
from distill.run.layout import RunFolder

_NAME = re.compile(r"score-(\d+)-(.+)-(\d+)")
_TIMES = frozenset({"time", "elapsed"})
_FIELDS = {  # event -> the fields that its readers use
    "start": _TIMES | {"pending"},
    "handed out": _TIMES | {"task"},
    "done": _TIMES | {"task", "shard", "pairs", "tokens", "padded_tokens"},
    "death": _TIMES | {"tasks"},
    "stopped": _TIMES | {"error"},
    "end": _TIMES,
}

Event = dict[str, Any]  # "event", "time" (wall clock), "elapsed" (seconds since the launch), and further fields


class JobLog:
    """Event log of the scoring job in one run folder: one line per event, flushed at once."""

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._file: Any = None
        self._start = time.monotonic()

    def write(self, event: str, **fields: Any) -> None:
        """Append an event. Raises `StorageError` if the disk is full."""
        with storage_errors(self._folder.logs):
            self._file = self._file or _new_file(self._folder)
            line = {"time": round(time.time(), 3), "elapsed": round(time.monotonic() - self._start, 3), "event": event}
            self._file.write(json.dumps({**line, **fields}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file of this launch, and release its lock."""
        if self._file is not None:
            with storage_errors(self._folder.logs):
                self._file.close()

    def events(self) -> Iterator[Event]:
        """Yield the events of all launches so far, in the order of their numbers."""
        for launch in launches(self._folder):
            yield from launch.events()

    def checksums(self) -> dict[str, set[str]]:
        """Return task name -> checksums its shard was committed with; several if the kind of device changed."""
        known: dict[str, set[str]] = {}
        for event in self.events():
            if event["event"] == "done" and event["shard"] is not None:
                known.setdefault(event["task"], set()).add(event["shard"]["xxh128"])
        return known


@dataclass(frozen=True)
class Launch:
    """One launch of the job, identified by its file."""

    path: Path
    number: int
    host: str
    pid: int

    def events(self) -> Iterator[Event]:
        """Yield the events in order; what is no whole event of ours is skipped."""
        for event in read_json_lines(self.path):
            fields = _FIELDS.get(event.get("event", ""))
            if fields is not None and fields <= event.keys():
                yield event

    def alive(self) -> bool | None:
        """Return whether the driver still runs, on any machine; None if the file system has no locks."""
        with open(self.path, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return None
        return False


def launches(folder: RunFolder) -> list[Launch]:
    """Return all launches of the scoring job, the oldest first."""
    result = []
    for path in folder.logs.glob("score-*.jsonl"):
        if (match := _NAME.fullmatch(path.stem)) is not None:  # else it is not ours
            result.append(Launch(path, int(match[1]), match[2], int(match[3])))
    return sorted(result, key=lambda launch: (launch.number, launch.host, launch.pid))


def _new_file(folder: RunFolder) -> Any:
    """Open and lock the file of the next launch. Launches that start together may share a number, never a file."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    number = max((launch.number for launch in launches(folder)), default=0)
    while True:
        number += 1
        path = folder.logs / f"score-{number:04d}-{socket.gethostname()}-{os.getpid()}.jsonl"
        try:
            file = open(path, "x", encoding="utf-8")  # noqa: SIM115 (open while the launch lasts)
        except FileExistsError:  # a launch of another thread of this process
            continue
        with contextlib.suppress(OSError):  # without file locks, `alive` returns None
            fcntl.flock(file, fcntl.LOCK_EX)
        return file
