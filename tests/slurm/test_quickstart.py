"""A small quickstart recipe, submitted with one command, gives the table of the same run without Slurm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill.pipeline.slurm import recorded_jobs
from distill.recipe.load import load_recipe
from distill.run.layout import RunFolder

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
)  # `auto` measures, and its choice may differ between runs


def test_the_submitted_quickstart_ends_with_the_table_of_a_run_without_slurm(slurm, tmp_path):
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
    output = "\n".join(path.read_text() for path in sorted(folder.jobs.rglob("evaluate-*.out")))
    assert table(output) == table(alone.stdout)
    rows = [
        json.loads(RunFolder(tmp_path / f"{name}-limit-32").evaluation.read_text())["rows"]
        for name in ("alone", "slurm")
    ]
    assert rows[0] == rows[1]
    assert load_recipe(folder.recipe).name == "quickstart"


def table(output: str) -> str:
    """The printed table, without the paths below it, which differ."""
    return output[output.index("32 test queries, ") : output.index("checkpoint:")]
