"""The stages in order, each skipped when its fingerprint says that it is done.

`import -> mine -> teach -> score -> label -> train -> evaluate`, and for each further round of the recipe the same
again, but for the data and the teachers' training. Every stage is a plain function of the recipe and
the run folder, idempotent and resumable; what it depends on stands in the manifest of what it wrote. Here they are
compared with what lies on disk, and run:

    from distill.recipe_file import load_recipe
    from distill.pipeline import run
    run(load_recipe("configs/quickstart.yaml"))
"""

from __future__ import annotations

import gc
import logging
import math
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from distill import slurm
from distill.config import Recipe
from distill.data.files import append_json_line, locked, write_atomic
from distill.data.fingerprint import fingerprint, first_difference
from distill.data.layout import RunFolder
from distill.data.manifest import claimed, read_manifest, verify
from distill.early import check_recipe, check_with_data
from distill.errors import DistillError, FingerprintError, RecipeError, SlurmError
from distill.recipe_file import dump_recipe
from distill.reporting.emissions import measure_emissions
from distill.reporting.tracker import first_rank
from distill.rounds import all_rounds, number_of
from distill.stages import Stage, stage_of, stages_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageState:
    """`state`: done; pending (nothing, or not everything, is there); stale (made from other inputs: `reason`)."""

    stage: str
    state: Literal["done", "pending", "stale"]
    reason: str = ""
    stale: tuple[Path, ...] = ()
    damaged: tuple[str, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] | None = None  # scoring: `ray_jobs.job_status`
    slurm: dict[str, Any] | None = None  # the job last submitted for it, and its state: `distill.slurm`
    round: int | None = None  # of a recipe with several, counted from 1

    def as_dict(self) -> dict[str, Any]:
        tree = {**asdict(self), "stale": [str(path) for path in self.stale]}
        return {key: value for key, value in tree.items() if value is not None}


def run(
    recipe: Recipe, *, only: str | None = None, round: int | None = None, limit: int | None = None, redo: bool = False
) -> RunFolder:
    """Run the stages that are not done, of all rounds (or the one called `only`, of one round); the last one's folder.

    A stage whose output was made from other inputs raises `FingerprintError` naming the field that differs, or, with
    `redo`, is set aside under <run>/replaced/ and made again; one stage alone raises it for those before it, too.
    `round`: of `only`, counted from 1. `limit`: see `rehearsal`.
    """
    rounds = all_rounds(rehearsal(recipe, limit))
    if only is not None:
        return _run_alone(only, rounds[: number_of(rounds, round)], redo)
    start = time.monotonic()
    did_something = False
    for one in rounds:
        check_recipe(one)
    for number, recipe in enumerate(rounds, start=1):
        folder = RunFolder.of(recipe)
        if len(rounds) > 1:
            log.info("round %d of %d, in %s", number, len(rounds), folder.root)
        worked = False
        for stage in stages_of(recipe):
            if stage.name == "mine":
                check_with_data(recipe, folder)
            worked |= _run_stage(stage, recipe, folder, redo)
        if worked:
            _write_pages(recipe, folder)
        did_something |= worked
    _print_results(rounds)
    log.info(f"finished in {time.monotonic() - start:.0f} s" if did_something else "everything was done already")
    return folder


def _run_alone(name: str, rounds: list[Recipe], redo: bool) -> RunFolder:
    """One stage of the last of these rounds."""
    recipe, folder = rounds[-1], RunFolder.of(rounds[-1])
    stage = stage_of(recipe, name)
    if first_rank():
        check_recipe(recipe)
        if name != "import" and read_manifest(folder.data) is not None:
            check_with_data(recipe, folder, name)
        for earlier in rounds[:-1]:
            _refuse_stale(stages_of(earlier), earlier, name)
        # training and evaluation may be on machines that have no source
        _refuse_stale(_before(stage, recipe, but="import" if name in ("train", "evaluate") else ""), recipe, name)
    if _run_stage(stage, recipe, folder, redo) and name == "evaluate":
        _write_pages(recipe, folder)
    if name == "evaluate":
        _print_results([recipe])
    return folder


def score_part(recipe: Recipe, part: tuple[int, int], *, limit: int | None = None, redo: bool = False) -> RunFolder:
    """One task of a job array: score every n-th shard from the i-th on, `part = (i, n)`, in this process.

    The tasks need nothing but the folder; the last one to end finishes the stage. For the rest: see `run`.
    """
    from ray_jobs.score import score_local

    recipe = rehearsal(recipe, limit)
    folder = RunFolder.of(recipe)
    part_of_it = replace(stage_of(recipe, "score"), run=lambda recipe, folder: score_local(recipe, folder, part=part))
    check_recipe(recipe)
    _refuse_stale(_before(part_of_it, recipe, but="import"), recipe, "score")  # not every task need read the source
    _run_stage(part_of_it, recipe, folder, redo)
    return folder


def _refuse_stale(stages: list[Stage], recipe: Recipe, name: str) -> None:
    """Refuse to build stage `name` on what the recipe no longer means. What cannot be compared, for a source or a model
    that is not at hand here, counts as it lies."""
    folder = RunFolder.of(recipe)
    for earlier in stages:
        state = _state_or_reason(earlier, recipe, folder, check=False)
        if state.state == "stale":
            raise FingerprintError(
                f"stage {name!r} would build on stage {earlier.name!r}, which must run again: {state.reason}\n"
                f"Choose another run_dir (or name), or run `distill {earlier.name} --redo` and the stages after it"
            )


def _before(stage: Stage, recipe: Recipe, but: str = "") -> list[Stage]:
    stages = stages_of(recipe)
    place = [other.name for other in stages].index(stage.name)
    return [other for other in stages[:place] if other.name != but]


def _run_stage(stage: Stage, recipe: Recipe, folder: RunFolder, redo: bool) -> bool:
    """Run a stage unless it is done, and say so; stale output is refused, or set aside. Whether anything was run."""
    state = stage_state(stage, recipe, folder)
    if state.state == "stale" and not redo:
        raise FingerprintError(
            f"stage {stage.name!r} must run again: {state.reason}\n"
            "Choose another run_dir (or name), or add --redo to set the old output aside"
        )
    if state.state == "stale":
        with locked(folder.root / "replaced"):
            state = stage_state(stage, recipe, folder)  # another task of a job array may have begun anew meanwhile
            if state.state == "stale":
                log.info("%-9s must run again: %s", stage.name, state.reason)
                _set_aside(folder, (*state.stale, *stage.beside(folder)))
    if state.state == "done":
        log.info("%-9s %s", stage.name, "done already" if state.counts else "nothing to do")
        return False
    log.info("%-9s ...", stage.name)
    began = time.monotonic()
    with measure_emissions(recipe, folder, stage.name):
        stage.run(recipe, folder)
    _free_gpu()
    _write_recipe(recipe, folder)
    seconds = time.monotonic() - began
    append_json_line(
        folder.stage_log, {"stage": stage.name, "seconds": round(seconds, 3), "host": socket.gethostname()}
    )
    log.info("%-9s done in %.0f s", stage.name, seconds)
    return True


def _free_gpu() -> None:
    """Give back what PyTorch keeps of the GPU's memory: the next stage's work may be in other processes."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


def rehearsal(recipe: Recipe, limit: int | None) -> Recipe:
    """The recipe on `limit` queries of every split, and as many steps as these make an epoch of, in a run folder of its
    own; all passages stay. None: the recipe as it is."""
    if limit is None:
        return recipe
    if recipe.follows is not None:
        raise RecipeError(
            f"{recipe.name} is a further round of {recipe.follows.run}, with its data; rehearse "
            "the whole recipe (--limit, with --round)"
        )
    folder = recipe.folder.with_name(f"{recipe.folder.name}-limit-{limit}")
    data, train = recipe.data.model_copy(update={"limit": limit}), recipe.train
    if train.steps is not None:  # an epoch of so few queries
        steps = min(train.steps, math.ceil(limit / train.batch_size))
        train = train.model_copy(update={"steps": steps})
    return recipe.model_copy(update={"run_dir": folder, "data": data, "train": train})


def stage_states(recipe: Recipe, *, limit: int | None = None, verify: bool = False) -> list[StageState]:
    """The state of every stage, round by round, from the folder alone; with `verify`, every finished file is read."""
    rounds = all_rounds(rehearsal(recipe, limit))
    states: list[StageState] = []
    for number, recipe in enumerate(rounds, start=1):
        found = _round_states(recipe, verify, waits=bool(states) and states[-1].state != "done")
        states += [replace(state, round=number) for state in found] if len(rounds) > 1 else found
    return states


def _round_states(recipe: Recipe, verify: bool, waits: bool) -> list[StageState]:
    """Of one round's stages; `waits`: for the round before, which is not done."""
    folder = RunFolder.of(recipe)
    states: list[StageState] = []
    for stage in stages_of(recipe):
        if states and states[-1].state != "done":
            states.append(StageState(stage.name, "pending", f"after {states[-1].stage}"))
        elif waits:
            states.append(StageState(stage.name, "pending", "after the round before"))
        else:
            states.append(_state_or_reason(stage, recipe, folder, verify))
        if stage.name == "score":
            states[-1] = replace(states[-1], job=_scoring_job(recipe, folder))
    jobs = {stage: job for job in slurm.recorded_jobs(folder) for stage in job.stages}  # the last one of each
    if jobs:
        known = _slurm_states({job.id for job in jobs.values()})
        states = [
            replace(state, slurm={"job": job.id, "state": known[job.id], "log": job.log})
            if (job := jobs.get(state.stage))
            else state
            for state in states
        ]
    return states


def _slurm_states(jobs: set[str]) -> dict[str, str]:
    try:
        return slurm.job_states(jobs)
    except SlurmError as error:  # the run may be looked at from anywhere
        return dict.fromkeys(jobs, f"unknown, {error}")


def _scoring_job(recipe: Recipe, folder: RunFolder) -> dict[str, Any] | None:
    """Where the scoring job stands, if it was ever started."""
    from ray_jobs.job_status import job_status
    from ray_jobs.score import scoring_teachers, splits_to_score

    job = job_status(folder, scoring_teachers(recipe), splits_to_score(recipe, folder))
    return None if job is None else asdict(job)


def _state_or_reason(stage: Stage, recipe: Recipe, folder: RunFolder, check: bool) -> StageState:
    """For looking only: what would stop the stage is the reason why it is pending."""
    try:
        return stage_state(stage, recipe, folder, check=check)
    except (DistillError, OSError) as error:
        return StageState(stage.name, "pending", f"cannot start: {error}")


def stage_state(stage: Stage, recipe: Recipe, folder: RunFolder, *, check: bool = False) -> StageState:
    """Compare what a stage would write with the manifests that are there."""
    stale, reasons, damaged, missing = [], [], [], []
    counts: dict[str, Any] = {}
    outputs = stage.outputs(recipe, folder)
    for path, fields in outputs.items():
        manifest = read_manifest(path)
        made_from = claimed(path) if manifest is None else manifest.fields
        difference = None if made_from is None else first_difference(made_from, fields)
        if difference is not None:
            stale.append(path)
            reasons.append(
                f"{path} was made from other inputs (fingerprint {fingerprint(made_from)}, this recipe: "
                f"{fingerprint(fields)}): {difference}"
            )
        if manifest is None:
            missing.append(path)
            continue
        counts[str(path)] = manifest.counts
        if check:
            damaged += [str(path / shard.name) for shard in verify(path)]
    if stale:
        return StageState(stage.name, "stale", "\n".join(reasons), tuple(stale), tuple(damaged), counts)
    if missing:
        reason = f"{len(outputs) - len(missing)} of {len(outputs)} outputs there" if len(missing) < len(outputs) else ""
        return StageState(stage.name, "pending", reason, damaged=tuple(damaged), counts=counts)
    return StageState(stage.name, "done", damaged=tuple(damaged), counts=counts)


def _set_aside(folder: RunFolder, paths: tuple[Path, ...]) -> None:
    """Move outputs into replaced/<time>/, where nothing reads them."""
    target = folder.root / "replaced" / time.strftime("%Y%m%d-%H%M%S")
    for path in paths:
        if path.exists():
            place = target / path.relative_to(folder.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    log.info("          the old output is in %s", target)


def _write_recipe(recipe: Recipe, folder: RunFolder) -> None:
    with write_atomic(folder.recipe) as temporary:
        temporary.write_text(dump_recipe(recipe), encoding="utf-8")


def _write_pages(recipe: Recipe, folder: RunFolder) -> None:
    """Report and model card, from what the run folder holds."""
    from distill.reporting.model_card import write_model_card
    from distill.reporting.report import write_report

    write_model_card(recipe, folder)
    write_report(recipe, folder)


def _print_results(rounds: list[Recipe]) -> None:
    """The last round's table, how the rounds compare, and where the checkpoint is."""
    from distill.data.files import read_json
    from distill.reporting.table import print_rounds, print_table

    folders = [RunFolder.of(recipe) for recipe in rounds]
    evaluations = [read_json(folder.evaluation) for folder in folders]
    print_table(evaluations[-1])
    if len(rounds) > 1:
        print_rounds(evaluations)
    print(f"checkpoint: {folders[-1].model}\nreport:     {folders[-1].report}")
