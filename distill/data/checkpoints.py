"""What a fingerprint says of a saved checkpoint: its content, which a path does not tell."""

from __future__ import annotations

from pathlib import Path

from distill.config import Recipe
from distill.data.files import xxh128_file
from distill.data.fingerprint import fingerprint
from distill.data.manifest import require_manifest


def checkpoint_digest(path: Path) -> str:
    """Hash of all files of a checkpoint but its model card; empty where there is none."""
    left_out = ("README.md", "manifest.json")  # written after, and about, the evaluation
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in left_out)
    return fingerprint({str(file.relative_to(path)): xxh128_file(file) for file in files}) if files else ""


def model_field(recipe: Recipe, model: str | None) -> str | dict[str, str] | None:
    """A model as a fingerprint names it: as the recipe does, but a folder, the checkpoint of the round before among
    them, by its content.

    Raises `StorageError` while the round before has no checkpoint.
    """
    if recipe.follows is not None and model == str(recipe.follows.checkpoint):
        require_manifest(recipe.follows.checkpoint, "train")
    elif model is None or not Path(model).is_dir():
        return model
    return {"checkpoint": checkpoint_digest(Path(model))}
