"""Text stores: passages or queries in one memory-mapped Arrow file; the row number identifies the text.

The passage store begins with the searchable collection, rows [0, collection_size). The training variants follow:
passages without the words of a query generated from them, each with the row of its origin.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.store.arrow import RowReader

# 64-bit offsets throughout: 8.8 million passages exceed 2 GiB
PASSAGE_SCHEMA = pa.schema(
    [("id", pa.large_string()), ("title", pa.large_string()), ("text", pa.large_string()), ("origin", pa.int64())]
)  # origin: -1 in the collection; of a variant, the row it was cut from
QUERY_SCHEMA = pa.schema([("id", pa.large_string()), ("text", pa.large_string())])

_SCAN_BATCHES = 128  # record batches scanned at once: two million rows, 8 MiB of positions


def passage_text(title: pa.Array, text: pa.Array) -> pa.Array:
    """Return the texts that models read: title, one space, text; if one of them is empty, only the other."""
    empty = pc.or_(pc.equal(title, ""), pc.equal(text, ""))
    joined = pc.binary_join_element_wise(title, text, pa.scalar(" ", pa.large_string()))
    return pc.if_else(empty, pc.binary_join_element_wise(title, text, pa.scalar("", pa.large_string())), joined)


class TextStore:
    """Read access to a store. Opening maps the file; only requested rows are read."""

    def __init__(self, reader: RowReader):
        self._reader = reader
        self.path = reader.path
        self.is_passages = "origin" in reader.schema.names
        self.collection_size = _collection_size(reader) if self.is_passages else len(reader)

    @classmethod
    def open(cls, path: Path) -> TextStore:
        return cls(RowReader(path))

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the import that wrote the store."""
        return self._reader.metadata["fingerprint"]

    def ids(self, rows: np.ndarray) -> list[str]:
        return self._reader.take(rows, ["id"]).column(0).to_pylist()

    def texts(self, rows: np.ndarray) -> list[str]:
        """Return the texts as models read them: of a passage, title and text."""
        return self._texts(self._reader.take(rows)).to_pylist()

    def origin(self, rows: np.ndarray) -> np.ndarray:
        """Return, for passages, -1 in the collection and of a variant the row that it was cut from: int64 [n]."""
        return self._reader.take(rows, ["origin"]).column(0).to_numpy()

    def text_batches(self, stop: int | None = None) -> Iterable[list[str]]:
        """Yield all texts before row `stop`, one record batch at a time."""
        for start, batch in zip(self._reader.starts, self._reader.batches, strict=False):
            keep = batch.num_rows if stop is None else min(batch.num_rows, stop - int(start))
            if keep <= 0:
                return
            yield self._texts(batch.slice(0, keep)).to_pylist()

    def rows_of(self, ids: list[str] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Return the row of each id in the collection, -1 for an unknown id: int64 [n].

        Each call scans the id column once, with memory for the requested ids only: request them in bulk.
        """
        wanted = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids, pa.large_string())
        wanted = wanted.cast(pa.large_string())
        distinct = wanted.unique()
        rows = np.full(len(distinct), -1, dtype=np.int64)
        batches = self._reader.batches
        for i in range(0, len(batches), _SCAN_BATCHES):  # each call builds the hash table of wanted ids again
            start = int(self._reader.starts[i])
            column = pa.chunked_array([batch.column("id") for batch in batches[i : i + _SCAN_BATCHES]])
            column = column.slice(0, max(0, self.collection_size - start))
            where = pc.index_in(column, value_set=distinct).combine_chunks()  # null where not wanted
            hits = np.flatnonzero(where.is_valid().to_numpy(zero_copy_only=False))
            rows[where.take(pa.array(hits)).to_numpy()] = start + hits
        positions = pc.index_in(wanted, value_set=distinct)
        return rows[positions.to_numpy()]

    def _texts(self, batch: pa.RecordBatch) -> pa.Array:
        if not self.is_passages:
            return batch.column("text")
        return passage_text(batch.column("title"), batch.column("text"))


def _collection_size(reader: RowReader) -> int:
    """Return the number of rows before the first variant. Variants are last, so few batches are read."""
    for start, batch in zip(reader.starts[-2::-1], reader.batches[::-1], strict=True):
        origin = batch.column("origin")
        if origin[0].as_py() < 0:
            return int(start + np.searchsorted(origin.to_numpy(), 0))  # -1, ..., -1, then rows >= 0
    return 0
