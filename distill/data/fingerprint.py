"""Fingerprints: a hash of what an output means, and the one field to name when two differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from distill.errors import FingerprintError

_ABSENT = "(absent)"


def fingerprint(fields: dict[str, Any]) -> str:
    """16 hex digits, the same for equal fields in any order and on any machine. Values must be JSON's."""
    return xxhash.xxh3_64_hexdigest(_canonical(fields).encode())


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first field, by dotted name, in which two trees of fields differ, as "field old -> new"; None if equal."""
    before, after = _flatten(json.loads(_canonical(old))), _flatten(json.loads(_canonical(new)))
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if was != now:
            return f"{name} {_short(was)} -> {_short(now)}"
    return None


def check_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise `FingerprintError`, naming both fingerprints and the field, unless `folder` was made from `new`."""
    difference = first_difference(old, new)
    if difference is not None:
        raise FingerprintError(f"{folder}: made from other inputs (fingerprint {fingerprint(old)}, this run needs "
                               f"{fingerprint(new)}): {difference}")


def _canonical(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {name: leaf for key, value in tree.items()
                for name, leaf in _flatten(value, f"{prefix}.{key}" if prefix else key).items()}
    return {prefix: tree}


def _short(value: Any) -> str:
    text = value if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
