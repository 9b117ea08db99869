"""What a job did, as JSON lines in the run folder's logs: read by `distill status`, and at the next launch.

Every launch writes a file of its own, `score-<number>-<host>-<pid>.jsonl`, so launches on several machines never share
one. They are told apart and put in order by the number, and time spans come from a clock that never jumps: the wall
clock in an event is for people. A driver holds a lock on its file for as long as it lives. The checksums in the log
tell a damaged shard from a whole one before there is a manifest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.data.files import read_json_lines, storage_errors
from distill.data.layout import RunFolder

Event = dict[str, Any]  # "event", "time" (wall clock), "elapsed" (seconds since the launch), and the event's own


class JobLog:
    """Event log of the scoring job in one run folder: one line per event, flushed at once."""

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self._file: Any = None
        self._start = time.monotonic()

    def write(self, event: str, **fields: Any) -> None:
        """Append an event. Raises `StorageError` where the disk is full."""
        with storage_errors(self._folder.logs):
            self._file = self._file or _new_file(self._folder)
            line = {"time": round(time.time(), 3), "elapsed": round(time.monotonic() - self._start, 3), "event": event}
            self._file.write(json.dumps({**line, **fields}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """The launch is over: let go of its file."""
        if self._file is not None:
            with storage_errors(self._folder.logs):
                self._file.close()

    def events(self) -> Iterator[Event]:
        """Events of all launches so far, in the order of their numbers."""
        for launch in launches(self._folder):
            yield from launch.events()

    def checksums(self) -> dict[str, set[str]]:
        """Task name -> the checksums its shard was committed with (several, if the device kind changed)."""
        known: dict[str, set[str]] = {}
        for event in self.events():
            if event["event"] == "done" and event["shard"] is not None:
                known.setdefault(event["task"], set()).add(event["shard"]["xxh128"])
        return known


@dataclass(frozen=True)
class Launch:
    """One launch of the job, by its file."""

    path: Path
    number: int
    host: str
    pid: int

    def events(self) -> Iterator[Event]:
        """In the order they happened; a line cut short by a crash is passed over."""
        yield from read_json_lines(self.path)

    def alive(self) -> bool | None:
        """Whether its driver still runs, on whatever machine; None where the file system has no locks."""
        with open(self.path, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return None
        return False


def launches(folder: RunFolder) -> list[Launch]:
    """All launches of the scoring job, the oldest first."""
    found = []
    for path in folder.logs.glob("score-*.jsonl"):
        number, _, rest = path.stem.removeprefix("score-").partition("-")
        host, _, pid = rest.rpartition("-")
        found.append(Launch(path, int(number), host, int(pid)))
    return sorted(found, key=lambda launch: (launch.number, launch.host, launch.pid))


def _new_file(folder: RunFolder) -> Any:
    """The next launch's file, open and locked. Launches that start together may share a number, never a file."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    number = max((launch.number for launch in launches(folder)), default=0)
    while True:
        number += 1
        path = folder.logs / f"score-{number:04d}-{socket.gethostname()}-{os.getpid()}.jsonl"
        try:
            file = open(path, "x", encoding="utf-8")  # noqa: SIM115 (open for the length of the launch)
        except FileExistsError:  # a launch of another thread of this process
            continue
        with contextlib.suppress(OSError):  # a file system without locks: `alive` will not know
            fcntl.flock(file, fcntl.LOCK_EX)
        return file
