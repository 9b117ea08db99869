"""The manifest of a folder: written last, and the only thing readers trust about what lies in it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.data import fingerprint as fp
from distill.data.files import commit_exclusive, read_json, temporary_beside, write_json, xxh128_file
from distill.errors import StorageError

FORMAT = 1  # of everything on disk; part of every fingerprint


@dataclass(frozen=True)
class Shard:
    """One finished file: its name in the folder, its rows, and the size and checksum of its bytes."""

    name: str
    rows: int
    bytes: int
    xxh128: str


@dataclass(frozen=True)
class Manifest:
    """What a folder holds. `fields` is what was hashed into `fingerprint`; `counts` is for people."""

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
    """The folder's manifest, or None while there is none: then nothing in the folder counts as finished."""
    path = manifest_path(folder)
    if not path.exists():
        return None
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        found = tree.get("format") if isinstance(tree, dict) else None
        raise StorageError(
            f"{path}: written in format {found}, this version reads format {FORMAT}; "
            "remove the folder and make it again"
        )
    try:
        return Manifest(**{**tree, "shards": tuple(Shard(**shard) for shard in tree["shards"])})
    except (KeyError, TypeError) as error:
        raise StorageError(f"{path}: damaged: {error}") from None


def require_manifest(folder: Path, stage: str) -> Manifest:
    """The folder's manifest, or a `StorageError` that names the stage to run first."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise StorageError(f"{folder}: nothing finished here; run `distill {stage}` first")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(manifest_path(folder), dataclasses.asdict(manifest))


def claim(folder: Path, fields: dict[str, Any]) -> None:
    """Write down, before the first shard, what a folder is for. Raises `FingerprintError` where it is for another."""
    if claimed(folder) is None:
        plan = _plan_path(folder)
        with temporary_beside(plan) as temporary:
            temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
            commit_exclusive(temporary, plan)
    fp.check_same(folder, claimed(folder), fields)


def claimed(folder: Path) -> dict[str, Any] | None:
    """The fields that an unfinished folder was claimed for; None where nobody has begun."""
    plan = _plan_path(folder)
    return read_json(plan) if plan.exists() else None


def _plan_path(folder: Path) -> Path:
    return Path(folder) / "plan.json"


def verify(folder: Path) -> list[Shard]:
    """The shards in the manifest whose file is missing, cut short, or not the bytes that were written."""
    manifest = read_manifest(folder)
    return [shard for shard in (manifest.shards if manifest else ()) if not _intact(Path(folder) / shard.name, shard)]


def _intact(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and xxh128_file(path) == shard.xxh128
