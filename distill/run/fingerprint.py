"""Fingerprints: hashes of the inputs that determine an output, and the field in which two of them differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from distill.errors import FingerprintError

_ABSENT = "(absent)"


def fingerprint(fields: dict[str, Any]) -> str:
    """Return 16 hex digits, equal for equal fields in any order and on any machine. Values must be those of JSON."""
    return xxhash.xxh3_64_hexdigest(_canonical(fields).encode())


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return the first field in which two trees differ, as "dotted.name old -> new"; None if they are equal."""
    return _difference(json.loads(_canonical(old, False)), json.loads(_canonical(new, False)), "")


def check_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise `FingerprintError`, naming both fingerprints and the field, if the inputs of `folder` changed."""
    difference = first_difference(old, new)
    if difference is not None:
        raise FingerprintError(
            f"{folder}: made from other inputs (fingerprint {fingerprint(old)}, this run needs "
            f"{fingerprint(new)}): {difference}"
        )


def _canonical(fields: dict[str, Any], sort_keys: bool = True) -> str:
    return json.dumps(fields, sort_keys=sort_keys, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _difference(old: Any, new: Any, name: str) -> str | None:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else f"{name} {_short(old)} -> {_short(new)}"
    for key in {**new, **old}:
        inner = f"{name}.{key}" if name else key
        if (difference := _difference(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)) is not None:
            return difference
    return None


def _short(value: Any) -> str:
    text = value if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
