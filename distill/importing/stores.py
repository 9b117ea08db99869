"""The stores of the import: passages, queries and judgements of a source, checked and resolved to row numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.errors import DataError
from distill.importing.generated import GeneratedQueries
from distill.importing.readers.base import Batches, Location, location_of, path_of
from distill.importing.spool import Spool
from distill.progress import progress
from distill.run.manifest import Shard
from distill.store.arrow import BATCH_ROWS, RowReader, first_of_each, write_ipc
from distill.store.judgements import JUDGEMENT_SCHEMA
from distill.store.texts import PASSAGE_SCHEMA, QUERY_SCHEMA, TextStore, passage_text

log = logging.getLogger(__name__)

_BLANK = r"[\s\p{Z}\p{Cc}]"  # for Arrow
_BLANK_OR_PERCENT = re.compile(r"[\s\x00-\x1f\x7f-\x9f%]")
_ID_LIMIT = 1000  # characters
_LOOKUP_ROWS = 1 << 20  # ids resolved at once: each look-up scans the ids of the store


class LineNumbers:
    """The file and line of each row of a stream, stored as the starts of runs of consecutive lines."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._rows: list[np.ndarray] = []
        self._lines: list[np.ndarray] = []

    def add(self, batch: pa.RecordBatch, first_row: int) -> None:
        self._path = path_of(batch.schema)
        if "line" in batch.schema.names and batch.num_rows and not batch.column("line").null_count:
            lines = batch.column("line").to_numpy()
            starts = np.flatnonzero(np.diff(lines, prepend=lines[0] - 2) != 1)
            self._rows.append(first_row + starts)
            self._lines.append(lines[starts])

    def of(self, row: int) -> Location:
        """Return where a row was read; without a line for sources that have none."""
        if not self._rows:
            return Location(self._path)
        rows, lines = np.concatenate(self._rows), np.concatenate(self._lines)
        run = int(np.searchsorted(rows, row, side="right")) - 1
        return Location(self._path, int(lines[run] + row - rows[run]))


@dataclass(frozen=True)
class Passages:
    """The collection in a temporary store."""

    store: TextStore
    empty: np.ndarray  # rows without a text, ascending: int64
    repeated: int  # rows that repeat an earlier one, and were left out


def spool_passages(batches: Batches, spool: Path) -> Passages:
    """Stream the passages into a temporary store.

    Raises `DataError` for an id that TREC files cannot hold or that stands for two texts, and for a source without
    passages.
    """
    path = spool / "passages.arrow"
    line_numbers = LineNumbers()
    with progress("import passages", None, "passages") as advance, Spool(path, PASSAGE_SCHEMA) as store:
        for batch in batches:
            line_numbers.add(batch, store.rows)
            check_ids(batch, "passage")
            columns = [batch.column(name) for name in ("id", "title", "text")]
            store.write_batch(
                pa.RecordBatch.from_arrays(
                    [*columns, pa.array(np.full(batch.num_rows, -1, np.int64))], schema=PASSAGE_SCHEMA
                )
            )
            advance(batch.num_rows)
    opened, repeated = without_repeats(path, line_numbers, "passage")
    if not len(opened):
        raise DataError("there are no passages", field="data.source")
    empty, first = [np.empty(0, np.int64)], 0
    for batch in RowReader(opened.path).batches:
        empty.append(first + empty_rows(passage_text(batch.column("title"), batch.column("text"))))
        first += batch.num_rows
    return Passages(opened, np.concatenate(empty), repeated)


def write_passages(
    passages: Passages, generated: GeneratedQueries, variants: np.ndarray, path: Path, fingerprint: str
) -> Shard:
    """Write the final store: the collection, then the variants of the generated queries in `variants` (ascending)."""

    def batches() -> Batches:
        yield from RowReader(passages.store.path).batches
        for rows in slices(variants):
            yield generated.rows.take(rows, PASSAGE_SCHEMA.names)

    shard = write_ipc(path, PASSAGE_SCHEMA, batches(), {"fingerprint": fingerprint})
    assert shard is not None  # only exclusive writes give None
    return shard


def spool_queries(batches: Batches, path: Path) -> tuple[TextStore, int]:
    """Stream a split's queries into a temporary store; returns it and the number of repeated rows left out.

    Raises `DataError` for an id that TREC files cannot hold or that stands for two texts.
    """
    line_numbers = LineNumbers()
    with Spool(path, QUERY_SCHEMA) as store:
        for batch in batches:
            line_numbers.add(batch, store.rows)
            check_ids(batch, "query")
            store.write_batch(
                pa.RecordBatch.from_arrays([batch.column("id"), batch.column("text")], schema=QUERY_SCHEMA)
            )
    return without_repeats(path, line_numbers, "query")


def resolve_judgements(
    batches: Batches, queries: TextStore, passages: TextStore, *, drop_unknown: bool = False
) -> tuple[pa.Table, int]:
    """Resolve judgements to row numbers (`JUDGEMENT_SCHEMA`), sorted by query and passage.

    Of repeated judgements the highest grade counts. A judgement of an unknown query or passage raises `DataError`, or
    is left out with `drop_unknown`. Returns the judgements and the number of those left out.
    """
    parts, dropped = [], 0
    for table in in_bulk(batches):
        rows = {}
        for name, store in (("query_id", queries), ("passage_id", passages)):
            rows[name] = store.rows_of(table.column(name))
            if (unknown := np.flatnonzero(rows[name] < 0)).size and not drop_unknown:
                raise unknown_id(table, int(unknown[0]), table.column(name)[int(unknown[0])].as_py(), name)
        known = (rows["query_id"] >= 0) & (rows["passage_id"] >= 0)
        dropped += int((~known).sum())
        parts.append((rows["query_id"][known], rows["passage_id"][known], table.column("grade").to_numpy()[known]))
    if not parts:
        return JUDGEMENT_SCHEMA.empty_table(), dropped
    query, passage, grade = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-grade.astype(np.int64), passage, query))
    query, passage, grade = query[order], passage[order], grade[order]
    first = np.ones(len(order), bool)
    first[1:] = (query[1:] != query[:-1]) | (passage[1:] != passage[:-1])
    if contradicting := int((~first[1:] & (grade[1:] != grade[:-1])).sum()):
        log.warning("%d judgements repeat another one with a different grade; the highest counts", contradicting)
    return judgement_table(query[first], passage[first], grade[first]), dropped


def judgement_table(query: np.ndarray, passage: np.ndarray, grade: np.ndarray) -> pa.Table:
    columns = [
        pa.array(values, field.type) for values, field in zip((query, passage, grade), JUDGEMENT_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=JUDGEMENT_SCHEMA)


def unknown_id(data: pa.RecordBatch | pa.Table, row: int, identifier: str, field: str) -> DataError:
    """The error for an id, found in `row` of what was read, that no text of the collection has."""
    kind = "query" if field.startswith("query") else "passage"
    return location_of(data, row).error(
        f"there is no {kind} with the id {identifier!r}. If the files of data.source.path belong together, set "
        "data.on_missing: drop to leave such lines out",
        field,
    )


def check_ids(batch: pa.RecordBatch, kind: str) -> None:
    """Raise `DataError` for an id with a blank or control character, or too long for a line of a TREC run."""
    ids = batch.column("id")
    bad = pc.or_(pc.match_substring_regex(ids, _BLANK), pc.greater(pc.utf8_length(ids), _ID_LIMIT))
    if not pc.any(bad).as_py():
        return
    row = pc.index(bad, True).as_py()
    value, at = ids[row].as_py(), location_of(batch, row)
    if len(value) > _ID_LIMIT:
        raise at.error(f"the {kind} id {value:.40}... has {len(value):,} characters, more than {_ID_LIMIT:,}", "id")
    raise at.error(
        f"the {kind} id {value!r} has a blank or control character, which the lines of TREC runs and judgements cannot "
        "hold; change the ids, or set data.quote_ids: true to write it as %20 and the like",
        "id",
    )


def quoted_ids(batches: Batches, columns: tuple[str, ...]) -> Batches:
    """The batches with blanks, control characters and % in these columns of ids (or lists of ids) percent-encoded."""
    for batch in batches:
        arrays = []
        for field in batch.schema:
            array = batch.column(field.name)
            if field.name in columns and pa.types.is_large_list(field.type):
                values = pa.array([quoted_id(value) for value in array.values.to_pylist()], pa.large_string())
                array = pa.LargeListArray.from_arrays(array.offsets, values)
            elif field.name in columns:
                array = pa.array([quoted_id(value) for value in array.to_pylist()], pa.large_string())
            arrays.append(array)
        yield pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def quoted_id(identifier: str) -> str:
    """An id as `data.quote_ids` stores it."""
    return _BLANK_OR_PERCENT.sub(lambda match: quote(match[0], safe=""), identifier)


def without_repeats(path: Path, line_numbers: LineNumbers, kind: str) -> tuple[TextStore, int]:
    """Open the store at `path` without the rows that repeat an earlier row; returns it and their number.

    Raises `DataError` if two rows have the same id and different texts; it names the places of both.
    """
    reader = RowReader(path)
    codes, is_first = first_of_each(reader.table().column("id"))
    repeated = np.flatnonzero(~is_first)
    if not len(repeated):
        return TextStore(reader), 0
    first = np.flatnonzero(is_first)[codes[repeated]]
    for some in slices(np.arange(len(repeated))):
        again, before = reader.take(repeated[some]), reader.take(first[some])
        if again.equals(before):
            continue
        at = next(i for i in range(len(some)) if again.slice(i, 1) != before.slice(i, 1))
        line = line_numbers.of(int(first[some[at]])).line
        earlier = f" (the other in line {line})" if line else ""
        raise line_numbers.of(int(repeated[some[at]])).error(
            f"the {kind} id {again.column('id')[at].as_py()!r} is repeated with another text{earlier}; the texts of "
            "data.source.path need ids of their own",
            "id",
        )
    distinct = path.with_name(f"distinct-{path.name}")
    with Spool(distinct, reader.schema) as store:
        for rows in slices(np.flatnonzero(is_first)):
            store.write_batch(reader.take(rows))
    return TextStore.open(distinct), len(repeated)


def empty_rows(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The places of the texts that are empty or blank, ascending: int64."""
    is_empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    return np.flatnonzero(is_empty.to_numpy(zero_copy_only=False)) if len(texts) else np.empty(0, np.int64)


def in_bulk(
    batches: Batches, rows: int = _LOOKUP_ROWS, size: Callable[[pa.RecordBatch], int] = len
) -> Iterator[pa.Table]:
    """Join batches into tables of at least `rows` rows, or of that `size` in all; the last may be smaller."""
    pending: list[pa.RecordBatch] = []
    total = 0
    for batch in batches:
        pending.append(batch)
        total += size(batch)
        if total >= rows:
            yield pa.Table.from_batches(pending)
            pending, total = [], 0
    if pending:
        yield pa.Table.from_batches(pending)


def slices(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Cut rows into pieces of at most one record batch."""
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]


def sample_below(size: int, limits: Sequence[int], seed: list[int]) -> np.ndarray:
    """Draw numbers below `size`, ascending: all of them, or as many as the smallest of the `limits` allows.

    A smaller sample is part of a larger one. The seed includes the split, so that two splits are not shuffled alike.
    """
    count = min([size, *limits])
    if count == size:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])
