"""Inputs of the stages' cost forecasts, and the rules that several stages share.

Times follow from a rate measured by a rehearsal or an earlier run on the same kind of device. Otherwise they are
operations / (peak of the device x assumed share of it). Each number states its basis.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from distill.config import Miner, Recipe, Teacher
from distill.planning.devices import Device
from distill.planning.flops import ModelCost
from distill.planning.volumes import Counts, Volumes

# assumed shares of a device's peak, unless a rehearsal has measured rates; of GPUs, for models as wide as BERT-base
ENCODING, TRAINING, ON_CPU = 0.40, 0.25, 0.50
NARROW = 512  # hidden size below which memory and launches limit a GPU
NARROW_SHARE = 0.5  # what is left of its share then
FLOAT32_SHARE = 0.1  # what is left without 16-bit products, which the peaks are those of
PRODUCTS_PER_SECOND = 800e6  # of exact sparse search, measured on one core with AVX2 (benchmarks/search.py)
PRODUCTS = 3.0  # per query and passage, at a trained sparsity: the FLOPS of SPLADE models are 1 to 4
START_SECONDS = 60.0  # assumed: start of a worker, and loading one model
CORES = 8  # assumed per device, unless `slurm.cpus` is set
PER_MACHINE = 8  # devices that share fast links


@dataclass(frozen=True)
class Cost:
    """Cost of a stage, or of one model in it. None: unknown; `basis` states what the times follow from."""

    part: str
    basis: str
    tokens: float | None = None
    flops: float | None = None
    device_seconds: float | None = None  # of all devices together; None for work on CPUs only
    wall_seconds: float | None = None
    bound: str = ""  # why more devices would not make it faster


@dataclass(frozen=True)
class StageCost:
    """`work`: volume of the stage, in words; `disk`: bytes written (None: depends on an unknown model)."""

    work: str
    disk: float | None
    parts: Sequence[Cost] = ()


@dataclass(frozen=True)
class Rate:
    """Work done by a teacher's workers in `seconds`, summed over workers; `cuda`: whether they had GPUs."""

    pairs: float
    tokens: float  # 0: a teacher that encodes texts, and does not count them
    seconds: float
    cuda: bool


@dataclass(frozen=True)
class Probe:
    """Rates measured in the run `folder`; stages that it has not finished are missing."""

    folder: Path
    size: Volumes
    counts: Counts
    teachers: dict[str, Rate] = field(default_factory=dict)
    train_tokens_per_second: float | None = None  # of one process
    train_cuda: bool = False
    stage_seconds: dict[str, float] = field(default_factory=dict)  # of the last execution of each stage


@dataclass(frozen=True)
class Case:
    """One round of a recipe on `gpus` devices. `models(*names, layers=...)`: the first model of known shape."""

    recipe: Recipe
    size: Volumes
    counts: Counts
    gpus: int
    device: Device
    probe: Probe | None
    models: Callable[..., ModelCost | None]

    def assumed(self, flops: float, share: float, model: ModelCost, precision: str) -> tuple[float, str]:
        """Return the device-seconds of `flops` operations of a model, at a `share` of a GPU's peak, and their basis.

        `precision`: of products, as recipes name it.
        """
        if not self.device.cuda:
            share = ON_CPU
        else:
            share *= NARROW_SHARE if model.hidden < NARROW else 1.0
            share *= FLOAT32_SHARE if precision in ("float32", "fp32") else 1.0
        basis = f"assumed: {share:.0%} of {self.device.name}'s {self.device.flops / 1e12:,.3g} TFLOP/s"
        return flops / (self.device.flops * share), basis

    @property
    def measured(self) -> str:
        """Basis of measured rates. Logs distinguish GPUs from CPUs, not GPU models."""
        assert self.probe is not None
        gpus = f", on GPUs assumed to be {self.device.name}s" if self.device.cuda else ""
        return f"measured in {self.probe.folder}{gpus}"

    @property
    def start(self) -> float:
        """Seconds until a worker is ready."""
        return START_SECONDS if self.device.cuda else 0.0

    @property
    def cpu_workers(self) -> int:
        """Number of scoring workers on one machine without GPUs."""
        recipe = self.recipe
        if recipe.score.actors:
            return recipe.score.actors
        return max(1, int((recipe.cluster.cpus or os.cpu_count() or 1) / recipe.score.cpus))

    def student(self) -> ModelCost | None:
        """Return the student, None if its shape is unknown."""
        student = self.recipe.trained_student
        return self.models(student.model, layers=student.layers)

    def student_head_flops(self, model: ModelCost) -> float:
        """Return the operations per token of a SPLADE student's head; other students have none."""
        return model.head_flops if self.recipe.trained_student.kind == "splade" else 0.0

    def teacher(self, teacher: Teacher) -> ModelCost | None:
        """Return a teacher, None if its shape is unknown. User-defined ones are looked up by class and by options."""
        names = (teacher.model, teacher.cls, *(str(value) for value in teacher.options.values()))
        return self.models(*names, layers=teacher.fine_tune.layers if teacher.fine_tune else None)

    def on_one_machine(self) -> Case:
        """Return the case with the devices of one machine only."""
        return replace(self, gpus=min(self.gpus, PER_MACHINE))


def unknown(part: str, name: str | None) -> Cost:
    """Return the cost of a model of unknown shape."""
    return Cost(part, f"not counted: the shape of {name} is not known; declare it in data.sizes.models")


def on_processors(case: Case, stage: str, seconds: float, rate: str, units: Callable[[Case | Probe], float]) -> Cost:
    """Return the cost of a stage without a model: the probe's time scaled by `units`, else the assumed `seconds`."""
    probe = case.probe
    if probe and stage in probe.stage_seconds and units(probe):
        seconds = probe.stage_seconds[stage] * units(case) / units(probe)
        return Cost("", f"{case.measured}, in proportion", wall_seconds=seconds, bound="one process")
    return Cost("", f"assumed: {rate}", wall_seconds=seconds, bound="one process")


def on_one_device(case: Case, stage: str, units: Callable[[Case | Probe], float]) -> Cost | None:
    """Return the cost of a stage on one device, from the probe's time on that kind of device; else None."""
    probe = case.probe
    if not (probe and stage in probe.stage_seconds and probe.train_cuda == case.device.cuda and units(probe)):
        return None
    seconds = probe.stage_seconds[stage] * units(case) / units(probe)
    basis = f"{case.measured}, in proportion"
    return Cost("", basis, device_seconds=seconds, wall_seconds=seconds, bound="one device")


def encoded(case: Case, part: str, miner: Miner | None = None) -> Cost:
    """Return the cost of encoding collection and queries with a miner's model, or the student."""
    model = case.student() if miner is None else case.models(miner.model)
    if model is None:
        return unknown(part, case.recipe.trained_student.model if miner is None else miner.model)
    tokens = case.counts.text_tokens + 2 * case.size.texts
    sparse = (case.recipe.trained_student if miner is None else miner).kind == "splade"
    flops = tokens * (model.forward_flops(case.size.passage_tokens) + (model.head_flops if sparse else 0.0))
    precision = case.recipe.evaluate.precision if miner is None else case.recipe.mine.precision
    seconds, basis = case.assumed(flops, ENCODING, model, precision)
    wall = seconds / case.gpus + case.start
    return Cost(part, basis, tokens=tokens, flops=flops, device_seconds=seconds, wall_seconds=wall)


def searched(case: Case, part: str, queries: int) -> Cost:
    """Return the cost of exact search of the collection for a number of queries."""
    cores = ((case.recipe.slurm.cpus or CORES) if case.device.cuda else (os.cpu_count() or 1)) * case.gpus
    seconds = queries * case.size.passages * PRODUCTS / PRODUCTS_PER_SECOND / cores
    basis = (
        f"assumed: {PRODUCTS:g} products per query and passage, {PRODUCTS_PER_SECOND:,.0f} per second and core, "
        f"{cores} cores"
    )
    return Cost(part, basis, wall_seconds=seconds)
