"""What surrounds a job: a Ray of somebody else, long or unusable temporary folders, signals while Ray works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from distill.errors import RecipeError
from distill.recipe.load import dump_recipe, parse_recipe
from distill.run.layout import RunFolder
from ray_jobs import cluster
from tests.helpers.small_run import save_checkpoint
from tests.helpers.stages import import_data
from tests.importing.files import lines
from tests.ray_jobs.small_job import WORDS

LONG = "scratch-space-of-the-user/slurm_jobdir/1355700/tmp.t0016/rank0/more"
START = """
import sys, ray
from distill.config import Cluster
from distill.errors import RecipeError
from ray_jobs.cluster import ray_cluster
try:
    with ray_cluster(Cluster(cpus=1)):
        print(ray.cluster_resources()["CPU"])
except RecipeError as error:
    print(error)
"""


def test_a_short_temporary_folder_is_used_and_a_long_one_replaced(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert Path(cluster._temporary_folder()).parent == Path("/tmp")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / LONG))
    assert Path(cluster._temporary_folder()).parent == Path("/tmp")


def test_a_temporary_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    file = Path("/tmp") / f"distill-test-{os.getpid()}"
    file.write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(file))
    try:
        with pytest.raises(RecipeError, match=r"Ray cannot write to .* set RAY_TMPDIR to a folder"):
            cluster._temporary_folder()
    finally:
        file.unlink()


def test_a_ray_of_our_own_starts_whatever_the_environment_names(tmp_path):
    (tmp_path / LONG).mkdir(parents=True)
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:6399", "TMPDIR": str(tmp_path / LONG)}
    started = subprocess.run(
        [sys.executable, "-c", START], env=environment, capture_output=True, text=True, timeout=200
    )
    assert started.stdout == "1.0\n", started.stderr


def on_small_disk(place: Path, size: str, **variables: str) -> subprocess.CompletedProcess:
    """Start Ray where `place` is a disk of its own of `size`, which other processes do not see."""
    mount = f"mount -t tmpfs -o size={size} tmpfs {place}"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | variables
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "-", sys.executable, "-c", START]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def test_a_tiny_shared_memory_is_enough():
    started = on_small_disk(Path("/dev/shm"), "64k")
    assert started.stdout == "1.0\n", started.stderr


def test_a_full_temporary_folder_is_named_at_once():
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as folder:
        started = on_small_disk(Path(folder), "64k", RAY_TMPDIR=folder)
    assert f"Ray cannot write to {folder}/ray (No space left on device); set RAY_TMPDIR to a folder" in started.stdout


def orphans() -> list[str]:
    """Ray's processes whose driver is gone."""
    lines = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if line.split()[0] == "1" and ("raylet" in line or "gcs_server" in line)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_mining_on_ray_stops_when_asked_and_goes_on(tmp_path, tiny_mlm, number):
    splade = save_checkpoint(tiny_mlm, tmp_path / "splade")
    rows = [{"query": f"{word} {i}", "positive": f"{word} {i} {i + 1}"} for i, word in enumerate(WORDS[:300])]
    recipe = parse_recipe(
        {
            "name": "signals",
            "run_dir": str(tmp_path / "run"),
            "data": {"source": {"kind": "jsonl", "path": str(lines(tmp_path / "rows.jsonl", rows))}},
            "mine": {"miners": {"splade": {"kind": "splade", "model": str(splade), "top": 3}}, "shard_passages": 1},
            "cluster": {"cpus": 2},
            "teachers": {"bm25": {"kind": "bm25"}},
            "student": {"model": "none"},
        }
    )
    folder, file = RunFolder(recipe.folder), tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    import_data(recipe, folder)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "distill.cli", "mine", str(file)]
    driver = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # background jobs and nohup ignore some
    )
    while not list(folder.data.glob("index/*/chunk-*.arrow")) and driver.poll() is None:
        time.sleep(0.05)
    driver.send_signal(number)
    message = driver.communicate(timeout=180)[1]
    assert "Traceback" not in message and "the same command resumes" in message
    assert driver.returncode == (130 if number == signal.SIGINT else 75)
    assert not orphans()
    made = {path: path.stat().st_mtime_ns for path in folder.data.glob("index/*/chunk-*.arrow")}
    assert made and not (folder.candidates("train") / "manifest.json").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == written for path, written in made.items())
