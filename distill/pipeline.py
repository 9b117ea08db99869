"""The stages in order, each skipped when its fingerprint says that it is done.

`import -> mine -> teach -> score -> label -> train -> evaluate`. Every stage is a plain function of the recipe and
the run folder, idempotent and resumable; what it depends on stands in the manifest of what it wrote. Here they are
put in order, compared with what lies on disk, and run:

    from distill.config import load_recipe
    from distill.pipeline import run
    run(load_recipe("configs/quickstart.yaml"))
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.config import Recipe, dump_recipe
from distill.data.files import write_atomic
from distill.data.fingerprint import first_difference, fingerprint
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest, verify
from distill.errors import DistillError, FingerprintError

log = logging.getLogger(__name__)

Outputs = dict[Path, dict[str, Any]]  # folder with a manifest -> the fields its fingerprint must come from


@dataclass(frozen=True)
class Stage:
    """`outputs` says what the stage writes for a recipe, given that the stages before it are done."""

    name: str
    outputs: Callable[[Recipe, RunFolder], Outputs]
    run: Callable[[Recipe, RunFolder], Any]


@dataclass(frozen=True)
class StageState:
    """`state`: done; pending (nothing, or not everything, is there); stale (made from other inputs: `reason`)."""

    stage: str
    state: Literal["done", "pending", "stale"]
    reason: str = ""
    stale: tuple[Path, ...] = ()
    damaged: tuple[str, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "stale": [str(path) for path in self.stale]}


def run(recipe: Recipe, *, only: str | None = None, limit: int | None = None, redo: bool = False) -> RunFolder:
    """Run the stages that are not done (or the one called `only`); returns the run folder.

    A stage whose output was made from other inputs raises `FingerprintError` naming the field that differs, or, with
    `redo`, is set aside under <run>/replaced/ and made again. `limit`: see `rehearsal`.
    """
    recipe = rehearsal(recipe, limit)
    folder = RunFolder(recipe.folder)
    stages = [stage for stage in STAGES if only in (None, stage.name)]
    start = time.monotonic()
    did_something = False
    for stage in stages:
        state = stage_state(stage, recipe, folder)
        if state.state == "stale":
            if not redo:
                raise FingerprintError(f"stage {stage.name!r} must run again: {state.reason}\n"
                                       "Choose another run_dir (or name), or add --redo to set the old output aside")
            log.info("%-9s must run again: %s", stage.name, state.reason)
            _set_aside(folder, state.stale)
        if state.state == "done":
            log.info("%-9s done already", stage.name)
            continue
        did_something = True
        _write_recipe(recipe, folder)
        log.info("%-9s ...", stage.name)
        began = time.monotonic()
        stage.run(recipe, folder)
        log.info("%-9s done in %.0f s", stage.name, time.monotonic() - began)
    if only in (None, "evaluate"):
        _finish(recipe, folder, time.monotonic() - start if did_something else None)
    return folder


def rehearsal(recipe: Recipe, limit: int | None) -> Recipe:
    """The recipe on `limit` queries of every split, in a run folder of its own; None: the recipe as it is."""
    if limit is None:
        return recipe
    folder = recipe.folder.with_name(f"{recipe.folder.name}-limit-{limit}")
    return recipe.model_copy(update={"run_dir": folder, "data": recipe.data.model_copy(update={"limit": limit})})


def stage_states(recipe: Recipe, *, limit: int | None = None, verify: bool = False) -> list[StageState]:
    """The state of every stage, read from the run folder alone; with `verify`, every finished file is read."""
    recipe = rehearsal(recipe, limit)
    folder = RunFolder(recipe.folder)
    states: list[StageState] = []
    for stage in STAGES:
        if states and states[-1].state != "done":
            states.append(StageState(stage.name, "pending", f"after {states[-1].stage}"))
        else:
            states.append(stage_state(stage, recipe, folder, check=verify))
    return states


def stage_state(stage: Stage, recipe: Recipe, folder: RunFolder, *, check: bool = False) -> StageState:
    """Compare what a stage would write with the manifests that are there."""
    stale, reasons, damaged, missing = [], [], [], []
    counts: dict[str, Any] = {}
    outputs = stage.outputs(recipe, folder)
    for path, fields in outputs.items():
        manifest = read_manifest(path)
        if manifest is None:
            missing.append(path)
            continue
        difference = first_difference(manifest.fields, fields)
        if difference is not None:
            stale.append(path)
            reasons.append(f"{path} was made from other inputs (fingerprint {manifest.fingerprint}, this recipe: "
                           f"{fingerprint(fields)}): {difference}")
        counts[str(path)] = manifest.counts
        if check:
            damaged += [str(path / shard.name) for shard in verify(path)]
    if stale:
        return StageState(stage.name, "stale", "\n".join(reasons), tuple(stale), tuple(damaged), counts)
    if missing:
        reason = f"{len(outputs) - len(missing)} of {len(outputs)} outputs there" if len(missing) < len(outputs) else ""
        return StageState(stage.name, "pending", reason, damaged=tuple(damaged), counts=counts)
    return StageState(stage.name, "done", damaged=tuple(damaged), counts=counts)


def print_status(states: list[StageState]) -> None:
    for state in states:
        print(f"{state.stage:<9} {state.state:<8} {state.reason}".rstrip())
        for path in state.damaged:
            print(f"          damaged: {path}; remove its manifest.json and run the stage again")
