"""A real Slurm for the session, and finished run folders that its jobs start from.

Jobs are slow to start and quick to run, so all jobs of a test file are submitted together, before its first test.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from distill.config import Recipe
from distill.pipeline.run import run_pipeline
from distill.pipeline.slurm import Job, recorded_jobs
from distill.recipe.load import dump_recipe, parse_recipe
from distill.run.layout import RunFolder
from tests.helpers.whole_run import whole_recipe
from tests.slurm.slurm_cluster import SlurmCluster, missing_programs

STAGES_AFTER = {  # what a stage and those after it leave in the run folder
    "score": ("scores", "labels", "start", "checkpoints", "model", "metrics", "logs", "report.html"),
    "train": ("start", "checkpoints", "model", "metrics", "logs", "report.html"),
}


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    if reason := missing_programs():
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        with SlurmCluster(root) as cluster:
            yield cluster
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_mlm, tiny_sentence) -> Recipe:
    """The recipe of a run finished on this machine without Slurm, to compare with and to start from."""
    torch.set_num_threads(1)
    recipe = whole_recipe(tmp_path_factory.mktemp("whole"), tiny_mlm, tiny_sentence)
    run_pipeline(recipe)
    return recipe


@dataclass
class Run:
    """A run folder, its recipe, and `distill` commands on it."""

    slurm: SlurmCluster
    recipe: Recipe
    file: Path
    ids: list[str] = field(default_factory=list)  # job ids

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.recipe.folder)

    @property
    def jobs(self) -> list[Job]:
        return recorded_jobs(self.folder)

    def distill(self, command: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "distill.cli", command, str(self.file), *arguments],
            text=True,
            capture_output=True,
            env={**self.slurm.environment, "OMP_NUM_THREADS": "1"},
        )

    def submit(self, *arguments: str) -> list[Job]:
        done = self.distill("submit", *arguments)
        assert done.returncode == 0, done.stderr
        self.ids = [job.id for job in self.jobs]
        return self.jobs

    def sbatch(self, *command: str) -> None:
        """Submit one of the scripts in slurm/ without `distill submit`."""
        setup = self.file.with_name("setup.sh")
        setup.write_text(f"python=({shlex.quote(sys.executable)})\n", encoding="utf-8")
        self.folder.jobs.mkdir(parents=True, exist_ok=True)
        self.ids = [
            self.slurm.run(
                "sbatch",
                "--parsable",
                f"--output={self.folder.jobs}/by-hand-%j.out",
                *command,
                cwd=Path(__file__).parents[2],
                env=self.slurm.environment | {"DISTILL_SETUP": str(setup)},
            )
        ]

    def output(self) -> str:
        """The jobs' logs, for failure messages."""
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.folder.jobs.rglob("*.out")))

    def wait(self, seconds: float = 300) -> None:
        """Wait until all jobs of the run have completed."""
        try:
            self.slurm.wait(*self.ids, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()[-6000:]}") from None


@pytest.fixture(scope="session")
def new_run(slurm, finished, tmp_path_factory):
    """new_run(name, stage, **sections): a run whose stages before `stage` are done, with changed recipe sections."""

    def make(name: str, stage: str = "import", **sections) -> Run:
        root = tmp_path_factory.mktemp("runs") / name
        root.mkdir()
        if stage != "import":
            ignored = shutil.ignore_patterns(*STAGES_AFTER[stage])
            shutil.copytree(
                finished.folder,
                root / "run",
                ignore=lambda folder, names: ignored(folder, names) if Path(folder) == finished.folder else set(),
            )
        tree = finished.model_dump(mode="json") | {"run_dir": str(root / "run")}
        for section, fields in sections.items():
            tree[section] = tree[section] | fields
        recipe = parse_recipe(tree)
        (root / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        return Run(slurm, recipe, root / "recipe.yaml")

    return make


# this process and the jobs share few cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
