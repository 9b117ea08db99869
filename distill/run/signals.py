"""Stop signals: SIGTERM and SIGUSR1 (schedulers) and SIGHUP (a closed terminal) end with status 75, SIGINT with 130.

The handler raises in the main thread, wherever Python code runs. An exception cannot pass through some foreign code, as
Ray's; around it, `postponed` keeps the signal until the code has returned. Training only notes signals, see
`distill.training.preemption`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from distill.errors import Preempted, Stop

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

_depth = 0  # of `postponed` blocks
_received: int | None = None


def install() -> None:
    """Handle the stop signals, except those that the parent process had ignored (SIGHUP under nohup)."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore() -> None:
    """Ignore the stop signals from now on, Ctrl-C among them; the interpreter would kill the process at its end."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def postponed() -> Iterator[None]:
    """Raise what a signal asks for after this block instead of inside it."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0 and _received is not None:
            _stop(_received)


def _handle(number: int, _frame: object) -> None:
    global _received
    if _depth:
        _received = number
    else:
        _stop(number)


def _stop(number: int) -> None:
    global _received
    _received = None
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # a second one must not interrupt the cleanup
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C may
    interrupted = number == signal.SIGINT
    what = "interrupted" if interrupted else "asked to stop"
    raise Stop(f"{what}; the same command resumes from what is finished", 130 if interrupted else Preempted.exit_status)
