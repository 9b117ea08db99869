"""Checksums of caches: files that no manifest lists, since the stage that misses one makes it again.

A seal lies beside its file, `.<name>.xxh128`. A damaged file is taken away before a stage reads it, and made again; a
file without a seal is not checked.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from distill.run.files import checksum, write_atomic

log = logging.getLogger(__name__)

_PATTERN = ".*.xxh128"


@contextlib.contextmanager
def sealed(path: Path) -> Iterator[None]:
    """Write the file at `path` inside this block. A crash inside leaves a file without a seal, never a wrong seal.

    One process writes a file at a time.
    """
    _seal_of(path).unlink(missing_ok=True)
    yield
    seal(path, checksum(path))


def seal(path: Path, xxh128: str) -> None:
    """Record the checksum of a finished file."""
    with write_atomic(_seal_of(path)) as temporary:
        temporary.write_text(xxh128 + "\n", encoding="ascii")


def is_damaged(path: Path) -> bool:
    """Whether a file exists and differs from its seal. Reads it once per process while it stays the same."""
    path = Path(path)
    try:
        recorded = _read(path)
        # another process may write the file anew: then its seal is gone, or another one
        return checksum(path) != recorded and _read(path) == recorded
    except FileNotFoundError:
        return False


def damaged(folders: Iterable[Path]) -> list[Path]:
    """The sealed files below these folders that are damaged, in order."""
    seals = (mark for folder in folders for mark in sorted(Path(folder).rglob(_PATTERN)))
    return [path for mark in seals if is_damaged(path := mark.with_name(mark.name[1:].removesuffix(".xxh128")))]


def take_away(path: Path, problem: object = "its content differs from its checksum") -> None:
    """Set a damaged cache aside as `<name>.damaged`, and say that it will be made again."""
    log.warning(
        "%s: damaged (%s); set aside as %s.damaged, and made again where it is needed", path, problem, path.name
    )
    _seal_of(path).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another process may have moved it
        path.replace(path.with_name(f"{path.name}.damaged"))


def _seal_of(path: Path) -> Path:
    return Path(path).with_name(f".{Path(path).name}.xxh128")


def _read(path: Path) -> str:
    return _seal_of(path).read_text(encoding="ascii", errors="replace").strip()
