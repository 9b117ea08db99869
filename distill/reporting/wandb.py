"""Weights & Biases, where the recipe asks for it: follows the run's own metrics log, so training knows nothing of it.

Without credentials the run is kept offline under the run folder's logs, for `wandb sync` later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from typing import Any

from distill.config import Recipe
from distill.data.files import read_json, write_json
from distill.data.layout import RunFolder
from distill.errors import RecipeError
from distill.reporting import run_facts

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_READS = 5.0


@contextlib.contextmanager
def follow(recipe: Recipe, folder: RunFolder) -> Iterator[None]:
    """Send what is appended to logs/train.jsonl while the block runs, and the evaluation at its end.

    Does nothing where the recipe has no `tracking.wandb`, nor in ranks other than the first. A run that goes on after
    an interruption goes on in the same wandb run, after the lines sent already.
    """
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    if recipe.tracking.wandb is None or rank != "0":
        yield
        return
    run, state = _open(recipe, folder)
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(run, folder, state, stop), daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()
        _send_lines(run, folder, state)
        _send_evaluation(run, folder)
        run.finish()


def _open(recipe: Recipe, folder: RunFolder) -> tuple[Any, dict[str, Any]]:
    import wandb

    cfg, path = recipe.tracking.wandb, folder.logs / "wandb.json"
    state = read_json(path) if path.exists() else {"id": secrets.token_hex(4), "lines": 0}
    folder.logs.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE")
    try:
        if mode is None:
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        run = wandb.init(project=cfg.project, entity=cfg.entity, group=cfg.group, tags=cfg.tags, name=recipe.name,
                         id=state["id"], dir=str(folder.logs), mode=mode, resume="allow" if mode == "online" else None,
                         config=recipe.model_dump(mode="json"))
    except wandb.Error as error:
        raise RecipeError(f"tracking.wandb: {error}") from None
    run.define_metric("*", step_metric="step")
    if mode == "offline":
        log.info("wandb: offline, in %s; send it with `wandb sync`", folder.logs / "wandb")
    return run, state


def _follow(run: Any, folder: RunFolder, state: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(_SECONDS_BETWEEN_READS):
        _send_lines(run, folder, state)


def _send_lines(run: Any, folder: RunFolder, state: dict[str, Any]) -> None:
    """Log the lines that came since the last look. A resumed training cuts the log back to its checkpoint first."""
    lines = run_facts.training_log(folder)
    sent = min(state["lines"], len(lines))
    for line in lines[sent:]:
        run.log({"step": line["step"], **run_facts.logged_numbers(line)})
    if len(lines) != state["lines"]:
        state["lines"] = len(lines)
        write_json(folder.logs / "wandb.json", state)


def _send_evaluation(run: Any, folder: RunFolder) -> None:
    evaluation = run_facts.evaluation_of(folder)
    for row in evaluation["rows"] if evaluation else ():
        values = {**row["metrics"], **{key: value for key, value in row.items() if isinstance(value, float)}}
        run.summary.update({f"{row['name']}/{key}": value for key, value in values.items()})
