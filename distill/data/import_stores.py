"""The import's stores: passages, queries and judgements of a source, checked and turned into row numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill import config
from distill.data.arrow import BATCH_ROWS, RowReader, write_ipc
from distill.data.judgements import JUDGEMENT_SCHEMA
from distill.data.manifest import Shard
from distill.data.querygen import generate, is_dev
from distill.data.readers.base import Batches
from distill.data.spool import Spool
from distill.data.texts import PASSAGE_SCHEMA, QUERY_SCHEMA, TextStore, passage_text
from distill.errors import DataError
from distill.progress import progress

_LOOKUP_ROWS = 1 << 20  # ids looked up at once: each look-up scans the store's ids

# a generated query with the variant of its passage; row i is known by its number until it gets its place
_GENERATED = pa.schema(
    [*((f"query_{name}", pa.large_string()) for name in ("id", "text")), *PASSAGE_SCHEMA, pa.field("dev", pa.bool_())]
)


class Places:
    """The file and line of each row of a stream, kept as the starts of runs of consecutive lines."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._rows: list[np.ndarray] = []
        self._lines: list[np.ndarray] = []

    def add(self, batch: pa.RecordBatch, first_row: int) -> None:
        self._path = batch_path(batch)
        if "line" in batch.schema.names and batch.num_rows and not batch.column("line").null_count:
            lines = batch.column("line").to_numpy()
            starts = np.flatnonzero(np.diff(lines, prepend=lines[0] - 2) != 1)
            self._rows.append(first_row + starts)
            self._lines.append(lines[starts])

    def of(self, row: int) -> dict[str, Any]:
        """`path` and `line` of a row, for a `DataError`; None where the source knows no lines."""
        if not self._rows:
            return {"path": self._path, "line": None}
        rows, lines = np.concatenate(self._rows), np.concatenate(self._lines)
        run = int(np.searchsorted(rows, row, side="right")) - 1
        return {"path": self._path, "line": int(lines[run] + row - rows[run])}


def batch_path(batch: pa.RecordBatch) -> str | None:
    return (batch.schema.metadata or {}).get(b"path", b"").decode() or None


@dataclass(frozen=True)
class Passages:
    """The collection in a temporary store, and the queries generated from it with their passage variants."""

    store: TextStore
    generated: RowReader | None  # of `_GENERATED`
    empty: int


def spool_passages(batches: Batches, options: config.GenerateQueries | None, seed: int, spool: Path) -> Passages:
    """Stream the passages into a temporary store, making queries on the way; refuses repeated ids."""
    path, generated = spool / "passages.arrow", None
    empty, places = 0, Places()
    with (
        progress("import passages", None, "passages") as advance,
        Spool(path, PASSAGE_SCHEMA) as store,
        Spool(spool / "generated.arrow", _GENERATED) as made,
    ):
        for batch in batches:
            places.add(batch, store.rows)
            first = store.rows
            columns = [batch.column(name) for name in ("id", "title", "text")]
            store.write_batch(
                pa.RecordBatch.from_arrays(
                    [*columns, pa.array(np.full(batch.num_rows, -1, np.int64))], schema=PASSAGE_SCHEMA
                )
            )
            empty += count_empty(passage_text(*columns[1:]))
            if options is not None:
                made.write(list(_generate(columns, first, options, seed)))
            advance(batch.num_rows)
    opened = TextStore.open(path)
    if not len(opened):
        raise DataError("there are no passages", field="data.source")
    refuse_repeated_ids(opened, places, "passage")
    if options is not None:
        generated = RowReader(spool / "generated.arrow")
    return Passages(opened, generated, empty)


def _generate(columns: list[pa.Array], first: int, options: config.GenerateQueries, seed: int) -> Iterator[tuple]:
    for row, (identifier, title, text) in enumerate(zip(*(c.to_pylist() for c in columns), strict=True), start=first):
        dev = is_dev(identifier, options.dev_share, seed)
        for made in generate(identifier, title, text, options, seed):
            name = f"{identifier}#{made.suffix}"
            yield name, made.query, name, made.title, made.text, row, dev


def write_passages(passages: Passages, kept: np.ndarray, path: Path, fingerprint: str) -> Shard:
    """The final store: the collection, then the variants of the generated queries in `kept` (ascending)."""

    def batches() -> Batches:
        yield from RowReader(passages.store.path).batches
        for rows in slices(kept):
            yield passages.generated.take(rows, PASSAGE_SCHEMA.names)

    return write_ipc(path, PASSAGE_SCHEMA, batches(), {"fingerprint": fingerprint})


def spool_queries(batches: Batches, path: Path) -> TextStore:
    """Stream a split's queries into a temporary store; refuses repeated ids."""
    places = Places()
    with Spool(path, QUERY_SCHEMA) as store:
        for batch in batches:
            places.add(batch, store.rows)
            store.write_batch(
                pa.RecordBatch.from_arrays([batch.column("id"), batch.column("text")], schema=QUERY_SCHEMA)
            )
    opened = TextStore.open(path)
    refuse_repeated_ids(opened, places, "query")
    return opened


def resolve_judgements(batches: Batches, queries: TextStore, passages: TextStore) -> pa.Table:
    """Judgements in row numbers (`JUDGEMENT_SCHEMA`), by query and passage, once each with its highest grade.

    Refuses a judgement whose query or passage isn't there.
    """
    parts = []
    for table in in_bulk(batches):
        rows = {}
        for name, store in (("query_id", queries), ("passage_id", passages)):
            rows[name] = store.rows_of(table.column(name))
            refuse_unknown(table, rows[name], table.column(name), name)
        parts.append((rows["query_id"], rows["passage_id"], table.column("grade").to_numpy()))
    if not parts:
        return JUDGEMENT_SCHEMA.empty_table()
    query, passage, grade = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-grade.astype(np.int64), passage, query))
    query, passage, grade = query[order], passage[order], grade[order]
    first = np.ones(len(order), bool)
    first[1:] = (query[1:] != query[:-1]) | (passage[1:] != passage[:-1])
    return judgement_table(query[first], passage[first], grade[first])


def judgement_table(query: np.ndarray, passage: np.ndarray, grade: np.ndarray) -> pa.Table:
    columns = [
        pa.array(values, field.type) for values, field in zip((query, passage, grade), JUDGEMENT_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=JUDGEMENT_SCHEMA)


def refuse_unknown(table: pa.Table, rows: np.ndarray, ids: pa.Array | pa.ChunkedArray, name: str) -> None:
    """Raise `DataError` for the first id without a row."""
    missing = np.flatnonzero(rows < 0)
    if missing.size:
        where = int(missing[0])
        line = table.column("line")[where].as_py() if "line" in table.column_names else None
        path = (table.schema.metadata or {}).get(b"path", b"").decode() or None
        kind = "query" if name.startswith("query") else "passage"
        raise DataError(f"there is no {kind} with the id {ids[where].as_py()!r}", path=path, line=line, field=name)


def refuse_repeated_ids(store: TextStore, places: Places, kind: str) -> None:
    """Raise `DataError`, with the place of the second one, where two rows have the same id."""
    ids = RowReader(store.path).table().column("id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    counts = pc.value_counts(ids)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
    first = pc.index(ids, pa.scalar(repeated, ids.type)).as_py()
    second = first + 1 + pc.index(ids.slice(first + 1), pa.scalar(repeated, ids.type)).as_py()
    line = places.of(first)["line"]
    raise DataError(
        f"the {kind} id {repeated!r} is there twice" + (f" (first in line {line})" if line else ""),
        **places.of(second),
        field="id",
    )


def count_empty(texts: pa.Array | pa.ChunkedArray) -> int:
    """Texts of nothing but blanks."""
    return pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)).as_py() or 0


def in_bulk(batches: Batches, rows: int = _LOOKUP_ROWS) -> Iterator[pa.Table]:
    """Batches joined into tables of at least so many rows (but the last)."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(piece.num_rows for piece in pending) >= rows:
            yield pa.Table.from_batches(pending)
            pending = []
    if pending:
        yield pa.Table.from_batches(pending)


def slices(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in pieces of one record batch."""
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]
