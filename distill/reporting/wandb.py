"""Weights & Biases, if the recipe asks for it.

Without credentials the run is recorded offline in the run folder's logs, for `wandb sync` later.
"""

from __future__ import annotations

import logging
import os
import secrets
from typing import Any, Literal

from distill.errors import RecipeError
from distill.reporting.run_facts import public_tree
from distill.reporting.tracker import Tracker
from distill.run.run import Run

log = logging.getLogger(__name__)


def open_wandb(run: Run, state: dict[str, Any]) -> Tracker | None:
    """Open the tracker; None if the recipe does not ask for it. `state` keeps the id of the wandb run to resume."""
    cfg = run.recipe.tracking.wandb
    if cfg is None:
        return None
    import wandb

    state.setdefault("id", secrets.token_hex(4))
    run.folder.logs.mkdir(parents=True, exist_ok=True)
    own_mode: Literal["online", "offline"] | None = None  # wandb itself reads WANDB_MODE
    try:
        if "WANDB_MODE" not in os.environ:
            own_mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        mode = own_mode or os.environ["WANDB_MODE"]
        tracked = wandb.init(
            project=cfg.project,
            entity=cfg.entity,
            group=cfg.group,
            tags=cfg.tags,
            name=run.recipe.name,
            id=state["id"],
            dir=str(run.folder.logs),
            mode=own_mode,
            resume="allow" if mode == "online" else None,
            config=public_tree(run.recipe),
        )
    except wandb.Error as error:
        raise RecipeError(f"tracking.wandb: {error}") from None
    tracked.define_metric("*", step_metric="step")
    if mode == "offline":
        log.info("wandb: recording offline in %s; upload it with `wandb sync`", run.folder.logs / "wandb")
    return Tracker(
        lambda step, numbers: tracked.log({"step": step, **numbers}),
        lambda numbers: tracked.summary.update(dict(numbers)),
        tracked.finish,
    )
