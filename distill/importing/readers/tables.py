"""CSV and TSV files: cells of each line, in the dialect that the file has."""

from __future__ import annotations

import csv
import functools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from distill.errors import DataError
from distill.importing.readers.base import Location, lines_of, reading

log = logging.getLogger(__name__)

_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_NEEDS_QUOTES = re.compile(r'^".*(?:""|[,;\t]).*"$')  # a text that a program quotes although it quotes few

csv.field_size_limit(1 << 30)  # the default refuses passages of more than 128 KiB


@dataclass(frozen=True)
class Dialect:
    """How cells are separated, and whether quotes around a cell are part of its text."""

    separator: str
    quoted: bool
    reason: str = field(default="", compare=False)  # of a file that could be read in two ways

    def __str__(self) -> str:
        quotes = "quotation marks around a cell are not part of its text"
        if not self.quoted:
            quotes = "quotation marks are part of the texts"
        return f"cells are separated by {_MARKS[self.separator]}; {quotes}{self.reason and f' ({self.reason})'}"


def is_table(path: Path) -> bool:
    """Whether a file is CSV or TSV by its name, plain or gzipped."""
    return bool({".csv", ".tsv"} & set(Path(path).suffixes))


def dialect_of(path: Path) -> Dialect:
    """Decide by the whole file how its cells are separated and quoted.

    CSV: commas, semicolons, tabs or bars, whichever the first line has; quotes are never part of a text. TSV dumps hold
    bare quotes, so there they are, unless the file is what a program with quoting writes (`_tsv_dialect`).
    """
    with reading(path):
        status = Path(path).stat()
    return _dialect_of(Path(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _dialect_of(path: Path, size: int, modified: int) -> Dialect:
    if ".tsv" in path.suffixes:
        dialect = _tsv_dialect(path)
    else:
        unquoted = re.sub(_QUOTED, "", next((line for _, line in lines_of(path)), ""))
        dialect = Dialect(next((mark for mark in _MARKS if mark in unquoted), ","), True)
    if dialect.reason or dialect != Dialect("," if dialect.quoted else "\t", ".tsv" not in path.suffixes):
        log.info("%s: %s", path, dialect)
    return dialect


def _tsv_dialect(path: Path) -> Dialect:
    """Quoted if every cell that begins with a quotation mark is quoted as a whole, and some sign says that a program
    did it: a quoted first line, quotes in every line, or a text that needs them. Also quoted if only that gives every
    row as many cells as the first: tabs and line ends inside quotes.
    """
    widths: set[int] = set()
    lines = with_quotes = 0
    bare_at, signs = 0, False
    for number, line in lines_of(path):
        lines += 1
        widths.add(line.count("\t"))
        if '"' not in line:
            continue
        opened = [cell for cell in line.split("\t") if cell.startswith('"')]
        with_quotes += bool(opened)
        if not bare_at and not all(map(_QUOTED.fullmatch, opened)):
            bare_at = number
        signs = signs or (lines == 1 and bool(opened)) or any(map(_NEEDS_QUOTES.match, opened))
    if not with_quotes:
        return Dialect("\t", False)
    if not bare_at:
        quoted = signs or with_quotes == lines
        return Dialect("\t", quoted, "" if quoted else "a few cells are in quotation marks, and none needs them")
    if len(widths) > 1 and _is_rectangular(path):
        return Dialect("\t", True, "only so every row has as many cells as the first")
    return Dialect("\t", False, f"the mark that line {bare_at} begins a cell with does not enclose it")


def _is_rectangular(path: Path) -> bool:
    """Whether every row of a quoted TSV has as many cells as the first."""
    widths = (len(cells) for _, cells in _rows(path, Dialect("\t", True)))
    try:
        first = next(widths, 0)
        return all(width == first for width in widths)
    except DataError:
        return False


def cells_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the last line, cells) of each row that is not empty. Raises `DataError` for a broken quote."""
    return _rows(path, dialect_of(path))


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, fields) of each row below the header line. Raises `DataError` for a row of another width."""
    header: list[str] | None = None
    for line, cells in cells_of(path):
        at = Location(path, line)
        if header is None:
            header = [cell.strip() for cell in cells]
            refuse_repeated(header, at)
            continue
        if len(cells) != len(header):
            raise at.error(f"{len(cells)} columns, the header line has {len(header)}")
        yield line, dict(zip(header, cells, strict=True))


def refuse_repeated(names: list[str], at: Location) -> None:
    """Refuse two columns of one name: a row would keep only one. Columns without a name are never read."""
    if repeated := [name for i, name in enumerate(names) if name and name in names[:i]]:
        raise at.error(
            f"two columns are named {repeated[0]!r}; give each its own name (several negatives: negative_1, negative_2)"
        )


def _rows(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    last_line = 0

    def lines() -> Iterator[str]:
        nonlocal last_line
        for number, line in lines_of(path, blank=True):  # blank lines may be part of a quoted text
            last_line = number
            yield line + "\n"

    reader = csv.reader(
        lines(),
        delimiter=dialect.separator,
        quoting=csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        for cells in reader:
            if any(cells):
                yield last_line, cells
    except csv.Error as error:
        kind = "TSV" if ".tsv" in Path(path).suffixes else "CSV"
        raise Location(path, last_line).error(f"not valid {kind}: {error}") from None
