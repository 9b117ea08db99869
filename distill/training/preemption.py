"""Preemption: SIGTERM (schedulers, spot machines), SIGUSR1 (Slurm's early warning) and SIGHUP only set a flag.

The loop checks it between chunks, agrees with the other ranks, saves, and exits with status 75. Launchers change exit
codes, so a marker file in the run folder records the preemption as well.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from distill.errors import Preempted
from distill.run.files import write_json
from distill.run.layout import RunFolder
from distill.run.signals import STOP_SIGNALS, importing

STOPPED_EARLY = "asked to stop before training began; start it again"


class Watch:
    """The signal handler, and whether a stop signal has arrived."""

    def __init__(self) -> None:
        self._received: list[int] = []  # not an Event: a handler that interrupts another would deadlock on its lock
        self._raises = False

    @property
    def asked(self) -> bool:
        """Whether a stop signal has arrived."""
        return bool(self._received)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record a signal; inside `at_once`, raise `Preempted`, unless a module is being imported."""
        self._received.append(number)
        if self._raises and not importing(frame):
            self._raises = False
            raise Preempted(STOPPED_EARLY)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Preempted` inside this block on a signal, also one that arrived before: for work without steps."""
        if self.asked:
            raise Preempted(STOPPED_EARLY)
        self._raises = True
        try:
            yield
        finally:
            self._raises = False
        if self.asked:  # while a module was imported
            raise Preempted(STOPPED_EARLY)


@contextmanager
def watching() -> Iterator[Watch]:
    """Handle the stop signals inside this block; inside another such block, yield its watch."""
    handler = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)  # the watch, if `Watch.handle` is installed
    if isinstance(handler, Watch):
        yield handler
    elif threading.current_thread() is not threading.main_thread():
        yield Watch()  # never set: only the main thread can handle signals, so the caller has to
    else:
        watch = Watch()
        previous = {
            number: signal.signal(number, watch.handle)
            for number in STOP_SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN  # SIGHUP under nohup
        }
        try:
            yield watch
        finally:
            for number, before in previous.items():
                signal.signal(number, before)


def mark(folder: RunFolder, step: int) -> None:
    """Record that the run was preempted after `step`."""
    write_json(folder.preempted, {"stage": "train", "step": step})


def unmark(folder: RunFolder) -> None:
    """Remove the record: the run has been started again."""
    folder.preempted.unlink(missing_ok=True)
