"""A run: the recipe of one round, and its folder."""

from __future__ import annotations

from dataclasses import dataclass

from distill.config import Recipe
from distill.run.layout import RunFolder
from distill.run.manifest import require_manifest
from distill.run.model_ref import ModelRef


@dataclass(frozen=True)
class Run:
    """The argument of every stage.

    `distill.recipe.expand.open_runs` makes the runs of a recipe, one per round, with a rehearsal's limit applied.
    """

    recipe: Recipe
    folder: RunFolder

    def model(self, name: str, revision: str | None = None) -> ModelRef:
        """Return a model of the recipe. Raises `StorageError` if the previous round has not saved it yet."""
        follows = self.recipe.follows
        if follows is not None and name == str(follows.checkpoint):
            require_manifest(follows.checkpoint, "train")
        return ModelRef.parse(name, revision)

    @classmethod
    def of(cls, recipe: Recipe) -> Run:
        """Return the run of a recipe of one round."""
        return cls(recipe, RunFolder.of(recipe))
