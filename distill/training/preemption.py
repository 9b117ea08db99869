"""Being asked to stop: SIGTERM (schedulers, spot machines) and SIGUSR1 (Slurm's early warning) only set a flag.

The loop looks at it between chunks, agrees with the other ranks, saves, and ends with exit status 75. Launchers
change exit codes, so a marker file in the run folder says it too.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.data.files import write_json
from distill.data.layout import RunFolder
from distill.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Watch:
    """Whether a signal to stop has come."""

    def __init__(self) -> None:
        self._came: list[int] = []  # no Event: its lock would stop a handler that interrupts another one for ever
        self._raises = False

    @property
    def asked(self) -> bool:
        return bool(self._came)

    def handle(self, number: int, _frame: object) -> None:
        self._came.append(number)
        if self._raises:
            self._raises = False
            raise Preempted("asked to stop before training began; start it again")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside this block a signal, or one that came before, raises `Preempted`: for work that has no steps."""
        self._raises = True
        try:
            if self.asked:
                self.handle(0, None)
            yield
        finally:
            self._raises = False


_watch: Watch | None = None  # the one that handles this process's signals


@contextmanager
def watching() -> Iterator[Watch]:
    """Handle the signals while the block runs; inside another such block, yield its watch. Handlers are put back."""
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield _watch or Watch()  # Python takes signals in the main thread only; whoever runs us in another handles them
        return
    _watch = Watch()
    before = {number: signal.signal(number, _watch.handle) for number in SIGNALS}
    try:
        yield _watch
    finally:
        _watch = None
        for number, handler in before.items():
            signal.signal(number, handler)


def marker(folder: RunFolder) -> Path:
    """There while a run has been asked to stop and waits to be started again."""
    return folder.root / "preempted.json"


def mark(folder: RunFolder, step: int) -> None:
    write_json(marker(folder), {"stage": "train", "step": step})


def unmark(folder: RunFolder) -> None:
    marker(folder).unlink(missing_ok=True)
