"""Stop signals at any moment of any stage: the exit status says so, nothing stays behind, and the stage resumes.

`make test-slow ARGS="--signal-points=200 -k signals"` tries every stage, with and without Ray, with every signal at
five moments each.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from distill.recipe.load import dump_recipe
from tests.helpers.golden_records import digests
from tests.helpers.whole_run import whole_recipe

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
MOMENTS = 5
HINTS = ("the same command resumes", "start it again")
MARK = "DISTILL_TEST_POINT"  # variable that every process of a point inherits


@dataclass
class Work:
    """A stage's command, the run folder before it, its files after it, and how long it takes."""

    command: list[str]
    before: Path
    seconds: float = 0.0
    files: dict[str, str] = field(default_factory=dict)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_at_any_moment_of_any_stage(tmp_path, tiny_mlm, tiny_sentence, request):
    recipe = whole_recipe(tmp_path, tiny_mlm, tiny_sentence)
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    work = {" ".join(each.command): each for each in whole_run(file, recipe.folder, tmp_path)}
    points = list(itertools.product(work, SIGNALS, range(MOMENTS)))
    draw = random.Random(3)
    wrong = []
    for name, number, moment in draw.sample(points, min(len(points), request.config.getoption("--signal-points"))):
        each = work[name]
        shutil.rmtree(recipe.folder)
        shutil.copytree(each.before, recipe.folder)
        delay = each.seconds * (moment + draw.random()) / MOMENTS
        faults = stopped(each.command, file, number, delay)
        again, _ = started(each.command, file)
        message = again.communicate(timeout=300)[1]
        if again.returncode:
            faults.append(f"then status {again.returncode}: {message[-1000:]}")
        found = digests(recipe.folder)
        names = {place for place in found.keys() | each.files.keys() if not place.startswith("checkpoints/")}
        faults += [f"{place} differs" for place in sorted(names) if found.get(place) != each.files.get(place)]
        if faults:
            wrong.append(f"{name}, {number.name} after {delay:.1f} of {each.seconds:.1f} s: " + "; ".join(faults))
            print(wrong[-1])
    assert not wrong, "\n".join(wrong)


def whole_run(file: Path, folder: Path, home: Path) -> Iterator[Work]:
    """Run the stages one after the other, scoring with and without Ray; yields each with its folders and its time."""
    commands = [
        ["import"],
        ["mine"],
        ["teach"],
        ["score", "--shard", "0/1"],
        ["score"],
        ["label"],
        ["train", "train.processes=2"],
        ["train"],
        ["evaluate"],
    ]
    folder.mkdir(parents=True)
    for command in commands:
        work = Work(command, home / "-".join(["before", *command]).replace("/", "-"))
        shutil.copytree(folder, work.before)
        begin = time.monotonic()
        process, _ = started(command, file)
        message = process.communicate(timeout=300)[1]
        assert process.returncode == 0, message
        work.seconds = time.monotonic() - begin
        work.files = digests(folder)
        yield work
        if len(command) > 1:  # its stage comes again, without the option
            shutil.rmtree(folder)
            shutil.copytree(work.before, folder)


def started(command: list[str], file: Path, mark: str = "", temporary: str = "") -> tuple[subprocess.Popen, float]:
    """Start a stage in a process group of its own; returns it with the time at which it handles signals."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment |= {MARK: mark, "OMP_NUM_THREADS": "1"} | ({"TMPDIR": temporary} if temporary else {})
    process = subprocess.Popen(
        [sys.executable, "-m", "distill.cli", command[0], str(file), *command[1:]],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in SIGNALS],
    )
    while process.poll() is None and not handles(process.pid, signal.SIGUSR1):
        time.sleep(0.01)
    return process, time.monotonic()


def stopped(command: list[str], file: Path, number: signal.Signals, delay: float) -> list[str]:
    """Send a signal after `delay` seconds: to the group, as a terminal does, or to it alone; returns what is wrong."""
    mark, faults = uuid.uuid4().hex, []
    with temporary_folder() as temporary:
        process, _ = started(command, file, mark, temporary)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        with suppress(ProcessLookupError):
            if number in (signal.SIGINT, signal.SIGHUP):
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        try:
            message = process.communicate(timeout=120)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            faults.append("did not end within two minutes")
            message = process.communicate()[1]
        if process.returncode not in (0, 130 if number == signal.SIGINT else 75):
            faults.append(f"status {process.returncode}: {message[-1000:]}")
        if "Traceback" in message or (process.returncode and not any(word in message for word in HINTS)):
            faults.append(f"message {message[-1000:]}")
        left = psutil.wait_procs(marked(mark), timeout=10)[1]
        faults += [f"{each.name()} is left" for each in left if each.is_running()]
        for each in left:
            each.kill()
        faults += [f"{path} is left" for path in Path(temporary).iterdir() if path.name != "ray"]
    return faults


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def marked(mark: str) -> list[psutil.Process]:
    """Processes that inherited the mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
