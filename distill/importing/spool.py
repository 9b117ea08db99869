"""Temporary Arrow files that grow batch by batch: the results of one pass over a source, for the next pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from distill.run.files import storage_errors
from distill.store.arrow import BATCH_ROWS


class Spool:
    """A context manager that writes one file; `RowReader` can open it afterwards. A full disk is a `StorageError`."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.schema = path, schema
        self.rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0

    def __enter__(self) -> Spool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with storage_errors(self.path):
            self._sink = pa.OSFile(str(self.path), "wb")
            self._writer = pa.ipc.new_file(self._sink, self.schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with storage_errors(self.path), self._sink:
            if kind is None:
                self._flush()
            self._writer.close()

    def write(self, rows: Sequence[tuple]) -> None:
        """Append rows: tuples in the order of the schema's columns."""
        if rows:
            self.write_batch(record_batch(rows, self.schema))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Append a batch. Small batches are joined: the file consists of batches of at least `BATCH_ROWS` rows."""
        self._pending.append(batch.select(self.schema.names).replace_schema_metadata(self.schema.metadata))
        self._pending_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._pending_rows >= BATCH_ROWS:
            with storage_errors(self.path):
                self._flush()

    def _flush(self) -> None:
        if self._pending_rows:
            table = pa.Table.from_batches(self._pending, self.schema).combine_chunks()
            for batch in table.to_batches():
                self._writer.write_batch(batch)
        self._pending, self._pending_rows = [], 0


def record_batch(rows: Sequence[tuple], schema: pa.Schema) -> pa.RecordBatch:
    """Make a record batch of at least one row, tuples in the order of the schema's columns."""
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
