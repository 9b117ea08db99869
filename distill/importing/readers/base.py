"""The streams that every reader yields, and the checks that readers share.

A reader yields record batches that carry the line number of each row in an int64 column `line`, and the file's path in
the schema's metadata. Errors found after reading (a duplicate id, a judgement of an unknown passage) can still name
file and line.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from distill.errors import DataError
from distill.importing.readers.filetype import HEAD_BYTES, refuse_other_types
from distill.importing.spool import record_batch
from distill.store.arrow import BATCH_ROWS

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
        ("grades", pa.large_list(pa.int32())),  # above 0: a positive; null: the judgements decide
        ("scores", pa.large_list(pa.float32())),  # null: no scores in the source; NaN: no score for this passage
        _LINE,
    ]
)

Batches = Iterator[pa.RecordBatch]

_TO_LINES = "write one object per line: jq -c '.[]' in.json > out.jsonl"
_SCORE_LIMIT = 2.0**128 - 2.0**103  # from here on float32 rounds to infinity


class Unread(Counter[str]):  # ("column 'url'", 120)
    """What a source holds and its reader does not read: a description -> number of rows (of files: bytes; of empty
    texts: texts)."""

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Count `count` more of, say, the column `name`."""
        self[f"{kind} {name!r}"] += count


def unread_unit(description: str) -> str:
    """What the number beside a description in `Unread` counts."""
    return "bytes" if description.startswith("file ") else "texts" if description.startswith("empty ") else "rows"


@dataclass(frozen=True)
class Collection:
    """The streams of a source, each to be read once, in any order. The column `line` is optional.

    passages: batches of `PASSAGES`; queries: split -> `QUERIES`; judgements: split -> `JUDGEMENTS`;
    lists: split -> `LISTS`, for sources with their own negatives or scores; unread: complete after the last stream.
    """

    passages: Batches
    queries: dict[str, Batches]
    judgements: dict[str, Batches]
    lists: dict[str, Batches] = field(default_factory=dict)
    unread: Unread = field(default_factory=Unread)


class Location(NamedTuple):
    """The place in a source that an error points to; `line` also counts the rows of files without lines, from 1."""

    path: Path | str | None
    line: int | None = None

    def error(self, message: str, field: str | None = None) -> DataError:
        """A `DataError` to raise, with file, line and field before the message."""
        return DataError(message, path=self.path, line=self.line, field=field)


def location_of(data: pa.RecordBatch | pa.Table, row: int) -> Location:
    """Return where a row of a batch, or of a table of batches from one file, was read."""
    line = data.column("line")[row].as_py() if "line" in data.schema.names else None
    return Location(path_of(data.schema), line)


def path_of(schema: pa.Schema) -> str | None:
    """Return the file that batches of this schema were read from."""
    return (schema.metadata or {}).get(b"path", b"").decode() or None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn operating system errors into a `DataError` about `path`."""
    try:
        yield
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except IsADirectoryError:
        raise DataError("is a folder, expected a file", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", path=path) from None


def lines_of(path: Path, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 file, plain or gzipped.

    Blank lines are skipped unless `blank`.
    """
    path = Path(path)
    number = 0
    with reading(path):
        try:
            with open_text(path) as file:
                for number, raw in enumerate(file, start=1):
                    try:
                        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                    except UnicodeDecodeError as error:
                        message = (
                            f"not valid UTF-8 (byte {error.start + 1} of the line): {error.reason}; convert the file, "
                            "e.g. iconv -f LATIN1 -t UTF-8"
                        )
                        raise Location(path, number).error(message) from None
                    if blank or (line and not line.isspace()):
                        yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise Location(path, number + 1).error(f"damaged gzip file: {error}") from None


def open_text(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open a text file, plain or gzipped, at its start. Raises `DataError` for a file of another type."""
    packed = path.suffix == ".gz"
    with gzip.open(path, "rb") if packed else open(path, "rb") as file:
        refuse_other_types(path, file.read(HEAD_BYTES), packed=packed)
    return gzip.open(path, "rb") if packed else open(path, "rb")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSONL file. Raises `DataError` for a line that is not one JSON object."""
    for number, line in lines_of(path):
        at = Location(path, number)
        try:
            row = json.loads(line, object_pairs_hook=_fields)
        except _Repeated as error:
            raise at.error(f"the field {str(error)!r} stands twice in one object") from None
        except json.JSONDecodeError as error:
            raise at.error(_json_fault(line, error)) from None
        except (ValueError, RecursionError) as error:  # a number with thousands of digits; deeply nested brackets
            raise at.error(f"this JSON cannot be read: {error}") from None
        if not isinstance(row, dict):
            raise at.error(f"expected an object, found {_json_type(line, row)}")
        yield number, row


class _Repeated(Exception):
    pass


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Repeated(next(name for i, name in enumerate(names) if name in names[:i]))
    return fields


def _json_type(line: str, row: Any) -> str:
    return f"{type(row).__name__} (one JSON array; {_TO_LINES})" if line.startswith("[") else type(row).__name__


def _json_fault(line: str, error: json.JSONDecodeError) -> str:
    if line.strip() in ("[", "{", "[{"):
        kind = "object" if line.strip() == "{" else "array"
        return f"not one JSON object per line, but a JSON {kind} over several lines; {_TO_LINES}"
    return f"not valid JSON at column {error.colno}: {error.msg}"


def trec_columns(line: str) -> list[str]:
    """The columns of a line of judgements or of a run: between tabs; without tabs, or with both, between blanks.

    As in trec_eval, only ASCII blanks separate.
    """
    parts = [part.strip(" ") for part in line.split("\t")]
    if len(parts) in (3, 4, 6):
        return parts
    return [part for part in line.replace("\t", " ").split(" ") if part]


def batches_of(
    rows: Iterator[tuple], schema: pa.Schema, path: Path | None = None, batch_rows: int = BATCH_ROWS
) -> Batches:
    """Group rows, tuples in the order of the schema's columns, into record batches that carry the file's path."""
    if path is not None:
        schema = schema.with_metadata({"path": str(path)})
    pending: list[tuple] = []
    for row in rows:
        pending.append(row)
        if len(pending) == batch_rows:
            yield record_batch(pending, schema)
            pending = []
    if pending:
        yield record_batch(pending, schema)


def without_ids(batch: pa.RecordBatch, ids: pa.Array) -> pa.RecordBatch:
    """The rows whose id is not among `ids`."""
    return batch.filter(pc.invert(pc.is_in(batch.column("id"), value_set=ids)))


def text_field(row: dict[str, Any], name: str, at: Location, default: str | None = None) -> str:
    """Return a string field of a row. A field that is missing or null is `default`, or an error without one."""
    value = row.get(name)
    if value is None:
        if default is None:
            found = "null" if name in row else f"missing (the row has {', '.join(map(repr, row))})"
            raise at.error(found, name)
        return default
    if not isinstance(value, str):
        raise at.error(f"expected a string, found {type(value).__name__}", name)
    return checked_text(value, at, name)


def checked_text(value: str, at: Location, field: str) -> str:
    """Refuse lone surrogates: JSON can spell them as \\ud800, but UTF-8 cannot encode them."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise at.error("half a surrogate pair; not a valid text", field) from None
    return value


def id_field(row: dict[str, Any], name: str, at: Location) -> str:
    """Return an id field of a row: a non-empty string, or an integer as a string."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    identifier = text_field(row, name, at)
    if not identifier:
        raise at.error("empty id", name)
    return identifier


def number(value: Any, at: Location, field: str) -> float:
    """Return a score of a source: a number, or a text that spells one. Raises `DataError` for anything else."""
    if isinstance(value, str):  # in CSV, numbers are strings
        try:
            value = float("nan" if "_" in value else value)
        except ValueError:
            raise at.error(f"{value!r:.80} is not a number", field) from None
    if not is_score(value):
        raise at.error(score_fault(value), field)
    return float(value)


def is_score(value: Any) -> bool:
    """Whether a value is a number that float32, the type of stored scores, can hold."""
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float)) and -_SCORE_LIMIT < value < _SCORE_LIMIT  # False for NaN


def score_fault(value: Any) -> str:
    """Explain why a value is not a usable score."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{value!r:.80} is not a number"
    large = abs(value) < float("inf")
    return f"{value!r:.80} is {'too large for float32' if large else 'not a finite number'}"


def other_files(folder: Path, used: Iterable[Path]) -> Unread:
    """Count the bytes of the files beside those in `used`, in the folder and in its qrels/; hidden ones aside."""
    unread, known = Unread(), {Path(path).resolve() for path in used}
    with reading(folder):
        for path in sorted([*Path(folder).iterdir(), *Path(folder).glob("qrels/*")]):
            if path.is_file() and path.resolve() not in known and not path.name.startswith("."):
                unread.add("file", str(path.relative_to(folder)), path.stat().st_size)
    return unread


def find_file(folder: Path, *names: str) -> Path | None:
    """Return the first of these files that exists in the folder, plain or gzipped; None without any."""
    with reading(folder):
        for name in names:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
    return None


def require_file(folder: Path, *names: str) -> Path:
    """Return what `find_file` does. Raises `DataError` for a missing folder or file."""
    if not Path(folder).is_dir():
        raise DataError("no such folder", path=folder)
    path = find_file(folder, *names)
    if path is None:
        raise DataError(f"no {' or '.join(names)} (nor .gz) in this folder", path=folder)
    return path
