"""Relevance judgements in the two usual forms: TREC's four columns, BEIR's three with a header line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from distill.data.readers.base import JUDGEMENTS, Batches, batches_of, lines_of
from distill.errors import DataError

_GRADE_LIMIT = 2**31


def read_qrels(path: Path) -> Batches:
    """Judgements of a file: `query-id, corpus-id, score` by tabs, or TREC's `query, 0, document, grade` by blanks."""
    return batches_of(_rows(Path(path)), JUDGEMENTS, path)


def _rows(path: Path) -> Iterator[tuple[str, str, int, int]]:
    header_allowed = True
    for number, line in lines_of(path):
        parts = line.split("\t") if "\t" in line else line.split()
        parts = [part.strip() for part in parts]
        if len(parts) == 3:
            query, passage, grade = parts
        elif len(parts) == 4:
            query, _, passage, grade = parts
        else:
            raise DataError(f"expected 3 columns (BEIR) or 4 (TREC), found {len(parts)}", path=path, line=number)
        try:
            value = float(grade)  # some exports write grades as 1.0
        except ValueError:
            if header_allowed:
                header_allowed = False
                continue
            value = math.nan
        if not value.is_integer() or abs(value) >= _GRADE_LIMIT:
            raise DataError(f"expected a whole number, found {grade!r}", path=path, line=number, field="score")
        header_allowed = False
        if not query or not passage:
            raise DataError("empty id", path=path, line=number, field="corpus-id" if query else "query-id")
        yield query, passage, int(value), number
