"""A finished training for tests of the stage after it."""

from __future__ import annotations

from pathlib import Path

from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, write_manifest
from tests.helpers.small_run import save_checkpoint


def save_trained(mlm: Path, folder: RunFolder, **options) -> None:
    """Save the masked language model `mlm` as the run's student, with the manifest that training writes."""
    save_checkpoint(mlm, folder.model, **options)
    write_manifest(folder.model, Manifest({"stage": "train"}))
