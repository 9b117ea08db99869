"""Operations, device-hours and wall time of every stage on `gpus` devices; what is assumed is said with each number.

Where a rehearsal has measured a teacher's or the training's rate on the same kind of device, that rate counts;
otherwise the operations over the device's peak, times an assumed share of it. Scoring shares out whole shards, so its
wall time counts in rounds of shards; training adds the all-reduce of its gradients.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from distill.config import Miner, ModelShape, Recipe, Teacher
from distill.estimate.hardware import Device, device
from distill.estimate.memory import Memory, graph_bytes_per_token, training_memory
from distill.estimate.probe import Probe, find_probe
from distill.plan import Counts, Planned, Volumes, plan
from distill.rounds import all_rounds
from distill.shapes import (
    forward_flops,
    head_flops,
    parameters,
    shape_of,
    student_head_flops,
    student_shape,
    teacher_shape,
)
from distill.stages import stages_of
from distill.submit import plan_jobs

# Assumed shares of a device's peak, until a rehearsal has measured the real ones.
ENCODING, TRAINING, ON_CPU = 0.40, 0.30, 0.50
# Measured on two processor cores: texts read and checked a second, labels made, pairs that BM25 scores and products of
# exact sparse search, both a core.
TEXTS_PER_SECOND, LABELS_PER_SECOND, BM25_PAIRS_PER_SECOND, PRODUCTS_PER_SECOND = 100e3, 1e6, 1e6, 30e6
PRODUCTS = 3.0  # of a query and a passage at a trained sparsity: the FLOPS of SPLADE models are 1 to 4
START_SECONDS = 60.0  # assumed: a worker's start, and loading one model
CORES = 8  # assumed for each device, where `slurm.cpus` doesn't say
PER_MACHINE = 8  # devices that share fast links
INSIDE, BETWEEN = 200e9, 25e9  # assumed bytes a second of an all-reduce inside and between machines


@dataclass(frozen=True)
class Cost:
    """One stage, or one model's part of it. None: not known; `basis` says what the times go by."""

    round: int
    stage: str
    part: str
    basis: str
    tokens: float | None = None
    flops: float | None = None
    device_seconds: float | None = None  # of all devices together; None for work of processors alone
    wall_seconds: float | None = None
    bound: str = ""  # what keeps more devices from making it faster


@dataclass(frozen=True)
class Estimate:
    gpus: int
    device: Device
    probe: Path | None
    costs: list[Cost]
    planned: list[Planned]  # work in words, disk
    sizes_from: str
    memory: Memory | None  # of a training process; None: the student's shape isn't known
    ranks: int
    jobs: int  # of Slurm, arrays counted as one

    @property
    def wall_seconds(self) -> float:
        return sum(cost.wall_seconds or 0.0 for cost in self.costs)

    @property
    def device_seconds(self) -> float:
        return sum(cost.device_seconds or 0.0 for cost in self.costs)

    @property
    def not_counted(self) -> int:
        """Parts that the sums lack."""
        return sum(cost.wall_seconds is None for cost in self.costs)


@dataclass(frozen=True)
class _Case:
    """What every stage's cost is worked out from."""

    recipe: Recipe
    round: int
    size: Volumes
    counts: Counts
    gpus: int
    device: Device
    probe: Probe | None

    def cost(self, stage: str, part: str, basis: str, **fields) -> Cost:
        return Cost(self.round, stage, part, basis, **fields)

    def share(self, of_gpu: float) -> float:
        return of_gpu if self.device.cuda else ON_CPU

    def assumed(self, flops: float, share: float) -> tuple[float, str]:
        """Device-seconds of so many operations, and the words for it."""
        share = self.share(share)
        basis = f"assumed: {share:.0%} of {self.device.name}'s {self.device.flops / 1e12:,.3g} TFLOP/s"
        return flops / (self.device.flops * share), basis

    @property
    def measured(self) -> str:
        """Where rates come from; logs tell GPUs from processors, not one GPU from another."""
        where = f", on GPUs taken for {self.device.name}s" if self.device.cuda else ""
        return f"measured in {self.probe.folder}{where}"

    def unknown(self, stage: str, part: str, name: str | None) -> Cost:
        return self.cost(stage, part, f"not counted: the shape of {name} is not known; declare it in data.sizes.models")


def estimate(recipe: Recipe, gpus: int, gpu_type: str, use_probe: bool = True) -> Estimate:
    """The plan of a recipe, all rounds together, on `gpus` devices of a type that `hardware.device` knows."""
    chosen = device(gpu_type)
    probe = find_probe(recipe) if use_probe else None
    costs: list[Cost] = []
    planned: list[Planned] = []
    jobs, sizes_from = 0, ""
    for number, one in enumerate(all_rounds(recipe), start=1):
        size, stages = plan(one)
        names = [stage.name for stage in stages_of(one)]
        case = _Case(one, number, size, Counts.of(one, size), gpus, chosen, probe)
        found = [cost for name in names for cost in _STAGES[name](case)]
        costs += found
        planned += [stage for stage in stages if stage.stage in names]
        jobs += len(plan_jobs(one, [name for name in names if name != "teach" or case.counts.teach_pairs]))
        sizes_from = sizes_from or size.origin
    ranks = min(gpus, recipe.train.batch_size) if chosen.cuda else gpus * (recipe.train.processes or 1)
    shape = student_shape(recipe)
    memory = training_memory(recipe, parameters(shape), shape, ranks) if shape else None
    return Estimate(gpus, chosen, probe.folder if probe else None, costs, planned, sizes_from, memory, ranks, jobs)


# ---------------------------------------------------------------------------------------------- stages


def _import(case: _Case) -> Iterator[Cost]:
    texts = case.size.passages + sum(case.size.queries.values())
    yield _processors(
        case,
        "import",
        "",
        texts / TEXTS_PER_SECOND,
        f"{TEXTS_PER_SECOND:,.0f} texts a second",
        lambda probe: probe.size.passages + sum(probe.size.queries.values()),
        texts,
        "one process",
    )


def _mine(case: _Case) -> Iterator[Cost]:
    size = case.size
    if case.recipe.cluster.address is None:  # its Slurm job has one machine
        case = replace(case, gpus=min(case.gpus, PER_MACHINE))
    for name, miner in case.recipe.mine.miners.items():
        if miner.kind != "bm25":
            yield _encoded(case, "mine", f"{name}: encode", miner)
        queries = size.queries["train"] + (
            sum(size.queries.values()) - size.queries["train"] if name == next(iter(case.recipe.mine.miners)) else 0
        )
        if miner.kind != "dense":
            yield _search(case, "mine", f"{name}: search", queries, size.passages)


def _encoded(case: _Case, stage: str, part: str, model: Miner | None) -> Cost:
    """The collection and the queries through a model: a miner's, or the student."""
    shape = student_shape(case.recipe) if model is None else shape_of(case.recipe, model.model)
    if shape is None:
        return case.unknown(stage, part, case.recipe.student.model if model is None else model.model)
    tokens = case.counts.text_tokens + 2 * (case.size.passages + sum(case.size.queries.values()))
    head = (
        student_head_flops(case.recipe, shape)
        if model is None
        else (head_flops(shape) if model.kind == "splade" else 0.0)
    )
    flops = tokens * (forward_flops(shape, case.size.passage_tokens) + head)
    seconds, basis = case.assumed(flops, ENCODING)
    return case.cost(
        stage,
        part,
        basis,
        tokens=tokens,
        flops=flops,
        device_seconds=seconds,
        wall_seconds=seconds / case.gpus + _start(case),
    )


def _search(case: _Case, stage: str, part: str, queries: int, passages: int) -> Cost:
    cores = (case.recipe.slurm.cpus or CORES) * case.gpus if case.device.cuda else (os.cpu_count() or 1) * case.gpus
    seconds = queries * passages * PRODUCTS / PRODUCTS_PER_SECOND / cores
    return case.cost(
        stage,
        part,
        f"assumed: {PRODUCTS:g} products a query and passage, {PRODUCTS_PER_SECOND:,.0f} a "
        f"second and core, {cores} cores",
        wall_seconds=seconds,
    )


def _teach(case: _Case) -> Iterator[Cost]:
    if cost := _on_one_device(case, "teach", lambda of: sum(of.counts.teach_pairs.values())):
        yield cost
        return
    for name, pairs in case.counts.teach_pairs.items():
        teacher = case.recipe.teachers[name]
        shape = teacher_shape(case.recipe, teacher)
        if shape is None:
            yield case.unknown("teach", name, teacher.model)
            continue
        length = case.counts.pair_tokens[name]
        tokens = pairs * teacher.fine_tune.epochs * length
        flops = 3 * tokens * forward_flops(shape, length)
        seconds, basis = case.assumed(flops, TRAINING)
        folds = teacher.fine_tune.folds
        yield case.cost(
            "teach",
            name,
            basis,
            tokens=tokens,
            flops=flops,
            device_seconds=seconds,
            wall_seconds=seconds + folds * _start(case),
            bound="one device",
        )


def _score(case: _Case) -> Iterator[Cost]:
    for name, teacher in case.recipe.teachers.items():
        if teacher.kind == "imported":
            continue
        yield _scored_by(case, name, teacher)


def _scored_by(case: _Case, name: str, teacher: Teacher) -> Cost:
    shards, shape = case.counts.shards, teacher_shape(case.recipe, teacher)
    tokens, length = _teacher_tokens(name, teacher, case.size, case.counts)
    flops = (
        None
        if shape is None or teacher.kind == "bm25"
        else tokens * (forward_flops(shape, length) + (head_flops(shape) if teacher.kind == "splade" else 0.0))
    )
    rate = case.probe.teachers.get(name) if case.probe else None
    workers = case.gpus if case.device.cuda else case.gpus * _cpu_workers(case.recipe)
    if rate is not None and rate.cuda == case.device.cuda:
        pace = (rate.tokens or _teacher_tokens(name, teacher, case.probe.size, case.probe.counts)[0]) / rate.seconds
        seconds = tokens / pace
        basis = f"{case.measured}: {pace:,.0f} tokens a second and worker"
    elif teacher.kind == "bm25":
        seconds = case.counts.pairs / BM25_PAIRS_PER_SECOND
        basis = f"assumed: {BM25_PAIRS_PER_SECOND:,.0f} pairs a second and worker"
    elif flops is None:
        return case.unknown("score", name, teacher.model or teacher.cls)
    else:
        seconds, basis = case.assumed(flops, ENCODING)
        workers = case.gpus  # whole devices
    turns = math.ceil(shards / workers) if shards else 0  # whole shards: the last turn may be a short one
    wall = seconds / max(shards, 1) * turns
    idle = 1 - seconds / workers / wall if wall else 0.0
    return case.cost(
        "score",
        name,
        basis,
        tokens=tokens,
        flops=flops,
        device_seconds=None if teacher.kind == "bm25" else seconds,
        wall_seconds=wall + _start(case),
        bound=f"{shards} shards on {workers} workers: {idle:.0%} idle" if idle > 0.05 else "",
    )


def _teacher_tokens(name: str, teacher: Teacher, size: Volumes, counts: Counts) -> tuple[float, float]:
    """Tokens that a teacher reads, and how many at a time; teachers of texts read each text once."""
    if name in counts.pair_tokens:
        return counts.pairs * counts.pair_tokens[name], counts.pair_tokens[name]
    length = min(size.passage_tokens + 2, teacher.max_length)
    return (min(size.passages, counts.pairs) + sum(size.queries.values())) * length, length


def _label(case: _Case) -> Iterator[Cost]:
    labels = case.counts.train_pairs
    yield _processors(
        case,
        "label",
        "",
        labels / LABELS_PER_SECOND,
        f"{LABELS_PER_SECOND:,.0f} labels a second",
        lambda probe: probe.counts.train_pairs,
        labels,
        "one process",
    )


def _train(case: _Case) -> Iterator[Cost]:
    recipe, counts = case.recipe, case.counts
    train, shape = recipe.train, student_shape(recipe)
    tokens = counts.steps * counts.step_tokens
    ranks = min(case.gpus, train.batch_size)
    if shape is None:
        yield case.unknown("train", "", recipe.student.model)
        return
    kept = _kept_share(recipe, shape, counts, ranks)
    layers = forward_flops(shape, case.size.passage_tokens)
    flops = tokens * ((3 + (1 - kept)) * layers + student_head_flops(recipe, shape))
    probe = case.probe
    if probe and probe.train_tokens_per_second and probe.train_cuda == case.device.cuda:
        seconds = tokens / probe.train_tokens_per_second
        basis = f"{case.measured}: {probe.train_tokens_per_second:,.0f} tokens a second and process"
    else:
        seconds, basis = case.assumed(flops, TRAINING)
    again = f"; {1 - kept:.0%} of the chunks encoded twice" if kept < 1 else ""
    reduce = _all_reduce_seconds(parameters(shape), ranks, case.device) * counts.steps
    wall = seconds / ranks + reduce
    bound = ""
    if ranks < case.gpus:
        bound = f"{train.batch_size} queries a step: {ranks} of {case.gpus} devices have any"
    elif reduce > 0.2 * wall:
        bound = f"gradients between processes: {reduce / wall:.0%} of the time"
    yield case.cost(
        "train",
        "",
        basis + again,
        tokens=tokens,
        flops=flops,
        device_seconds=seconds + reduce * ranks,
        wall_seconds=wall,
        bound=bound,
    )
    if train.evaluate_every:
        yield _development(case, shape)


def _development(case: _Case, shape: ModelShape) -> Cost:
    """Evaluations on the development set, by the first process alone."""
    passages = min(case.recipe.evaluate.dev_passages, case.size.passages)
    times = case.counts.steps // case.recipe.train.evaluate_every
    tokens = times * (
        passages * (case.size.passage_tokens + 2) + case.size.queries["dev"] * (case.size.query_tokens + 2)
    )
    flops = tokens * (forward_flops(shape, case.size.passage_tokens) + student_head_flops(case.recipe, shape))
    seconds, basis = case.assumed(flops, ENCODING)
    return case.cost(
        "train",
        f"{times} evaluations",
        basis,
        tokens=tokens,
        flops=flops,
        device_seconds=seconds * case.gpus,
        wall_seconds=seconds,
        bound="one device; the others wait",
    )


def _evaluate(case: _Case) -> Iterator[Cost]:
    if cost := _on_one_device(case, "evaluate", lambda of: of.size.passages + sum(of.size.queries.values())):
        yield cost
        return
    compared = case.recipe.evaluate.baselines and case.recipe.evaluate.start
    for part in ("student", "its start")[: 2 if compared else 1]:
        cost = _encoded(case, "evaluate", f"{part}: encode", None)
        if cost.device_seconds is not None:
            cost = replace(cost, wall_seconds=cost.device_seconds + _start(case), bound="one device")
        yield cost
        yield _search(
            replace(case, gpus=1),
            "evaluate",
            f"{part}: search",
            case.size.queries[case.recipe.evaluate.split],
            case.size.passages,
        )


_STAGES = {
    "import": _import,
    "mine": _mine,
    "teach": _teach,
    "score": _score,
    "label": _label,
    "train": _train,
    "evaluate": _evaluate,
}


# ------------------------------------------------------------------------------------------------ parts


def _processors(
    case: _Case, stage: str, part: str, seconds: float, rate: str, units_of, units: float, bound: str
) -> Cost:
    """Work without a model: by the probe's time for the stage, in proportion, else by an assumed rate."""
    probe = case.probe
    if probe and stage in probe.stage_seconds and units_of(probe):
        return case.cost(
            stage,
            part,
            f"{case.measured}, in proportion",
            bound=bound,
            wall_seconds=probe.stage_seconds[stage] * units / units_of(probe),
        )
    return case.cost(stage, part, f"assumed: {rate}", wall_seconds=seconds, bound=bound)


def _on_one_device(case: _Case, stage: str, units: Callable[[_Case | Probe], float]) -> Cost | None:
    """A stage that one device runs, by the probe's time for it on that kind of device, in proportion."""
    probe = case.probe
    if not (probe and stage in probe.stage_seconds and probe.train_cuda == case.device.cuda and units(probe)):
        return None
    seconds = probe.stage_seconds[stage] * units(case) / units(probe)
    return case.cost(
        stage, "", f"{case.measured}, in proportion", device_seconds=seconds, wall_seconds=seconds, bound="one device"
    )


def _kept_share(recipe: Recipe, shape: ModelShape, counts: Counts, ranks: int) -> float:
    """Share of a step's graphs that the activation budget holds."""
    budget = recipe.train.activation_budget * 2**30
    needed = (
        graph_bytes_per_token(shape, recipe.student.passage_max_length, recipe.train.precision)
        * counts.step_tokens
        / ranks
    )
    return min(1.0, budget / needed)


def _all_reduce_seconds(parameters: float, ranks: int, chosen: Device) -> float:
    """Float32 gradients around a ring: twice their size, less a share (Patarasuk & Yuan 2009)."""
    if ranks == 1 or not chosen.cuda:
        return 0.0
    speed = INSIDE if ranks <= PER_MACHINE else BETWEEN
    return 2 * (ranks - 1) / ranks * 4 * parameters / speed


def _start(case: _Case) -> float:
    return START_SECONDS if case.device.cuda else 0.0


def _cpu_workers(recipe: Recipe) -> int:
    if recipe.score.actors:
        return recipe.score.actors
    return max(1, int((recipe.cluster.cpus or os.cpu_count() or 1) / recipe.score.cpus))
