"""Being asked to stop: SIGTERM (schedulers, spot machines) and SIGUSR1 (Slurm's early warning) only set a flag.

The loop looks at it between chunks, agrees with the other ranks, saves, and ends with exit status 75. Launchers
change exit codes, so a marker file in the run folder says it too.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.data.files import write_json
from distill.data.layout import RunFolder

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def watching() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a signal has come. Handlers are put back at the end."""
    came: list[int] = []  # no Event: its lock would stop a handler that interrupts another one for ever

    def asked_to_stop() -> bool:
        return bool(came)

    if threading.current_thread() is not threading.main_thread():
        yield asked_to_stop  # Python takes signals in the main thread only; whoever runs us in another one handles them
        return
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        yield asked_to_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def marker(folder: RunFolder) -> Path:
    """There while a run has been asked to stop and waits to be started again."""
    return folder.root / "preempted.json"


def mark(folder: RunFolder, step: int) -> None:
    write_json(marker(folder), {"stage": "train", "step": step})


def unmark(folder: RunFolder) -> None:
    marker(folder).unlink(missing_ok=True)
