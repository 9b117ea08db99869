"""Atomic files: written to a temporary name in the same folder, synced, then renamed.

A full disk becomes a `StorageError` that names the file; half-written files are removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from distill.errors import DistillError, StorageError
from distill.run.limits import limit_error

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_FAILING = (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # of libraries in Rust
_TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|iostream error")


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, an exhausted quota, a missing permission or a failing disk into a `StorageError`.

    Python and Arrow raise an `OSError` with its number. safetensors and tokenizers put the number into a text, and
    torch says that its writer failed. The path is that of the error, else `path`.
    """
    try:
        yield
    except DistillError:
        raise
    except Exception as error:
        number, raised = _error_number(error), error
        path = getattr(error, "filename", None) or path
    else:
        return
    if number in _NO_SPACE:
        raise StorageError(
            f"{path}: no space left on the disk; nothing was written there. "
            "Free some space and start the same command again"
        ) from raised
    if number in _NO_ACCESS:
        raise StorageError(f"{path}: cannot be written ({os.strerror(number)})") from raised
    if number in _FAILING:
        raise StorageError(
            f"{path}: the disk failed ({os.strerror(number)}); check it and its space, and start the same command again"
        ) from raised
    raise raised


@contextlib.contextmanager
def stage_errors(folder: Path) -> Iterator[None]:
    """Turn a full or failing disk into a `StorageError`, and a limit that is met into a `LimitError`, wherever it is.

    A stage also writes temporary files and caches, so an error without a path does not say which disk it is.
    """
    try:
        yield
    except DistillError:
        raise
    except Exception as error:
        number, path = _error_number(error), getattr(error, "filename", None)
        inside = path is not None and Path(str(path)).is_relative_to(folder)
        if number in _NO_SPACE + _FAILING or (number in _NO_ACCESS and inside):
            where = path or f"the disk of {folder}, of temporary files or of a cache"
            with storage_errors(Path(str(where))):
                raise OSError(number, os.strerror(number), str(where)) from error
        if (limit := limit_error(error)) is not None:
            raise limit from error
        raise


def _error_number(error: Exception) -> int | None:
    """The system's number of an error, also where a library put it into words."""
    if isinstance(error, OSError):
        return error.errno
    match = _OS_ERROR.search(str(error))
    return int(match[1]) if match else errno.EIO if _TORCH_WRITER.search(str(error)) else None


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield an unused name in `path`'s folder, which is created if missing; remove that file at the end."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent}: cannot create this folder ({error.strerror})") from error
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with storage_errors(path):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path`, synced, when the block ends without an error."""
    path = Path(path)
    with temporary_beside(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path`, synced, when the block ends without an error."""
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
    """Rename a finished file to `path` unless that exists; returns False for the second writer of a shard.

    `temporary` must be in the folder of `path`, and is removed in both cases.
    """
    temporary, path = Path(temporary), Path(path)
    sync(temporary)
    try:
        os.link(temporary, path)
        first = True
    except FileExistsError:
        # NFS may report the link that it has just made as existing: then both names are the same file
        first = os.path.samefile(temporary, path)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise StorageError(
                f"{path.parent}: this file system does not support hard links, which commit shards; "
                "put the run folder on one that does"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return first


def remove_leftovers(folder: Path, pattern: str, older_than: float = 3600.0) -> None:
    """Remove leftovers of killed processes: files and folders unchanged for `older_than` seconds."""
    for path in Path(folder).glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another process may remove it at the same time
            newest = max(entry.stat().st_mtime for entry in (path, *path.rglob("*")))
            if time.time() - newest > older_than:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def locked(path: Path, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Hold a lock on `path` among processes; it is released when the process dies.

    If another process holds it, wait, or raise `BlockingIOError` at once. Any number may hold a `shared` one together.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(f".{path.name}.lock"), "a+")  # noqa: SIM115 (open until the block ends)
    with lock:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(lock, kind if wait else kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            raise StorageError(
                f"{path.parent}: this file system does not support file locks (flock), which keep processes "
                "from writing the same file; mount it with locks, or put the run folder elsewhere"
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
    """Return the checksum of a file's content, 32 hex digits, in constant memory."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """Return `xxh128_file(path)`, cached per process until the file's size, time or inode changes."""
    status = path.stat()
    return _checksum(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=65_536)
def _checksum(path: Path, size: int, modified: int, inode: int) -> str:
    return xxh128_file(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that this program has written. Raises `StorageError` if it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: damaged, not valid JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that this program has written as an object. Raises `StorageError` if it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise StorageError(f"{path}: damaged: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a log of JSON lines, if it exists.

    Lines cut short by a crash, and foreign ones, are skipped.
    """
    if not Path(path).exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append to a log of JSON lines, in one write: several processes may share it."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
