"""Relevance judgements in the two usual forms: TREC's four columns, or BEIR's three with a header line.

Columns are separated by tabs, or by blanks in a line without tabs; in a .csv file as in any CSV.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from distill.errors import DataError
from distill.importing.readers.base import (
    JUDGEMENTS,
    Batches,
    Location,
    batches_of,
    find_file,
    lines_of,
    number,
    trec_columns,
)
from distill.importing.readers.tables import cells_of, dialect_of, is_table

_ENDINGS = (".tsv", ".csv", ".txt", ".trec", ".qrels")
_GRADE_LIMIT = 2**31
# names of the query, document and grade columns, reduced to lower-case letters
QUERY_NAMES = {"query", "queryid", "qid", "topic", "topicid"}
DOCUMENT_NAMES = {
    *("corpusid", "corpus", "document", "documentid", "doc", "docid", "docno", "did", "passage", "passageid", "pid")
}
_GRADE_NAMES = {"score", "grade", "rel", "relevance", "label", "rating", "judgment", "judgement", "qrel"}
_HEADERS = (QUERY_NAMES, DOCUMENT_NAMES, _GRADE_NAMES)


def read_qrels(path: Path) -> Batches:
    """Read a file of judgements: `query-id, corpus-id, score` or TREC's `query, 0, document, grade`.

    Raises `DataError` for a line that is neither, and for a file without judgements.
    """
    return batches_of(_rows(Path(path)), JUDGEMENTS, path)


def find_qrels(folder: Path, name: str) -> Path | None:
    """Return the file of judgements with this name and a usual ending, plain or gzipped; None without any."""
    return find_file(folder, *(f"{name}{ending}" for ending in _ENDINGS))


def judged_ids(paths: Iterable[Path]) -> pa.Array:
    """The distinct ids of the queries that these files judge."""
    ids = [batch.column("query_id").unique() for path in paths for batch in read_qrels(path)]
    return pa.chunked_array(ids, pa.large_string()).unique()


def qrels_files(folder: Path, names: str = "*") -> list[Path]:
    """List the files of judgements in a folder, by their names and endings, plain or gzipped."""
    return [
        path
        for path in sorted(folder.glob(names))
        if path.is_file() and not path.name.startswith(".") and path.name.removesuffix(".gz").endswith(_ENDINGS)
    ]


def judged_queries(path: Path) -> Iterator[str]:
    """Yield the query id of each line."""
    for number_, (_, parts) in enumerate(_lines(path)):
        if number_ or not is_header(parts):
            yield parts[0]


def is_header(parts: list[str]) -> bool:
    """Whether the columns of a file's first line are names."""
    names = [re.sub("[^a-z]", "", part.lower()) for part in parts]
    if len(names) == 4:
        del names[1]  # TREC's second column has no meaning
    return len(names) == 3 and all(name in known for name, known in zip(names, _HEADERS, strict=True))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    if is_table(path) and dialect_of(path).quoted:
        for line, cells in cells_of(path):
            yield line, [cell.strip() for cell in cells]
    else:
        for line, content in lines_of(path):
            yield line, trec_columns(content)


def _rows(path: Path) -> Iterator[tuple[str, str, int, int]]:
    is_first, has_rows = True, False
    for line, parts in _lines(path):
        was_first, is_first = is_first, False
        if was_first and is_header(parts):
            continue
        at, has_rows = Location(path, line), True
        if len(parts) == 3:
            query, passage, grade = parts
        elif len(parts) == 4:
            query, _, passage, grade = parts
        else:
            raise at.error(f"expected 3 columns (BEIR) or 4 (TREC), found {len(parts)}")
        try:
            value = number(grade, at, "score")  # some exports write grades as 1.0
        except DataError:
            value = math.nan
        if not value.is_integer() or abs(value) >= _GRADE_LIMIT:
            hint = " (nor is this a header line like query-id, corpus-id, score)" if was_first else ""
            raise at.error(f"expected a whole number, found {grade!r}{hint}", "score")
        if not query or not passage:
            raise at.error("empty id", "corpus-id" if query else "query-id")
        yield query, passage, int(value), line
    if not has_rows:
        raise DataError(
            "there are no judgements in this file; take it away, or leave its split out of data.source.splits",
            path=path,
        )
