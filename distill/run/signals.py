"""Stop signals: SIGTERM and SIGUSR1 (schedulers) and SIGHUP (a closed terminal) end with status 75, SIGINT with 130.

The handler raises in the main thread, wherever Python code runs. An exception cannot pass through some foreign code:
around Ray's, `postponed` keeps the signal until the code has returned, and while a module is imported, the handler
waits for the import's end. Where an exception is lost all the same (as in a finaliser), it is raised again; where
foreign code turns it into another error, `stopping` tells what it was. Training only notes signals, see
`distill.training.preemption`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from distill.errors import Preempted, Stop

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_RETRY_SECONDS = 0.02  # while a module is imported
_LOST_SECONDS = 0.5  # after which an exception that no code is handling was lost

_depth = 0  # of `postponed` blocks
_received: int | None = None  # a signal for which nothing was raised yet
_raised: Stop | None = None


def install() -> None:
    """Handle the stop signals, except those that the parent process had ignored (SIGHUP under nohup)."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore() -> None:
    """Ignore the stop signals from now on, Ctrl-C among them; the interpreter would kill the process at its end."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def stopping() -> Stop | None:
    """What was raised for a signal, if one has arrived."""
    return _raised


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


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    if _depth:
        _received = number
    elif importing(frame):
        _received = number
        _again_in(_RETRY_SECONDS)
    else:
        _stop(number)


def _stop(number: int) -> None:
    global _received, _raised
    _received = None
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # a second one must not interrupt the cleanup
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C may
    interrupted = number == signal.SIGINT
    what = "interrupted" if interrupted else "asked to stop"
    status = 130 if interrupted else Preempted.exit_status
    _raised = Stop(f"{what}; the same command resumes from what is finished", status)
    _again_in(_LOST_SECONDS)
    raise _raised


def _again_in(seconds: float) -> None:
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _on_alarm(_number: int, frame: FrameType | None) -> None:
    if _received is not None:
        if not _depth:
            _handle(_received, frame)
    elif _raised is not None and not _handled(sys.exc_info()[1], frame):
        _again_in(_LOST_SECONDS)
        raise _raised


def importing(frame: FrameType | None) -> bool:
    """Whether the main thread is in an import, which may have called C code that takes exceptions for its own."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _handled(error: BaseException | None, frame: FrameType | None) -> bool:
    """Whether the main thread is cleaning up after the raised exception: it is among those being handled."""
    while error is not None:
        if error is _raised:
            return True
        error = error.__context__
    return _depth > 0 or importing(frame)
