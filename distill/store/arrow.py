"""Arrow IPC files: written atomically from a stream of batches, memory-mapped, with random access to rows.

`RowReader.take` resolves rows to batches itself: `pyarrow.Table.take` concatenates all chunks of a column first, which
loads the whole file for a corpus of 8.8 million passages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.errors import StorageError
from distill.run.files import commit_exclusive, storage_errors, sync, temporary_beside, write_atomic, xxh128_file
from distill.run.manifest import Shard

BATCH_ROWS = 16_384  # rows per record batch in stores


def write_ipc(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    metadata: dict[str, str] | None = None,
    exclusive: bool = False,
) -> Shard | None:
    """Write batches to one file atomically; returns its name, number of rows, size and checksum.

    `metadata` goes into the schema, with the number of rows if `batches` is a list. With `exclusive` the first writer
    of a name wins: a later one drops its copy and gets None. Raises `StorageError` if the disk is full.
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
    """A memory-mapped Arrow file with rows addressed by number. Opening reads the footer and batch headers only.

    Raises `StorageError` if the file is missing or not a complete Arrow file.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except FileNotFoundError:
            raise StorageError(f"{self.path}: missing; run the stage that writes it") from None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{self.path}: damaged, not a complete Arrow file: {error}") from None
        self.schema = reader.schema
        metadata = self.schema.metadata or {}
        self.metadata = {key.decode(errors="replace"): metadata[key].decode(errors="replace") for key in metadata}
        # starts[i] is the first row of batch i; the last entry is the number of rows
        self.starts = np.cumsum([0] + [batch.num_rows for batch in self.batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def table(self) -> pa.Table:
        """Return all rows as a table over the mapped memory, without copying."""
        return pa.Table.from_batches(self.batches, self.schema)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the batch number and the row within that batch of each row. Raises `IndexError` for a missing row."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"{self.path}: rows {rows.min()}..{rows.max()} requested of {len(self)} rows")
        batch = np.searchsorted(self.starts, rows, side="right") - 1
        return batch, rows - self.starts[batch]

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """Copy rows, in the given order and with repeats, into one record batch."""
        names = list(columns) if columns is not None else self.schema.names
        batch, local = self.locate(rows)
        if not batch.size:
            fields = [self.schema.field(name) for name in names]
            return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in fields], schema=pa.schema(fields))
        order = np.argsort(batch, kind="stable")
        used, first = np.unique(batch[order], return_index=True)
        pieces = [
            self.batches[b].select(names).take(pa.array(local[group]))
            for b, group in zip(used, np.split(order, first[1:]), strict=True)
        ]
        if len(pieces) == 1 and np.array_equal(order, np.arange(order.size)):
            return pieces[0]
        inverse = np.empty_like(order)
        inverse[order] = np.arange(order.size)
        return pa.Table.from_batches(pieces).combine_chunks().to_batches()[0].take(pa.array(inverse))


def first_of_each(values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Number equal values by first appearance: int64 [n], and bool [n] whether a value is the first of its kind."""
    encoded = pc.dictionary_encode(values)
    codes = np.concatenate([np.empty(0, np.int64), *(chunk.indices.to_numpy() for chunk in encoded.chunks)])
    # a row is new if its number exceeds all earlier ones
    return codes, np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
