"""Output folder of a stage: its fingerprint inputs, its state and its commit.

Claims and manifests are handled here only. A folder is done when it has a manifest with the same fingerprint inputs; a
claim, written before the first shard, prevents two recipes from filling one folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from distill.run.fingerprint import check_same, fingerprint, first_difference
from distill.run.manifest import Manifest, Shard, claim, claimed, read_manifest, write_manifest

Fields = dict[str, Any]


@dataclass(frozen=True)
class OutputState:
    """State of a folder. `difference`: of a stale one, both fingerprints and the first field that differs."""

    kind: Literal["missing", "done", "stale"]
    difference: str = ""
    manifest: Manifest | None = None  # if finished


class Output:
    """An output folder. `inputs` returns its fingerprint inputs; it is called at most once, when first needed.

    `key` identifies the output within its stage (a split, a teacher).
    """

    def __init__(self, folder: Path, inputs: Callable[[], Fields], *, key: tuple[str, ...] = ()):
        self.folder, self.key = folder, key
        self._inputs = inputs

    @cached_property
    def fields(self) -> Fields:
        """Fingerprint inputs."""
        return self._inputs()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the fingerprint inputs."""
        return fingerprint(self.fields)

    def state(self) -> OutputState:
        """Compare the folder with the inputs. Raises what `inputs` raises if an earlier stage is not finished."""
        fields, manifest = self.fields, read_manifest(self.folder)
        made_from = claimed(self.folder) if manifest is None else manifest.fields
        if made_from is not None and (difference := first_difference(made_from, fields)) is not None:
            return OutputState(
                "stale",
                f"{self.folder} was made from other inputs (fingerprint {fingerprint(made_from)}, this recipe: "
                f"{self.fingerprint}): {difference}",
                manifest,
            )
        return OutputState("missing" if manifest is None else "done", manifest=manifest)

    def finished(self) -> Manifest | None:
        """Return the manifest, None if the folder is not finished. Raises `FingerprintError` if it is stale."""
        manifest = read_manifest(self.folder)
        if manifest is not None:
            check_same(self.folder, manifest.fields, self.fields)
        return manifest

    def claim(self) -> None:
        """Claim the folder for these inputs. Raises `FingerprintError` if it is claimed for others."""
        claim(self.folder, self.fields)

    def finish(self, shards: Iterable[Shard] = (), counts: dict[str, Any] | None = None) -> Manifest:
        """Write the manifest and return it; if another process was first, return that process's manifest."""
        manifest = self.finished()
        if manifest is None:
            manifest = Manifest(self.fields, tuple(shards), counts or {})
            write_manifest(self.folder, manifest)
        return manifest
