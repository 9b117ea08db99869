"""A stage of the pipeline as one object: its outputs, its work, its cost, and its job on a cluster.

Commands, `run`, `status`, `plan`, `submit` and the preflight are loops over `distill.pipeline.registry.STAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config import Recipe, SlurmJob
from distill.planning.case import Case, StageCost
from distill.run.layout import RunFolder
from distill.run.output import Output
from distill.run.resolved import AutoField
from distill.run.run import Run
from distill.run.truncation import Truncation

Reader = Callable[[], Sequence[Truncation]]  # counts the texts of one model; raises `DistillError` if it cannot


@dataclass(frozen=True)
class BatchJob:
    """Slurm job of a stage: the script in slurm/, and the machines and tasks to request."""

    script: str = "pipeline.sbatch"
    nodes: int = 1
    tasks: int = 1  # per node
    array: str | None = None  # value of `--array`
    log: str = "{stage}-%j.out"  # file name pattern


def one_task(run: Run, request: SlurmJob) -> BatchJob:
    """Return a job of one task on one machine; consecutive stages with the same request share it."""
    return BatchJob()


def nothing(*_: Any) -> None:
    """Do nothing: the default of a stage's optional functions."""


def no_readers(run: Run) -> Mapping[str, Reader]:
    """Return no model: the default of `Stage.readers`."""
    return {}


@dataclass(frozen=True)
class Stage:
    """A stage. `outputs(run)` may assume that earlier stages are done; an empty list means nothing to do.

    `execute(run, outputs)` is called with all outputs if one is missing. The file of a stage must not import torch or
    Ray at the top: the command line imports every stage to list it.
    """

    name: str
    help: str
    outputs: Callable[[Run], Sequence[Output]]
    execute: Callable[[Run, Sequence[Output]], Any]
    cost: Callable[[Case], StageCost]
    needs: tuple[str, ...] = ()  # stages that must be up to date before this one runs alone
    check_recipe: Callable[[Recipe], None] = nothing  # preflight: raises if the recipe cannot work
    check_data: Callable[[Run], None] = nothing  # preflight: raises if recipe and imported data do not fit
    auto: tuple[AutoField, ...] = ()  # fields of its section that the recipe may leave to the program
    auto_of: Callable[[Recipe], tuple[AutoField, ...]] = lambda recipe: ()  # further ones, named by the recipe
    readers: Callable[[Run], Mapping[str, Reader]] = no_readers  # its models, by name, and what each does not read
    job: Callable[[Run, SlurmJob], BatchJob] = one_task
    part: Callable[[Run, Sequence[Output], tuple[int, int]], Any] | None = None  # runs task i of n of a job array
    auxiliary: Callable[[RunFolder], Sequence[Path]] = lambda folder: ()  # further folders, without manifest
    needs_student: bool = False  # left out of a recipe without a student
    caches: Callable[[RunFolder], Sequence[Path]] = lambda folder: ()  # folders whose sealed files can be made again
    first_round_only: bool = False  # later rounds use the first round's output
    progress: Callable[[Run], dict[str, Any] | None] = nothing  # of a running job, for `distill status`
    statistics: Callable[[Run], None] | None = None  # prints statistics of the output: `--stats`
    results: Callable[[Sequence[Run]], None] | None = None  # prints the results of all rounds, at the end
    pages: bool = False  # write report and model card after it
