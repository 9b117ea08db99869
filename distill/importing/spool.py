"""Temporary Arrow files that grow batch by batch: for what is found in one pass and needed in the next."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from distill.data.arrow import BATCH_ROWS
from distill.data.files import storage_errors


class Spool:
    """A context manager with `write(rows)`; after it the file can be opened with `RowReader`. A full disk raises."""

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

    def __exit__(self, kind, error, traceback) -> None:
        with storage_errors(self.path), self._sink:
            if kind is None:
                self._flush()
            self._writer.close()

    def write(self, rows: list[tuple]) -> None:
        """Rows as tuples, in the schema's order of columns."""
        if rows:
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), self.schema, strict=True)
            ]
            self.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Small batches are gathered, so that the file is made of batches of at least `BATCH_ROWS` rows."""
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
