"""Rows of texts in one file: JSONL, or CSV/TSV with a header line, plain or gzipped; or Parquet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill import config
from distill.importing.readers.base import Collection, Location, json_lines, reading
from distill.importing.readers.filetype import HEAD_BYTES, refuse_other_types
from distill.importing.readers.layouts import Row, RowParser
from distill.importing.readers.rows import collection_from_rows
from distill.importing.readers.tables import is_table, refuse_repeated, table_rows

_PARQUET_ROWS = 512  # read at once; each may hold a hundred passages

RawRows = Iterator[tuple[int, dict[str, Any]]]  # (line or row number from 1, fields)


def read_jsonl(source: config.Jsonl, seed: int, spool: Path) -> Collection:
    parser = RowParser(source.layout, source.columns, source.path, first_is_positive=source.first_is_positive)
    return collection_from_rows(parse_all(parser, raw_rows(source.path)), parser, source, spool, seed)


def parse_all(parser: RowParser, rows: RawRows) -> Iterator[tuple[int, Row]]:
    """Yield (line, parsed row) of all rows that have a query and a passage."""
    for line, fields in rows:
        if (row := parser.parse(fields, line)) is not None:
            yield line, row
    parser.finish()


def raw_rows(path: Path) -> RawRows:
    """Yield a file's rows. Its name tells the format: .parquet, .csv, .tsv, else JSONL; all but the first also .gz."""
    if ".parquet" in Path(path).suffixes:
        return _parquet_rows(path)
    return table_rows(path) if is_table(path) else json_lines(path)


@contextlib.contextmanager
def parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raises `DataError` for a damaged one, another type, and two columns of one name."""
    with reading(path):
        try:
            with pq.ParquetFile(path) as file:
                refuse_repeated(file.schema_arrow.names, Location(path))
                yield file
        except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the file system's; Arrow's have no number
                raise
            with open(path, "rb") as file:
                head = file.read(HEAD_BYTES)
            if not head.startswith(b"PAR1"):
                refuse_other_types(path, head)
            raise Location(path).error(f"damaged, not a whole Parquet file: {error}") from None


def _parquet_rows(path: Path) -> RawRows:
    with parquet_file(path) as file:
        rows = (row for batch in file.iter_batches(_PARQUET_ROWS) for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
