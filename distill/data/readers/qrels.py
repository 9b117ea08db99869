"""Relevance judgements in the two usual forms: TREC's four columns, BEIR's three with a header line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from distill.data.readers.base import JUDGEMENTS, Batches, batches_of, lines_of
from distill.errors import DataError

_GRADE_LIMIT = 2**31
_HEADERS = (  # what the columns are called, in small letters alone: query-id, corpus-id, score in BEIR
    {"query", "queryid", "qid", "topic", "topicid"},
    {"corpusid", "corpus", "document", "documentid", "doc", "docid", "docno", "did", "passage", "passageid", "pid"},
    {"score", "grade", "rel", "relevance", "label", "rating", "judgment", "judgement", "qrel"},
)


def read_qrels(path: Path) -> Batches:
    """Judgements of a file: `query-id, corpus-id, score` by tabs, or TREC's `query, 0, document, grade` by blanks."""
    return batches_of(_rows(Path(path)), JUDGEMENTS, path)


def is_header(line: str) -> bool:
    """Whether a file's first line names its columns."""
    parts = [re.sub("[^a-z]", "", part.lower()) for part in _parts(line)]
    named = parts if len(parts) == 3 else [*parts[:1], *parts[2:]]  # TREC's second column means nothing
    return len(named) == 3 and all(part in names for part, names in zip(named, _HEADERS, strict=True))


def _parts(line: str) -> list[str]:
    return [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]


def _rows(path: Path) -> Iterator[tuple[str, str, int, int]]:
    first = True
    for number, line in lines_of(path):
        was_first, first = first, False
        if was_first and is_header(line):
            continue
        parts = _parts(line)
        if len(parts) == 3:
            query, passage, grade = parts
        elif len(parts) == 4:
            query, _, passage, grade = parts
        else:
            raise DataError(f"expected 3 columns (BEIR) or 4 (TREC), found {len(parts)}", path=path, line=number)
        try:
            value = float(grade)  # some exports write grades as 1.0
        except ValueError:
            value = math.nan
        if not value.is_integer() or abs(value) >= _GRADE_LIMIT:
            hint = " (nor is this a header line like query-id, corpus-id, score)" if was_first else ""
            raise DataError(f"expected a whole number, found {grade!r}{hint}", path=path, line=number, field="score")
        if not query or not passage:
            raise DataError("empty id", path=path, line=number, field="corpus-id" if query else "query-id")
        yield query, passage, int(value), number
