"""What every reader yields, and how files are read: streams of record batches that know the line of each row.

Line numbers travel as an int64 column `line` with the file's path in the schema's metadata, so that a fault found
later (a duplicate id, a judgement pointing nowhere) can still name its place.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from distill.data.arrow import BATCH_ROWS
from distill.errors import DataError

_LINE = ("line", pa.int64())
PASSAGES = pa.schema([("id", pa.large_string()), ("title", pa.large_string()), ("text", pa.large_string()), _LINE])
QUERIES = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), _LINE])
JUDGEMENTS = pa.schema(
    [("query_id", pa.large_string()), ("passage_id", pa.large_string()), ("grade", pa.int32()), _LINE]
)
LISTS = pa.schema(
    [
        ("query_id", pa.large_string()),
        ("passage_ids", pa.large_list(pa.large_string())),
        ("positive", pa.large_list(pa.bool_())),  # null: the judgements say which are
        ("scores", pa.large_list(pa.float32())),  # null: the source has none; NaN: none for this passage
        _LINE,
    ]
)

Batches = Iterator[pa.RecordBatch]

_SCORE_LIMIT = 2.0**128 - 2.0**103  # from here on float32 rounds to infinity


@dataclass(frozen=True)
class Collection:
    """A source, as streams to be read once each, in any order. The column `line` may be left out.

    passages: batches of `PASSAGES`; queries: split -> `QUERIES`; judgements: split -> `JUDGEMENTS`;
    lists: split -> `LISTS`, for sources that bring their own negatives or scores.
    """

    passages: Batches
    queries: dict[str, Batches]
    judgements: dict[str, Batches]
    lists: dict[str, Batches] = field(default_factory=dict)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what keeps a file from being read into a `DataError`."""
    try:
        yield
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except IsADirectoryError:
        raise DataError("is a folder, expected a file", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", path=path) from None


def lines_of(path: Path, blank: bool = False) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file, plain or gzipped; blank lines only if asked for."""
    path = Path(path)
    number = 0
    with reading(path):
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
                for number, raw in enumerate(file, start=1):
                    try:
                        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                    except UnicodeDecodeError as error:
                        raise DataError(
                            f"not valid UTF-8 (byte {error.start + 1} of the line): {error.reason}",
                            path=path,
                            line=number,
                        ) from None
                    if blank or (line and not line.isspace()):
                        yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"damaged gzip file: {error}", path=path, line=number + 1) from None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSONL file; anything but one object a line is refused."""
    for number, line in lines_of(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"not valid JSON at column {error.colno}: {error.msg}", path=path, line=number) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
            raise DataError(f"this JSON cannot be read: {error}", path=path, line=number) from None
        if not isinstance(row, dict):
            raise DataError(f"expected an object, found {type(row).__name__}", path=path, line=number)
        yield number, row


def batches_of(
    rows: Iterator[tuple], schema: pa.Schema, path: Path | None = None, batch_rows: int = BATCH_ROWS
) -> Batches:
    """Gather tuples, in the schema's order of columns, into record batches that carry the file's path."""
    if path is not None:
        schema = schema.with_metadata({"path": str(path)})
    pending: list[tuple] = []
    for row in rows:
        pending.append(row)
        if len(pending) == batch_rows:
            yield _batch(pending, schema)
            pending = []
    if pending:
        yield _batch(pending, schema)


def text_field(row: dict[str, Any], name: str, path: Path, line: int, default: str | None = None) -> str:
    """A field that must be a string; a missing one (or null) is `default`, or refused where there is none."""
    value = row.get(name)
    if value is None:
        if default is None:
            raise DataError("missing", path=path, line=line, field=name)
        return default
    if not isinstance(value, str):
        raise DataError(f"expected a string, found {type(value).__name__}", path=path, line=line, field=name)
    return checked_text(value, path, line, name)


def checked_text(value: str, path: Path, line: int, name: str) -> str:
    """JSON's \\ud800 escapes can spell half a character, which no UTF-8 file can hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError("half a surrogate pair; not a valid text", path=path, line=line, field=name) from None
    return value


def id_field(row: dict[str, Any], name: str, path: Path, line: int) -> str:
    """An id: a string or a whole number, not empty."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    identifier = text_field(row, name, path, line)
    if not identifier:
        raise DataError("empty id", path=path, line=line, field=name)
    return identifier


def is_score(value: Any) -> bool:
    """A number that float32 can hold, in which scores are kept."""
    return isinstance(value, (int, float)) and -_SCORE_LIMIT < value < _SCORE_LIMIT  # NaN is in no interval


def score_fault(value: Any) -> str:
    """Why a value is none."""
    large = isinstance(value, (int, float)) and abs(value) < float("inf")
    return f"{value!r:.80} is {'too large for float32' if large else 'not a finite number'}"


def find_file(folder: Path, *names: str) -> Path | None:
    """The first of these names that is in the folder, plain or gzipped."""
    with reading(folder):
        for name in names:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
    return None


def require_file(folder: Path, *names: str) -> Path:
    if not Path(folder).is_dir():
        raise DataError("no such folder", path=folder)
    path = find_file(folder, *names)
    if path is None:
        raise DataError(f"no {' or '.join(names)} (nor .gz) in this folder", path=folder)
    return path


def _batch(rows: list[tuple], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
