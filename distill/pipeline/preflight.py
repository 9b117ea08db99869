"""Checks that would otherwise fail hours into a run, made before it starts.

Each stage checks what it needs when it starts. Here the checks of all stages are made before the first one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

from distill.errors import DistillError, FingerprintError, RecipeError
from distill.pipeline.registry import all_stages, stages_of
from distill.pipeline.status import state_or_reason
from distill.run.manifest import read_manifest
from distill.run.run import Run
from distill.run.stage import Stage


def preflight(run: Run, only: Stage | None = None) -> None:
    """Check the recipe and, once imported, the data, for all stages; the data checks for stage `only` if given."""
    checks = _recipe_checks(run)
    if read_manifest(run.folder.data) is not None:
        checks += [partial(stage.check_data, run) for stage in (stages_of(run) if only is None else (only,))]
    _raise_all(checks)


def check_recipe(run: Run) -> None:
    """Check the recipe alone: a machine that submits jobs may have neither data nor models."""
    _raise_all(_recipe_checks(run))


def _recipe_checks(run: Run) -> list[Callable[[], None]]:
    return [
        *(partial(stage.check_recipe, run.recipe) for stage in all_stages(run.recipe)),
        partial(_check_trackers, run),
    ]


def _raise_all(checks: Sequence[Callable[[], None]]) -> None:
    """Run all checks and raise their errors together, so that one attempt shows every problem."""
    problems: list[DistillError] = []
    for check in checks:
        try:
            check()
        except DistillError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise RecipeError("\n".join(str(problem) for problem in problems))


def refuse_stale(run: Run, stages: Sequence[Stage], name: str) -> None:
    """Raise `FingerprintError` if one of `stages`, which stage `name` builds on, is stale.

    Inputs that cannot be checked on this machine are assumed unchanged.
    """
    for earlier in stages:
        state = state_or_reason(earlier, run)
        if state.state == "stale":
            raise FingerprintError(
                f"stage {name!r} would build on stage {earlier.name!r}, which must run again: {state.reason}\n"
                f"Choose another run_dir (or name), or run `distill {earlier.name} --redo` and the stages after it"
            )


def _check_trackers(run: Run) -> None:
    tracking = run.recipe.tracking
    trackers = {"wandb": tracking.wandb, "tensorboard": tracking.tensorboard, "codecarbon": tracking.codecarbon}
    for name, wanted in trackers.items():
        if wanted and find_spec(name) is None:
            raise RecipeError(f"tracking.{name} needs the package {name}: pip install 'splade-distill[{name}]'")
