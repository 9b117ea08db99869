"""Stop signals: they raise in Python code, wait for foreign code, and respect nohup."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from distill.errors import Stop
from distill.run import signals
signals.install()
number = getattr(signal, sys.argv[1])
try:
    with signals.postponed():
        with signals.postponed():
            os.kill(os.getpid(), number)
            print("inner", flush=True)
        print("outer", flush=True)
    print("never")
except Stop as error:
    print(error.exit_status)
    os.kill(os.getpid(), signal.SIGTERM)  # a second one does not interrupt the cleanup
    print("cleaned up")
"""


def run(name: str, script: str = SCRIPT, before: int = signal.SIG_DFL) -> subprocess.CompletedProcess:
    """Run the script with the signal's handling that its parent left it."""
    return subprocess.run(
        [sys.executable, "-c", script, name],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(getattr(signal, name), before),
    )


@pytest.mark.parametrize(
    ("name", "status"),
    [("SIGTERM", "75"), ("SIGUSR1", "75"), ("SIGHUP", "75"), ("SIGINT", "130")],
)
def test_a_signal_is_kept_until_foreign_code_has_returned(name, status):
    assert run(name).stdout.split("\n") == ["inner", "outer", status, "cleaned up", ""]


def test_a_signal_that_the_parent_ignores_stays_ignored():
    script = SCRIPT.replace('print("never")', 'print("went on"); sys.exit()')
    ended = run("SIGHUP", script, before=signal.SIG_IGN)
    assert ended.stdout.split() == ["inner", "outer", "went", "on"]
