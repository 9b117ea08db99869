"""Estimate what a recipe costs on given devices, over all rounds and stages, before anything runs.

Each stage computes its own cost (`Stage.cost`). This module collects the inputs: measured rates, the shapes of models,
and sizes from the imported data, else from the source's files, else from the recipe's `data.sizes`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from distill.config import Recipe
from distill.errors import DistillError
from distill.importing.volumes import volumes
from distill.pipeline.registry import stages_of
from distill.pipeline.resolve import planned_values
from distill.pipeline.submit import has_nothing_to_do, plan_jobs
from distill.pipeline.truncation import truncation_of
from distill.planning.case import Case, Cost, Probe, Rate, StageCost
from distill.planning.devices import Device, device
from distill.planning.flops import ModelCost
from distill.planning.memory import Memory, training_memory
from distill.planning.volumes import Counts, Volumes
from distill.recipe.expand import open_runs
from distill.recipe.load import load_recipe
from distill.run.files import read_json_lines, read_object
from distill.run.joblog import launches
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.run.model_ref import ModelRef
from distill.run.run import Run
from distill.run.truncation import TruncationRecord


@dataclass(frozen=True)
class Planned:
    """The cost of one stage of one round."""

    round: int
    stage: str
    cost: StageCost


@dataclass(frozen=True)
class Estimate:
    gpus: int
    device: Device
    probe: Path | None
    planned: list[Planned]
    sizes_from: str
    memory: Memory | None  # per training process; None: the student's shape is unknown, or there is none
    ranks: int  # training processes; 0 without a student
    jobs: int  # number of Slurm jobs; an array counts as one
    truncation: TruncationRecord | None  # of the first round; None before the import

    @property
    def costs(self) -> list[tuple[int, str, Cost]]:
        """Round, stage and cost of every part of every stage."""
        return [(planned.round, planned.stage, part) for planned in self.planned for part in planned.cost.parts]

    @property
    def wall_seconds(self) -> float:
        return sum(cost.wall_seconds or 0.0 for _, _, cost in self.costs)

    @property
    def device_seconds(self) -> float:
        return sum(cost.device_seconds or 0.0 for _, _, cost in self.costs)

    @property
    def not_counted(self) -> int:
        """Number of parts with unknown cost, which the sums leave out."""
        return sum(cost.wall_seconds is None for _, _, cost in self.costs)


def estimate(recipe: Recipe, gpus: int, gpu_type: str, *, limit: int | None = None, use_probe: bool = True) -> Estimate:
    """Estimate a recipe's cost on `gpus` devices of a type known to `distill.planning.devices.device`."""
    runs, target = open_runs(recipe, limit), device(gpu_type)
    probe = find_probe(runs[0]) if use_probe else None
    planned, jobs, sizes_from = [], 0, ""
    for number, run in enumerate(runs, start=1):
        case = case_of(run, gpus, target, probe)
        sizes_from = sizes_from or case.size.origin
        planned += [Planned(number, stage.name, stage.cost(case)) for stage in stages_of(run)]
        jobs += len(plan_jobs(run, [stage for stage in stages_of(run) if not has_nothing_to_do(stage, run)]))
    first = planned_values(runs[0])[0]
    ranks, memory = 0, None
    if recipe.student is not None:
        ranks = min(gpus, recipe.train.batch_size) if target.cuda else gpus * (recipe.train.processes or 1)
        student = case_of(runs[0], gpus, target, None).student()
        memory = training_memory(first.recipe, student, ranks, target) if student else None
    measured = probe.folder if probe else None
    return Estimate(gpus, target, measured, planned, sizes_from, memory, ranks, jobs, truncation_of(first))


@dataclass(frozen=True)
class DryRun:
    """What one round would do.

    `chosen`: fields that the recipe leaves to the program -> their value, in words; `truncation`: None before the
    import.
    """

    run: Run
    size: Volumes
    planned: list[Planned]
    chosen: dict[str, str]
    truncation: TruncationRecord | None


def dry_run(recipe: Recipe, limit: int | None = None) -> list[DryRun]:
    """For each round: its sizes, the work and disk space of every stage, and the chosen values."""
    rounds = []
    for number, run in enumerate(open_runs(recipe, limit), start=1):
        case = case_of(run, 1, Device("cpu", 1.0, 0.0, cuda=False), None)  # the device only affects times
        planned = [Planned(number, stage.name, stage.cost(case)) for stage in stages_of(run)]
        filled, chosen = planned_values(run)
        rounds.append(DryRun(run, case.size, planned, chosen, truncation_of(filled)))
    return rounds


def case_of(run: Run, gpus: int, target: Device, probe: Probe | None) -> Case:
    """The inputs of the stages' cost forecasts."""
    run, size = planned_values(run)[0], volumes(run)
    return Case(run.recipe, size, Counts.of(run.recipe, size), gpus, target, probe, _Models(run.recipe))


@dataclass(frozen=True)
class _Models:
    """Looks up a model's shape: declared in `data.sizes.models`, or from a config.json on this machine."""

    recipe: Recipe

    def __call__(self, *names: str | None, layers: int | None = None) -> ModelCost | None:
        """The shape of the first of these models that is known, cut to its lower `layers`."""
        declared = self.recipe.data.sizes.models if self.recipe.data.sizes else {}
        for name in names:
            if name in declared:
                return ModelCost.of_shape(declared[name], layers)
        for name in names:
            if name is not None and (config := _config(name)) and (cost := ModelCost.of(config, layers)):
                return cost
        follows = self.recipe.follows
        if follows and follows.model and str(follows.checkpoint) in names:  # not saved yet
            return self(follows.model, layers=self.recipe.trained_student.layers)
        return None


def _config(name: str) -> dict[str, object] | None:
    try:
        return ModelRef.parse(name).cached_config()
    except DistillError:  # a package that is not installed, or an option that is not a model
        return None


def find_probe(run: Run) -> Probe | None:
    """Measured rates of the run itself, else of its largest rehearsal; None if neither has run."""
    folder = run.folder.root
    rehearsals = {
        int(match[1]): path
        for path in folder.parent.glob(f"{folder.name}-limit-*")
        if (match := re.fullmatch(rf"{re.escape(folder.name)}-limit-(\d+)", path.name))
    }
    for path in (folder, *(rehearsals[limit] for limit in sorted(rehearsals, reverse=True))):
        if (path / "recipe.yaml").exists():
            probe = read_probe(RunFolder(path))
            if probe.teachers or probe.train_tokens_per_second:
                return probe
    return None


def read_probe(folder: RunFolder) -> Probe:
    """Measured rates from a run folder's logs."""
    recipe = planned_values(Run(load_recipe(folder.recipe), folder))[0].recipe
    size = volumes(Run(recipe.model_copy(update={"run_dir": folder.root}), folder))
    speeds = [line["tokens_per_second"] for line in read_json_lines(folder.train_log) if "tokens_per_second" in line]
    manifest = read_manifest(folder.model)
    processes = manifest.counts.get("processes", 1) if manifest else 1
    return Probe(
        folder.root,
        size,
        Counts.of(recipe, size),
        _teacher_rates(folder),
        median(speeds) / processes if speeds else None,
        manifest is not None and manifest.counts.get("device", "cpu") == "cuda",
        {line["stage"]: line["seconds"] for line in read_json_lines(folder.stage_log)},
    )


def _teacher_rates(folder: RunFolder) -> dict[str, Rate]:
    """Rate of each teacher, from its workers' seconds on score shards and on chunks of vectors."""
    work: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for launch in launches(folder):
        for event in launch.events():
            if event["event"] == "done":
                for key in ("pairs", "tokens", "seconds"):
                    work[event["task"].split("/", 1)[0]][key] += event[key]
    return {
        name: Rate(done["pairs"], done["tokens"], done["seconds"], _on_cuda(folder, name))
        for name, done in work.items()
        if done["pairs"] and done["seconds"]
    }


def _on_cuda(folder: RunFolder, teacher: str) -> bool:
    record = folder.execution(teacher)
    return record.exists() and read_object(record).get("device") == "cuda"
