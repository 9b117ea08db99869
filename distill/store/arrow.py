"""Arrow IPC files: written whole in a stream of batches, opened by memory mapping, rows taken without loading.

`RowReader.take` resolves rows to batches itself: `pyarrow.Table.take` concatenates all chunks of a column first,
which for a corpus of 8.8 million passages is the whole file in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.data.files import commit_exclusive, storage_errors, sync, temporary_beside, write_atomic, xxh128_file
from distill.data.manifest import Shard
from distill.errors import StorageError

BATCH_ROWS = 16_384  # rows per record batch in stores


def write_ipc(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    metadata: dict[str, str] | None = None,
    exclusive: bool = False,
) -> Shard | None:
    """Write batches to one file that appears whole or not at all; returns its name, rows, bytes and checksum.

    `metadata` goes into the schema, with the row count where `batches` is a list. With `exclusive`, the first writer
    of a name wins: a later one drops its copy and gets None. A full disk raises `StorageError`.
    """
    path = Path(path)
    entries = dict(metadata or {})
    if isinstance(batches, Sequence):
        entries["rows"] = str(sum(batch.num_rows for batch in batches))
    schema = schema.with_metadata({key: entries[key] for key in sorted(entries)})
    with temporary_beside(path) if exclusive else write_atomic(path) as temporary:
        rows = 0
        with storage_errors(path), pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
                rows += batch.num_rows
        sync(temporary)
        shard = Shard(path.name, rows, temporary.stat().st_size, xxh128_file(temporary))
        if exclusive and not commit_exclusive(temporary, path):
            return None
    return shard


class RowReader:
    """A memory-mapped Arrow file whose rows are addressed by number. Opening reads the footer and batch headers.

    Raises `StorageError` where the file is missing or not a whole Arrow file.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except FileNotFoundError:
            raise StorageError(f"{self.path}: missing; run the stage that writes it") from None
        except (pa.ArrowInvalid, pa.ArrowSerializationError, OSError) as error:
            raise StorageError(f"{self.path}: damaged, not a whole Arrow file: {error}") from None
        self.schema = reader.schema
        self.metadata = {k.decode(): v.decode() for k, v in (self.schema.metadata or {}).items()}
        # starts[i] is the first row of batch i; the last entry is the number of rows
        self.starts = np.cumsum([0] + [batch.num_rows for batch in self.batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def table(self) -> pa.Table:
        """All rows as a table over the mapped memory: nothing is copied."""
        return pa.Table.from_batches(self.batches, self.schema)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batch number and row inside that batch, for each row; `IndexError` for a row that isn't there."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"{self.path}: rows {rows.min()}..{rows.max()} asked for, there are {len(self)}")
        batch = np.searchsorted(self.starts, rows, side="right") - 1
        return batch, rows - self.starts[batch]

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """The given rows, in the given order (repeats allowed), copied into one record batch."""
        names = list(columns) if columns is not None else self.schema.names
        batch, local = self.locate(rows)
        if not batch.size:
            fields = [self.schema.field(name) for name in names]
            return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in fields], schema=pa.schema(fields))
        order = np.argsort(batch, kind="stable")
        touched, first = np.unique(batch[order], return_index=True)
        pieces = [
            self.batches[b].select(names).take(pa.array(local[group]))
            for b, group in zip(touched, np.split(order, first[1:]), strict=True)
        ]
        if len(pieces) == 1 and np.array_equal(order, np.arange(order.size)):
            return pieces[0]
        inverse = np.empty_like(order)
        inverse[order] = np.arange(order.size)
        return pa.Table.from_batches(pieces).combine_chunks().to_batches()[0].take(pa.array(inverse))
