"""What a rehearsal (`--limit N`) or an earlier run of the same recipe has measured: rates that a plan can go by."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from distill.config import Recipe
from distill.data.files import read_json, read_json_lines
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.plan import Counts, Volumes, volumes
from distill.recipe_file import load_recipe
from ray_jobs.joblog import launches


@dataclass(frozen=True)
class Rate:
    """What the workers did in so many `seconds` of theirs; `cuda`: whether they had GPUs."""

    pairs: float
    tokens: float  # 0: a teacher of texts, which doesn't count them
    seconds: float
    cuda: bool


@dataclass(frozen=True)
class Probe:
    """Rates measured in `folder`; what it has not done yet is missing."""

    folder: Path
    size: Volumes
    counts: Counts
    teachers: dict[str, Rate] = field(default_factory=dict)
    train_tokens_per_second: float | None = None  # of one process
    train_cuda: bool = False
    stage_seconds: dict[str, float] = field(default_factory=dict)  # of each stage's last run


def find_probe(recipe: Recipe) -> Probe | None:
    """The rates of the run itself, else of its largest rehearsal; None where nothing has run."""
    folder = RunFolder.of(recipe).root
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
    """The rates in a run folder's logs."""
    recipe = load_recipe(folder.recipe)
    size = volumes(recipe.model_copy(update={"run_dir": folder.root}))
    speeds = [line["tokens_per_second"] for line in read_json_lines(folder.train_log) if "tokens_per_second" in line]
    manifest = read_manifest(folder.model)
    processes = manifest.counts.get("processes", 1) if manifest else 1
    device = manifest.counts.get("device", "cpu") if manifest else "cpu"
    stages = {line["stage"]: line["seconds"] for line in read_json_lines(folder.stage_log)}
    return Probe(
        folder.root,
        size,
        Counts.of(recipe, size),
        _teachers(folder),
        median(speeds) / processes if speeds else None,
        device == "cuda",
        stages,
    )


def _teachers(folder: RunFolder) -> dict[str, Rate]:
    """From the workers' own seconds on each shard, and on the vectors that go before it."""
    work: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for launch in launches(folder):
        for event in launch.events():
            if event["event"] == "done":
                for key in ("pairs", "tokens", "seconds"):
                    work[event["task"].split("/", 1)[0]][key] += event[key]
    return {
        name: Rate(**done, cuda=_cuda(folder, name)) for name, done in work.items() if done["pairs"] and done["seconds"]
    }


def _cuda(folder: RunFolder, teacher: str) -> bool:
    record = folder.scores(teacher, "execution.json")
    return record.exists() and read_json(record)["device"] == "cuda"
