"""Weights & Biases, where the recipe asks for it.

Without credentials the run is kept offline under the run folder's logs, for `wandb sync` later.
"""

from __future__ import annotations

import logging
import os
import secrets
from typing import Any

from distill.config import Recipe
from distill.data.layout import RunFolder
from distill.errors import RecipeError
from distill.reporting.tracker import Tracker

log = logging.getLogger(__name__)


def open_wandb(recipe: Recipe, folder: RunFolder, state: dict[str, Any]) -> Tracker | None:
    """`state` keeps the id of the wandb run, which an interrupted training goes on in."""
    cfg = recipe.tracking.wandb
    if cfg is None:
        return None
    import wandb

    state.setdefault("id", secrets.token_hex(4))
    folder.logs.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE")
    try:
        if mode is None:
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        run = wandb.init(
            project=cfg.project,
            entity=cfg.entity,
            group=cfg.group,
            tags=cfg.tags,
            name=recipe.name,
            id=state["id"],
            dir=str(folder.logs),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=recipe.model_dump(mode="json"),
        )
    except wandb.Error as error:
        raise RecipeError(f"tracking.wandb: {error}") from None
    run.define_metric("*", step_metric="step")
    if mode == "offline":
        log.info("wandb: offline, in %s; send it with `wandb sync`", folder.logs / "wandb")
    return Tracker(lambda step, numbers: run.log({"step": step, **numbers}), run.summary.update, run.finish)
