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


LOST = """
import os, signal, sys, time, weakref
from distill.errors import Stop
from distill.run import signals
signals.install()
number = getattr(signal, sys.argv[1])

class Thing: pass

def finaliser(_):
    os.kill(os.getpid(), number)
    time.sleep(0.1)  # the exception is raised here, and lost: Python ignores those of finalisers

try:
    thing = Thing()
    kept = weakref.ref(thing, finaliser)
    del thing
    time.sleep(5)
    print("never")
except Stop as error:
    time.sleep(1)  # cleaning up is not interrupted
    print(error.exit_status)
"""

IMPORT = """
import os, pathlib, signal, sys, time
from distill.errors import Stop
from distill.run import signals
signals.install()
folder = pathlib.Path(sys.argv[2])
(folder / "slow_module.py").write_text(
    "import os, signal, time\\n"
    "os.kill(os.getpid(), getattr(signal, os.environ['NAME']))\\n"
    "time.sleep(0.2)\\n"
    "whole = True\\n"
)
sys.path.insert(0, str(folder))
os.environ["NAME"] = sys.argv[1]
try:
    import slow_module
    time.sleep(5)
    print("never")
except Stop as error:
    print(error.exit_status, sys.modules["slow_module"].whole)
"""


def test_an_exception_that_was_lost_is_raised_again():
    ended = run("SIGTERM", LOST)
    assert ended.stdout == "75\n" and "Exception ignored" in ended.stderr


def test_an_import_is_not_interrupted(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", IMPORT, "SIGTERM", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "75 True\n", ended.stderr


def test_what_foreign_code_makes_of_the_exception_is_still_a_stop(tmp_path):
    script = (
        "import os, signal, sys\n"
        "import distill.cli.app as cli\n"
        "def app():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except BaseException as error:\n"
        "        raise AttributeError('partially initialised')\n"
        "cli.app = app\n"
        "cli.main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 75 and ended.stderr.startswith("distill: asked to stop"), ended.stderr
