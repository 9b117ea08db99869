"""Query logs: queries without judgements, from a file or among the queries of a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill import config
from distill.importing.readers import beir, ir_datasets, msmarco
from distill.importing.readers.base import Batches, Location, Unread, batches_of, lines_of, reading, text_field
from distill.importing.readers.jsonl import raw_rows
from distill.importing.readers.rows import text_id
from distill.run.files import xxh128_file

LOG = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), ("count", pa.int64()), ("line", pa.int64())])

NOTHING_MINED = (
    "the source brings its own negatives, so nothing is mined, and the queries of a log would have no candidates. "
    "Import the log in a run of its own, with the same passages, and name that run in train.datasets"
)
_QUERY = ("query", "queries", "text", "question", "q", "search_term", "keyword")
_COUNT = ("count", "counts", "frequency", "freq", "n")


def read_query_log(data: config.Data, unread: Unread) -> Batches:
    """Yield the queries of `data.query_log` as batches of `LOG`; without a file, those that the source judges nowhere.

    Adds to `unread` the columns that are not read. Raises `DataError` for a row without a query or a usable count.
    """
    log = data.query_log
    assert log is not None
    if log.path is not None:
        rows = _lines(log.path) if _is_text(log.path) else _rows(log.path, log, unread)
        yield from batches_of(rows, LOG, log.path)
        return
    for batch in _source_queries(data.source, unread):
        columns = [batch.column("id"), batch.column("text"), pa.array(np.ones(batch.num_rows, np.int64))]
        lines = batch.column("line") if "line" in batch.schema.names else pa.nulls(batch.num_rows, pa.int64())
        yield pa.RecordBatch.from_arrays([*columns, lines], schema=LOG.with_metadata(batch.schema.metadata))


def query_log_fields(data: config.Data) -> dict[str, Any]:
    """Fingerprint inputs of `data.query_log`: its options, and the content of the files that only the log is read from.

    Those that the source itself is read from are in its own fingerprint inputs.
    """
    log = data.query_log
    assert log is not None
    fields = log.model_dump(mode="json", exclude={"path"})
    if log.path is not None:
        with reading(log.path):
            fields["files"] = {log.path.name: xxh128_file(log.path)}
        return fields
    inner = data.source.collection if isinstance(data.source, config.NaverScores) else data.source
    files: list[Path] = []
    if isinstance(inner, config.Beir):
        files = beir.queries_files(inner)
    elif isinstance(inner, config.MsMarco):
        files = msmarco.log_qrels(inner)
    return fields | ({"files": {path.name: xxh128_file(path) for path in files}} if files else {})


def forget_unread(data: config.Data, unread: Unread) -> None:
    """Take the log's file out of the files of the source's folder that are not read."""
    log, source = data.query_log, data.source
    inner = source.collection if isinstance(source, config.NaverScores) else source
    if log is None or not isinstance(inner, config.Beir | config.MsMarco):
        return
    path = beir.queries_files(inner)[0] if log.path is None and isinstance(inner, config.Beir) else log.path
    if path is not None and path.resolve().is_relative_to(inner.path.resolve()):
        unread.pop(f"file {str(path.resolve().relative_to(inner.path.resolve()))!r}", None)


def _source_queries(source: config.Source, unread: Unread) -> Batches:
    """The source's queries without judgements: batches of `QUERIES`."""
    match source:
        case config.NaverScores():
            return _source_queries(source.collection, unread)
        case config.Beir():
            return beir.unjudged_queries(source, unread)
        case config.MsMarco():
            return msmarco.unjudged_queries(source)
        case config.HuggingFace():
            from distill.importing.readers import huggingface  # slow to import

            return huggingface.unjudged_queries(source)
        case config.IrDatasets():
            return ir_datasets.unjudged_queries(source)
        case _:
            raise AssertionError("the recipe allows query_log without a path for collections only")


def _is_text(path: Path) -> bool:
    return ".txt" in path.suffixes


def _lines(path: Path) -> Iterator[tuple]:
    """One query per line. An empty line is an empty query."""
    for line, text in lines_of(path, blank=True):
        yield _id(text), text, 1, line


def _rows(path: Path, log: config.QueryLog, unread: Unread) -> Iterator[tuple]:
    """One query per row, in a column that each row has."""
    for line, row in raw_rows(path):
        at = Location(path, line)
        column = _column(row, log.column, _QUERY)
        if column is None:
            wanted = repr(log.column) if log.column else "a query"
            raise at.error(
                f"no column with {wanted} (the row has {', '.join(repr(name)[:60] for name in row)}); name it in "
                "data.query_log.column, add a header line if the file has none, or name a file of one query per line "
                ".txt",
                log.column or _QUERY[0],
            )
        count_column = _column(row, log.count_column, _COUNT)
        if count_column is None and log.count_column is not None:
            raise at.error("missing", log.count_column)
        for name, value in row.items():
            if name not in (column, count_column, "") and value not in (None, "", [], {}):
                unread.add("column of the query log", name)
        text = text_field(row, column, at, "")
        yield _id(text), text, 1 if count_column is None else _count(row[count_column], at, count_column), line


def _column(row: dict[str, Any], named: str | None, usual: tuple[str, ...]) -> str | None:
    """The column of this name or, without one, the first of the usual names, in any case of letters."""
    if named is not None:
        return named if named in row else None
    names = {name.casefold(): name for name in reversed(list(row))}
    return next((names[name] for name in usual if name in names), None)


def _count(value: Any, at: Location, column: str) -> int:
    """A number of times from 1: an integer, or a text or a float that states one."""
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer() or not 1 <= number < 2**53:
        raise at.error(f"expected how often the query was asked, a whole number from 1, found {value!r:.80}", column)
    return int(number)


def _id(text: str) -> str:
    return f"log-{text_id(text)}"
