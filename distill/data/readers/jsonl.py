"""Rows of texts in one file: JSONL, or CSV/TSV with a header line, plain or gzipped; or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill import config
from distill.data.readers.base import Collection, json_lines, lines_of, reading
from distill.data.readers.rows import Row, collection_from_rows, row_parser
from distill.errors import DataError

_PARQUET_ROWS = 512  # read at once; each may bring a hundred passages

csv.field_size_limit(1 << 30)  # the default refuses passages of more than 128 KiB


def read_jsonl(source: config.Jsonl, seed: int, spool: Path) -> Collection:
    return collection_from_rows(_parsed(source), source.path, spool, seed, source.dev_queries, source.test_queries)


def raw_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of a file, told apart by its name: .parquet, .csv, .tsv, else JSONL; .gz after the last three."""
    suffixes = Path(path).suffixes
    if ".parquet" in suffixes:
        return _parquet(path)
    if ".csv" in suffixes:
        return _separated(path, ",")
    if ".tsv" in suffixes:
        return _separated(path, "\t")
    return json_lines(path)


def _parsed(source: config.Jsonl) -> Iterator[tuple[int, Row]]:
    parse = None
    for line, row in raw_rows(source.path):
        if parse is None:
            parse = row_parser(source.layout, source.columns, row, source.path)
        yield line, parse(row, line)
    if parse is None:
        raise DataError("the file has no rows", path=source.path)


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row)."""
    with reading(path):
        try:
            with pq.ParquetFile(path) as file:
                _refuse_repeated(file.schema_arrow.names, path)
                rows = (row for batch in file.iter_batches(_PARQUET_ROWS) for row in batch.to_pylist())
                yield from enumerate(rows, start=1)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the file system; Arrow's own has no number
                raise
            raise DataError(f"damaged, not a whole Parquet file: {error}", path=path) from None


def _refuse_repeated(names: list[str], path: Path, line: int | None = None) -> None:
    """Of two columns with one name a row would keep one; columns without a name are not read at all."""
    if repeated := [name for i, name in enumerate(names) if name and name in names[:i]]:
        raise DataError(
            f"the column {repeated[0]!r} is there twice; give each a name of its own (several negatives: "
            "negative_1, negative_2)",
            path=path,
            line=line,
        )


def _separated(path: Path, separator: str) -> Iterator[tuple[int, dict[str, Any]]]:
    last = 0

    def lines() -> Iterator[str]:
        nonlocal last
        for number, line in lines_of(path, blank=True):  # a quoted text may hold some
            last = number
            yield line + "\n"

    quoting = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE  # TSV dumps hold bare quotes
    reader = csv.reader(lines(), delimiter=separator, quoting=quoting, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _refuse_repeated(header, path, last)
                continue
            if len(cells) != len(header):
                raise DataError(f"{len(cells)} columns, the header line has {len(header)}", path=path, line=last)
            # a row with fewer negatives than others leaves the last columns empty
            yield (
                last,
                {
                    name: cell if cell or not name.startswith("negative_") else None
                    for name, cell in zip(header, cells, strict=True)
                },
            )
    except csv.Error as error:
        raise DataError(f"not valid {'CSV' if separator == ',' else 'TSV'}: {error}", path=path, line=last) from None
