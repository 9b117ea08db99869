"""The quickstart recipe, made small, submitted with one command: its table is that of the same run without Slurm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill.data.layout import RunFolder
from distill.recipe_file import load_recipe
from distill.slurm import recorded_jobs

pytestmark = pytest.mark.slurm
RECIPE = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SMALL = (
    "student.layers=1",
    "student.passage_max_length=48",
    "student.calibration={passages: 200}",
    "train.steps=10",
    "teachers.cross-encoder.fine_tune={layers: 1, epochs: 0.5}",
    "teachers.cross-encoder.max_length=48",
    "teachers.bi-encoder.max_length=48",
)
SAME = (
    "train.precision=fp32",
    "evaluate.precision=float32",
    "teachers.cross-encoder.dtype=float32",
    "teachers.bi-encoder.dtype=float32",
)  # what `auto` measures may come out one way or the other


def test_the_quickstart_is_submitted_with_one_command_and_ends_with_the_same_table(slurm, tmp_path):
    def arguments(name: str) -> list[str]:
        return [str(RECIPE), f"run_dir={tmp_path / name}", *SMALL, *SAME, "--limit=32"]

    distill = [sys.executable, "-m", "distill.cli"]
    submitted = subprocess.run(
        [*distill, "submit", *arguments("slurm"), "--all"], env=slurm.environment, text=True, capture_output=True
    )
    assert submitted.returncode == 0, submitted.stderr
    folder = RunFolder(tmp_path / "slurm-limit-32")
    jobs = recorded_jobs(folder)
    alone = subprocess.run(
        [*distill, "run", *arguments("alone")], env=slurm.environment, text=True, capture_output=True
    )
    assert alone.returncode == 0, alone.stderr
    slurm.wait(*(job.id for job in jobs), seconds=400)
    said = "\n".join(path.read_text() for path in sorted(folder.jobs.rglob("evaluate-*.out")))
    assert table(said) == table(alone.stdout)
    rows = [
        json.loads(RunFolder(tmp_path / f"{name}-limit-32").evaluation.read_text())["rows"]
        for name in ("alone", "slurm")
    ]
    assert rows[0] == rows[1]
    assert load_recipe(folder.recipe).name == "quickstart"


def table(said: str) -> str:
    """From the line above the table to the paths that differ."""
    return said[said.index("32 test queries, ") : said.index("checkpoint:")]
