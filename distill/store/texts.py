"""Text stores: passages or queries in one memory-mapped Arrow file; the row number is the text's identity.

The passage store holds the searchable collection first, rows [0, collection_size), and after it the training
variants: passages from which a generated query's own words were cut, each with the row of its origin.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.data.arrow import RowReader

# 64-bit offsets throughout: 8.8 million passages pass 2 GiB
PASSAGE_SCHEMA = pa.schema(
    [("id", pa.large_string()), ("title", pa.large_string()), ("text", pa.large_string()), ("origin", pa.int64())]
)  # origin: -1 in the collection, else the row it was cut from
QUERY_SCHEMA = pa.schema([("id", pa.large_string()), ("text", pa.large_string())])

_SCAN_BATCHES = 128  # record batches looked through at once: two million rows, 8 MiB of positions


def passage_text(title: pa.Array, text: pa.Array) -> pa.Array:
    """What a model reads of a passage: title, one space, text; the one that is there where the other is empty."""
    empty = pc.or_(pc.equal(title, ""), pc.equal(text, ""))
    joined = pc.binary_join_element_wise(title, text, pa.scalar(" ", pa.large_string()))
    return pc.if_else(empty, pc.binary_join_element_wise(title, text, pa.scalar("", pa.large_string())), joined)


class TextStore:
    """Read access to a store. Opening maps the file; only the rows that are asked for are read."""

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
        """Of the import that wrote the store."""
        return self._reader.metadata["fingerprint"]

    def ids(self, rows: np.ndarray) -> list[str]:
        return self._reader.take(rows, ["id"]).column(0).to_pylist()

    def texts(self, rows: np.ndarray) -> list[str]:
        """Texts as models read them: for a passage, its title and its text."""
        return self._texts(self._reader.take(rows)).to_pylist()

    def origin(self, rows: np.ndarray) -> np.ndarray:
        """Passages only: int64 per row; -1 for the collection, else the collection row that a variant was cut from."""
        return self._reader.take(rows, ["origin"]).column(0).to_numpy()

    def text_batches(self, stop: int | None = None) -> Iterable[list[str]]:
        """All texts in row order, a record batch at a time, up to row `stop`."""
        for start, batch in zip(self._reader.starts, self._reader.batches, strict=False):
            keep = batch.num_rows if stop is None else min(batch.num_rows, stop - int(start))
            if keep <= 0:
                return
            yield self._texts(batch.slice(0, keep)).to_pylist()

    def rows_of(self, ids: list[str] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Row of each id in the collection, -1 where there is none; int64.

        Scans the id column once per call, with memory for the ids asked about, not for the store's: ask in bulk.
        """
        wanted = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids, pa.large_string())
        wanted = wanted.cast(pa.large_string())
        distinct = wanted.unique()
        found = np.full(len(distinct), -1, dtype=np.int64)
        batches = self._reader.batches
        for i in range(0, len(batches), _SCAN_BATCHES):  # each call builds the table of wanted ids anew
            start = int(self._reader.starts[i])
            column = pa.chunked_array([batch.column("id") for batch in batches[i : i + _SCAN_BATCHES]])
            column = column.slice(0, max(0, self.collection_size - start))
            where = pc.index_in(column, value_set=distinct).combine_chunks()  # null where not wanted
            hits = np.flatnonzero(where.is_valid().to_numpy(zero_copy_only=False))
            found[where.take(pa.array(hits)).to_numpy()] = start + hits
        positions = pc.index_in(wanted, value_set=distinct)
        return found[positions.to_numpy()]

    def _texts(self, batch: pa.RecordBatch) -> pa.Array:
        if not self.is_passages:
            return batch.column("text")
        return passage_text(batch.column("title"), batch.column("text"))


def _collection_size(reader: RowReader) -> int:
    """Rows before the first variant, looking at one batch only: variants stand after the whole collection."""
    for start, batch in zip(reader.starts[-2::-1], reader.batches[::-1], strict=True):
        origin = batch.column("origin")
        if origin[0].as_py() < 0:
            return int(start + np.searchsorted(origin.to_numpy(), 0))  # -1, ..., -1, then rows >= 0
    return 0
