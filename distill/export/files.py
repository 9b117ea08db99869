"""Write rows to files, one query's at a time; the file extension decides the kind. Files appear whole or not at all.

Scores are float32: JSON and TREC runs hold them as the decimal numbers that Python prints for the same float64, which
read back to the same bits.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.errors import DataError
from distill.run.files import storage_errors, sync, write_atomic

Pages = Iterator[list[Any]]  # the rows of each query

_BATCH_PAGES = 256  # queries per record batch


def check_output(output: Path, endings: tuple[str, ...], force: bool) -> None:
    """Raise `DataError` if the format does not allow the file extension, or the output exists."""
    if _ending(output) not in endings:
        allowed = ", ".join(ending or "none (a dataset's folder)" for ending in endings)
        raise DataError(f"wrong file extension for this format; use one of {allowed}", path=output)
    if not output.exists():
        return
    if not force:
        raise DataError("exists already; choose another name, or add --force", path=output)
    if output.is_dir() != (not _ending(output)) or (output.is_dir() and not (output / "state.json").is_file()):
        raise DataError("exists already and is not an earlier export; choose another name, or remove it", path=output)


def write_rows(output: Path, schema: pa.Schema | None, pages: Pages) -> None:
    """Write all pages; `schema` is needed for rows with columns. An exception from `pages` leaves nothing behind."""
    write: Callable[..., None] = {
        ".jsonl": _write_jsonl,
        ".json": _write_object,
        ".parquet": _write_parquet,
        "": _write_dataset,
    }.get(_ending(output).removesuffix(".gz"), _write_lines)
    write(output, schema, pages)


def _ending(path: Path) -> str:
    """The file extension: .jsonl, .json.gz, ..., or "" for none."""
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def _write_jsonl(output: Path, schema: pa.Schema, pages: Pages) -> None:
    with _text_file(output) as file:
        for row in itertools.chain.from_iterable(pages):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_lines(output: Path, schema: None, pages: Pages) -> None:
    with _text_file(output) as file:
        for line in itertools.chain.from_iterable(pages):
            file.write(line + "\n")


def _write_object(output: Path, schema: None, pages: Pages) -> None:
    """Write (key, value) entries as one JSON object, one entry per line."""
    with _text_file(output) as file:
        separator = "{"
        for key, value in itertools.chain.from_iterable(pages):
            file.write(f"{separator}\n{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}")
            separator = ","
        file.write("\n}\n")


def _write_parquet(output: Path, schema: pa.Schema, pages: Pages) -> None:
    with write_atomic(output) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in _batches(schema, pages):
            writer.write_batch(batch)


def _write_dataset(output: Path, schema: pa.Schema, pages: Pages) -> None:
    """Write a folder for `datasets.load_from_disk`."""
    import datasets

    with storage_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
            rows, folder = Path(temporary) / "rows.arrow", Path(temporary) / "dataset"
            with pa.OSFile(str(rows), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for batch in _batches(schema, pages):
                    writer.write_batch(batch)
            datasets.Dataset.from_file(str(rows)).save_to_disk(folder)  # mapped, then copied in shards
            for path in (*folder.iterdir(), folder):
                sync(path)
            if output.exists():
                os.rename(output, Path(temporary) / "replaced")
            os.rename(folder, output)
            sync(output.parent)


def _batches(schema: pa.Schema, pages: Pages) -> Iterator[pa.RecordBatch]:
    while group := list(itertools.islice(pages, _BATCH_PAGES)):
        yield pa.RecordBatch.from_pylist(list(itertools.chain.from_iterable(group)), schema=schema)


@contextmanager
def _text_file(output: Path) -> Iterator[io.TextIOBase]:
    """A UTF-8 file, gzipped if the name ends in .gz; the header holds no time, so equal rows give equal bytes."""
    with write_atomic(output) as temporary, open(temporary, "wb") as raw:
        packed = gzip.GzipFile("", "wb", 6, raw, mtime=0) if output.suffix == ".gz" else raw
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file:
            yield file
