"""A real Slurm for the session, and finished run folders for its jobs to begin from.

Jobs take long to start and little to run, so those of a test file are submitted together, before its first test.
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
from slurm_cluster import SlurmCluster, missing_programs
from whole_run import whole_recipe

from distill.config import Recipe
from distill.data.layout import RunFolder
from distill.pipeline import run
from distill.recipe_file import dump_recipe, parse_recipe
from distill.slurm import Job, recorded_jobs

STAGES_AFTER = {  # stage -> what lies in the run folder from it on
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
    """The recipe of a run that was made on this machine, without Slurm, to compare with and to begin from."""
    torch.set_num_threads(1)
    recipe = whole_recipe(tmp_path_factory.mktemp("whole"), tiny_mlm, tiny_sentence)
    run(recipe)
    return recipe


@dataclass
class Run:
    """A run folder, its recipe, and `distill` on it as a person would call it."""

    slurm: SlurmCluster
    recipe: Recipe
    file: Path
    ids: list[str] = field(default_factory=list)  # of its jobs

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
        """Submit one of the scripts in slurm/ by hand."""
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
        """What the jobs have written, for the message of a test that fails."""
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.folder.jobs.rglob("*.out")))

    def wait(self, seconds: float = 300) -> None:
        """Until all jobs of the run have completed."""
        try:
            self.slurm.wait(*self.ids, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()[-6000:]}") from None


@pytest.fixture(scope="session")
def new_run(slurm, finished, tmp_path_factory):
    """new_run(name, stage, **sections): a run whose stages before `stage` are done, with its recipe changed."""

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


# of this process and of the jobs
os.environ.setdefault("OMP_NUM_THREADS", "1")  # they share few cores
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
