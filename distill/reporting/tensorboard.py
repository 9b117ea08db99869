"""TensorBoard, if the recipe asks for it: event files in the run folder's logs/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.errors import RecipeError
from distill.reporting.tracker import Tracker
from distill.run.run import Run


def open_tensorboard(run: Run, state: dict[str, Any]) -> Tracker | None:
    """Open the tracker; None if the recipe does not ask for it. It has no state to resume."""
    if not run.recipe.tracking.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RecipeError(
            f"tracking.tensorboard needs the package tensorboard ({error}): pip install 'splade-distill[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(run.folder.logs / "tensorboard"))

    def line(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def results(values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"evaluation/{name}", value, 0)

    return Tracker(line, results, writer.close)
