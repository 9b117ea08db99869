"""Run the stages: each is skipped if its outputs are done, and refused if they are stale.

    from distill import load_recipe, run_pipeline
    run_pipeline(load_recipe("configs/quickstart.yaml"))

Later rounds of the recipe run the same stages, except the import and the teachers' fine-tuning.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.config import Recipe
from distill.errors import FingerprintError, RecipeError, StorageError
from distill.pipeline.preflight import preflight, refuse_stale
from distill.pipeline.registry import all_stages, stage_of, stages_of
from distill.pipeline.resolve import resolve, settle
from distill.pipeline.status import stage_state
from distill.pipeline.truncation import record_truncation
from distill.recipe.expand import number_of, open_runs
from distill.recipe.imports import import_own_code
from distill.recipe.load import dump_recipe
from distill.reporting.emissions import measure_emissions
from distill.run.files import append_json_line, locked, stage_errors, write_atomic
from distill.run.layout import RunFolder
from distill.run.limits import require_threads
from distill.run.manifest import read_manifest, require_manifest, verify
from distill.run.rank import is_rank_zero
from distill.run.run import Run
from distill.run.seals import damaged as damaged_files
from distill.run.seals import take_away
from distill.run.stage import Stage

log = logging.getLogger(__name__)


def run_pipeline(
    recipe: Recipe, *, only: str | None = None, round: int | None = None, limit: int | None = None, redo: bool = False
) -> Run:
    """Run the stages of all rounds that are not done, or stage `only` of one round; returns the last run.

    A stage whose output was made from other inputs raises `FingerprintError` naming the field that differs. With
    `redo`, that output is moved to <run>/replaced/ and the stage runs again. `only` also raises it for stale stages
    before it. `round`: the round of `only`, counted from 1. `limit`: see `distill.recipe.expand.rehearsal`.
    """
    runs = open_runs(recipe, limit)
    if only is not None:
        return _run_alone(only, runs[: number_of(runs, round)], redo)
    began, worked = time.monotonic(), False
    for run in runs:
        preflight(run)
        import_own_code(run.recipe)
    for number, run in enumerate(runs, start=1):
        if len(runs) > 1:
            log.info("round %d of %d, in %s", number, len(runs), run.folder.root)
        worked |= _run_round(run, redo)
    _print_results(runs)
    log.info(f"finished in {time.monotonic() - began:.0f} s" if worked else "everything was done already")
    return runs[-1]


def _run_round(run: Run, redo: bool) -> bool:
    """Run every stage of one round; returns whether any was run."""
    worked = False
    for number, stage in enumerate(stages_of(run)):
        if number == 1 or (number == 0 and not stage.first_round_only):
            preflight(run)  # again: now the data can be checked
        worked |= run_stage(stage, run, redo, verify_inputs=run.recipe.verify_inputs)
    if worked:
        with stage_errors(run.folder.root):
            _write_pages(resolve(run))
    return worked


def _run_alone(name: str, runs: Sequence[Run], redo: bool) -> Run:
    """Run one stage of the last of these rounds."""
    run = runs[-1]
    stage = stage_of(run, name)
    if is_rank_zero():
        if stage.needs:
            require_manifest(run.folder.data, "import")
        preflight(run, stage)
        import_own_code(run.recipe)
        for earlier in runs[:-1]:
            refuse_stale(resolve(earlier), stages_of(earlier), name)
        refuse_stale(resolve(run, stage), [other for other in stages_of(run) if other.name in stage.needs], name)
    worked = run_stage(stage, run, redo, verify_inputs=run.recipe.verify_inputs)
    if worked and stage.pages:
        with stage_errors(run.folder.root):
            _write_pages(resolve(run))
    if stage.results is not None:
        stage.results([run])
    return run


def run_part(run: Run, name: str, part: tuple[int, int], redo: bool = False) -> None:
    """Run task i of n, `part = (i, n)`, of a stage that supports job arrays; the last task to end finishes the stage.

    The import is not checked: the tasks need only the run folder, and their machines may lack the source.
    """
    stage = stage_of(run, name)
    if stage.part is None:
        raise RecipeError(f"stage {name!r} cannot run as a job array; leave out --shard")
    execute = stage.part
    preflight(run, stage)
    import_own_code(run.recipe)
    needed = [other for other in stages_of(run) if other.name in stage.needs and other.name != "import"]
    refuse_stale(resolve(run, stage), needed, name)
    run_stage(replace(stage, execute=lambda run, outputs: execute(run, outputs, part)), run, redo)


def parse_part(text: str) -> tuple[int, int]:
    """Parse `"I/N"` into (I, N): part I of N, counted from 0. Raises `RecipeError`."""
    index, count = (int(number) if number.isdecimal() else -1 for number in (*text.split("/", 1), "")[:2])
    if not 0 <= index < count:
        raise RecipeError(f"{text!r} is not a valid part: write I/N, with I from 0 to N-1 (0/8 to 7/8)")
    return index, count


def run_stage(stage: Stage, run: Run, redo: bool = False, *, verify_inputs: bool = False) -> bool:
    """Run a stage unless it is done; returns whether it ran. Stale output is refused or, with `redo`, set aside.

    With `verify_inputs`, the files that the stage reads are compared with their checksums first. Fields that the recipe
    leaves to the program have their values in the stage, not in the copy of the recipe.
    """
    require_threads(f"stage {stage.name!r}")
    written, run = run.recipe, resolve(run, stage) if stage.needs else settle(run)
    outputs = stage.outputs(run)
    state = stage_state(stage, outputs)
    if state.state == "stale":
        if not redo:
            raise FingerprintError(
                f"stage {stage.name!r} must run again: {state.reason}\n"
                "Choose another run_dir (or name), or add --redo to set the old output aside"
            )
        with locked(run.folder.replaced):
            outputs = stage.outputs(run)
            state = stage_state(stage, outputs)  # another task of a job array may have set it aside
            if state.state == "stale":
                log.info("%-9s must run again: %s", stage.name, state.reason)
                _set_aside(run.folder, stage, (*state.stale, *stage.auxiliary(run.folder)))
    if state.state == "done":
        log.info("%-9s %s", stage.name, "done already" if state.counts else "nothing to do")
        return False
    log.info("%-9s ...", stage.name)
    began = time.monotonic()
    if verify_inputs and is_rank_zero():
        _verify_inputs(stage, run)
    with stage_errors(run.folder.root), locked(run.folder.root / stage.name, shared=True):
        if stage.needs and is_rank_zero():
            record_truncation(run)
        with measure_emissions(run, stage.name):
            stage.execute(run, outputs)
        _free_gpu()
        _write_recipe(run.folder, written)
        seconds = time.monotonic() - began
        append_json_line(
            run.folder.stage_log, {"stage": stage.name, "seconds": round(seconds, 3), "host": socket.gethostname()}
        )
    log.info("%-9s done in %.0f s", stage.name, seconds)
    return True


def _verify_inputs(stage: Stage, run: Run) -> None:
    """Raise `StorageError` for a file of an earlier stage that is missing or has changed.

    Caches that have changed are set aside; the stage makes them again.
    """
    stages = all_stages(run.recipe)
    for path in damaged_files(folder for other in stages for folder in other.caches(run.folder)):
        take_away(path)
    earlier = [other for other in stages if other.name in ("import", *stage.needs) and other.name != stage.name]
    folders = {output.folder for other in earlier for output in other.outputs(run)}
    damaged = [f"{folder / shard.name}" for folder in sorted(folders) for shard in verify(folder)]
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise StorageError(
            f"{', '.join(damaged[:3])}{more}: missing or damaged since they were written. Restore them from a copy, or "
            "remove the folder and run its stage again (verify_inputs: false skips this check)"
        )


def _free_gpu() -> None:
    """Release GPU memory that PyTorch caches: the next stage may run in other processes."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


def _set_aside(folder: RunFolder, stage: Stage, paths: Sequence[Path]) -> None:
    """Move outputs into a new folder of replaced/, where nothing reads them.

    Raises `StorageError` while another process runs the stage.
    """
    now = time.strftime("%Y%m%d-%H%M%S")
    names = (now if number == 1 else f"{now}-{number}" for number in itertools.count(1))
    target = next(path for path in map(folder.replaced.joinpath, names) if not path.exists())
    try:
        with locked(folder.root / stage.name, wait=False):
            for path in paths:
                if path.exists():
                    moved = target / path.relative_to(folder.root)
                    moved.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, moved)
    except BlockingIOError:
        raise StorageError(
            f"{folder.root}: another process runs stage {stage.name!r} here, from another recipe; stop it before you "
            "set its output aside, or choose another run_dir"
        ) from None
    log.info("          moved the old output to %s", target)


def _write_recipe(folder: RunFolder, recipe: Recipe) -> None:
    with write_atomic(folder.recipe) as temporary:
        temporary.write_text(dump_recipe(recipe), encoding="utf-8")


def _write_pages(run: Run) -> None:
    """Write the report and, for a student, the model card from the run folder's contents."""
    from distill.reporting.model_card import write_model_card
    from distill.reporting.report import write_report

    if run.recipe.student is not None:
        write_model_card(run)
    write_report(run, _counts(run))


def _counts(run: Run) -> dict[str, dict[str, Any]]:
    """The counts in the manifests of finished outputs, by stage and output key."""
    counts: dict[str, dict[str, Any]] = {}
    for stage in all_stages(run.recipe):
        for output in stage.outputs(run):
            manifest = read_manifest(output.folder)
            if manifest is not None and manifest.counts:
                counts[", ".join((stage.name, *output.key))] = manifest.counts
    return counts


def _print_results(runs: Sequence[Run]) -> None:
    last = runs[-1]
    if last.recipe.student is None:
        print(f"scores: {last.folder.root / 'scores'}\nlabels: {last.folder.labels()}\nreport: {last.folder.report}")
    for stage in stages_of(runs[-1]):
        if stage.results is not None:
            stage.results(runs)
