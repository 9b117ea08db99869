"""Manifest of a folder: written last, and the only record of its content that readers trust."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import StorageError
from distill.run import fingerprint as fp
from distill.run.files import commit_exclusive, read_json, read_object, temporary_beside, write_json, xxh128_file

FORMAT = 1  # version of the files in a run folder but checkpoints; part of every fingerprint


@dataclass(frozen=True)
class Shard:
    """One finished file: its name in the folder, number of rows, size in bytes and checksum."""

    name: str
    rows: int
    bytes: int
    xxh128: str

    @classmethod
    def of(cls, file: Path, folder: Path, rows: int = 0) -> Shard:
        """Describe a finished file below `folder`."""
        return cls(file.relative_to(folder).as_posix(), rows, file.stat().st_size, xxh128_file(file))


@dataclass(frozen=True)
class Manifest:
    """Content of a folder. `fields` are the fingerprint inputs; `counts` is for people."""

    fields: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", tuple(self.shards))
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", fp.fingerprint(self.fields))

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


def manifest_path(folder: Path) -> Path:
    return Path(folder) / "manifest.json"


def read_manifest(folder: Path) -> Manifest | None:
    """Read a folder's manifest; None if it has none: then nothing in the folder counts as finished."""
    path = manifest_path(folder)
    if not path.exists():
        return None
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        version = tree.get("format") if isinstance(tree, dict) else None
        raise StorageError(
            f"{path}: written in format {version}, but this version reads format {FORMAT}; "
            "remove the folder and run its stage again"
        )
    try:
        manifest = Manifest(**{**tree, "shards": tuple(Shard(**shard) for shard in tree["shards"])})
        if not isinstance(manifest.fields, dict) or not isinstance(manifest.counts, dict):
            raise TypeError("fields and counts are no objects")
        if not all(isinstance(shard.name, str) and isinstance(shard.rows, int) for shard in manifest.shards):
            raise TypeError("a shard without a name or a number of rows")
        if manifest.fingerprint != fp.fingerprint(manifest.fields):
            raise ValueError("its fingerprint is not that of its fields")
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path}: damaged: {error}; remove the folder and run its stage again") from None
    return manifest


def require_manifest(folder: Path, stage: str) -> Manifest:
    """Read a folder's manifest. Raises `StorageError`, naming the stage to run first, if it has none."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise StorageError(f"{folder}: nothing finished here; run `distill {stage}` first")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(manifest_path(folder), dataclasses.asdict(manifest))


def claim(folder: Path, fields: dict[str, Any]) -> None:
    """Record a folder's fingerprint inputs before its first shard. Raises `FingerprintError` if it has others."""
    plan = _claim_path(folder)
    if not plan.exists():
        with temporary_beside(plan) as temporary:
            temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
            commit_exclusive(temporary, plan)
    fp.check_same(folder, _read_claim(plan), fields)


def claimed(folder: Path) -> dict[str, Any] | None:
    """Read the fingerprint inputs that a folder was claimed for; None if it was not claimed."""
    path = _claim_path(folder)
    return _read_claim(path) if path.exists() else None


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except StorageError as error:
        raise StorageError(f"{error}; remove the folder and run its stage again") from None


def _claim_path(folder: Path) -> Path:
    return Path(folder) / "claim.json"


def verify(folder: Path) -> list[Shard]:
    """Return the shards of the manifest whose file is missing, truncated or changed."""
    manifest = read_manifest(folder)
    return [shard for shard in (manifest.shards if manifest else ()) if not _intact(Path(folder) / shard.name, shard)]


def _intact(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and xxh128_file(path) == shard.xxh128
