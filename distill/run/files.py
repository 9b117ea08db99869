"""Files that exist or don't: written beside their place, synced, then moved there in one step.

A full disk becomes a `StorageError` that names the file; whatever was half-written is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from distill.errors import StorageError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" (or a full quota) and "not permitted", from Python or from Arrow, into a `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageError(
                f"{path}: no space left on the disk; nothing was written there. "
                "Free some and start the same command again"
            ) from error
        if error.errno in _NO_ACCESS:
            raise StorageError(f"{path}: cannot be written ({error.strerror})") from error
        raise


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A free name in `path`'s folder (made if missing); what lies there at the end, or after an error, is removed."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent}: this folder cannot be made ({error.strerror})") from error
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with storage_errors(path):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Write to the path this yields; `path` appears, whole and synced, only when the block ends without an error."""
    path = Path(path)
    with temporary_beside(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place, whole and synced, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{kind}") for kind in ("tmp", "old"))
    try:
        with storage_errors(path):
            temporary.mkdir()
            yield temporary
            for part in (*temporary.rglob("*"), temporary):
                sync(part)
            if path.exists():
                os.replace(path, replaced)
            os.replace(temporary, path)
            sync(path.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def commit_exclusive(temporary: Path, path: Path) -> bool:
    """Give a finished file its name unless the name is taken; the second writer of a shard gets False.

    `temporary` must lie in the folder of `path`, and is gone afterwards.
    """
    temporary, path = Path(temporary), Path(path)
    sync(temporary)
    try:
        os.link(temporary, path)
        won = True
    except FileExistsError:
        # over NFS a link that was made may be reported as existing: then both names are the same file
        won = os.path.samefile(temporary, path)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise StorageError(
                f"{path.parent}: this file system has no hard links, which shards are committed "
                "with; put the run folder on one that has them"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return won


def remove_leftovers(folder: Path, pattern: str, older_than: float = 3600.0) -> None:
    """Remove what killed processes left: files or folders in which nothing was written for `older_than` seconds."""
    for path in Path(folder).glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another process may be at it
            newest = max(entry.stat().st_mtime for entry in (path, *path.rglob("*")))
            if time.time() - newest > older_than:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold `path` against other processes that ask for it here; a process that dies lets go.

    Where another holds it, wait for it, or raise `BlockingIOError` at once.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115 (held for the length of the block)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            raise StorageError(
                f"{path.parent}: this file system has no file locks (flock), which keep two processes "
                "from writing the same; mount it with them, or put the run folder elsewhere"
            ) from error
        yield


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def xxh128_file(path: Path) -> str:
    """Checksum of a file's content, in constant memory; 32 hex digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file of ours; `StorageError` where the file is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: damaged, not valid JSON: {error}") from None


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a log of ours, none if there is no file; a line cut short by a crash is skipped."""
    if not Path(path).exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append to a log of ours, in one write: processes may share it."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
