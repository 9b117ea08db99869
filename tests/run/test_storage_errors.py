"""A full or failing disk is a `StorageError`, whichever library writes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from distill.errors import RecipeError, StorageError
from distill.run.files import storage_errors

FULL = Path("/dev/full")
CASES = {
    "no space": (OSError(errno.ENOSPC, "No space left on device", "/a/file"), "/a/file: no space left"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "here: no space left"),
    "input/output": (OSError(errno.EIO, "Input/output error", "/a/file"), "/a/file: the disk failed"),
    "stale handle": (OSError(errno.ESTALE, "Stale file handle"), "here: the disk failed"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/a/file"), "/a/file: cannot be written"),
    "a library in Rust": (Exception("No space left on device (os error 28)"), "here: no space left"),
    "torch's writer": (
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64"),
        "the disk failed",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_errors_of_the_disk_are_translated(kind):
    error, message = CASES[kind]
    with pytest.raises(StorageError, match=message), storage_errors(Path("here")):
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RecipeError("(os error 28)"), OSError(errno.ECONNRESET, "reset")]
)
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as caught, storage_errors(Path("here")):
        raise error
    assert caught.value is error


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("library", ["python", "torch", "arrow"])
def test_real_writers_on_a_full_device(library):
    import pyarrow as pa
    import torch

    def write() -> None:
        if library == "python":
            FULL.write_text("x")
        elif library == "torch":
            with FULL.open("wb") as file:
                torch.save(torch.ones(10), file)
        else:
            with pa.OSFile(str(FULL), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.int64())])) as writer:
                writer.write_batch(pa.record_batch({"a": [1] * 100_000}))

    with pytest.raises(StorageError, match=r"no space left|the disk failed"), storage_errors(FULL):
        write()
