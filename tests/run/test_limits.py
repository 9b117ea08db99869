"""Limits on threads, memory and open files: refused at the start where it can be seen, and never with a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from distill.recipe.load import dump_recipe
from distill.run import limits
from tests.helpers.small_run import small_recipe

STAGE = """
import resource, sys, threading
from pathlib import Path
from distill.errors import LimitError
from distill.run.files import stage_errors

def threads():
    for _ in range(10_000):
        threading.Thread(target=threading.Event().wait, daemon=True).start()

def files():
    kept = [open(__file__) for _ in range(10_000)]

def memory():
    bytearray(1 << 40)

def tensors():
    import torch
    torch.empty(1 << 40)

if sys.argv[1] != "tensors":
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    with stage_errors(Path("/tmp")):
        globals()[sys.argv[1]]()
except LimitError as error:
    print(error)
    sys.stdout.flush()
    import os
    os._exit(error.exit_status)
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("threads", "a thread or process could not be started"),
        ("files", "too many open files: 64 are allowed (ulimit -n"),
        ("memory", "out of memory (MemoryError)"),
        ("tensors", "out of memory ("),
    ],
)
def test_a_limit_that_is_met_within_a_stage_is_named(tmp_path, what, message):
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    ended = subprocess.run([sys.executable, script, what], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and ended.stdout.startswith(message), ended.stderr


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to become another user")
def test_a_user_with_few_threads_left_is_told_before_a_stage_begins(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)  # pytest's are its user's alone
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(small_recipe(tmp_path / "run")))
    reads_all = ["--inh-caps", "+dac_read_search,+dac_override", "--ambient-caps", "+dac_read_search,+dac_override"]
    other_user = ["setpriv", "--reuid", "64321", "--clear-groups", *reads_all, "prlimit", "--nproc=8"]
    ended = subprocess.run(
        [*other_user, sys.executable, "-m", "distill.cli", "import", file],
        env={**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert "stage 'import' needs about 10 threads, and the user's limit of 8 (ulimit -u) leaves" in ended.stderr
    assert not (tmp_path / "run" / "data").exists()


def test_the_least_limit_of_the_control_groups_counts(tmp_path, monkeypatch):
    groups = [tmp_path / "job" / "step", tmp_path / "job", tmp_path]
    groups[0].mkdir(parents=True)
    for folder, limit, current in ((groups[0], "max", 3), (groups[1], "100", 90)):
        (folder / "pids.max").write_text(limit)
        (folder / "pids.current").write_text(str(current))
    monkeypatch.setattr(limits, "_control_groups", lambda: groups)
    assert limits._of_container()[0] == 10
    limits.require_threads("scoring", 10)
    with pytest.raises(limits.LimitError, match=r"needs about 11 threads, and the limit of 100 of the job"):
        limits.require_threads("scoring", 11)


def test_this_process_is_in_a_control_group():
    if Path("/proc/self/cgroup").exists() and Path("/sys/fs/cgroup").is_dir():
        assert all(str(folder).startswith("/sys/fs/cgroup") for folder in limits._control_groups())
        assert limits._control_groups()
