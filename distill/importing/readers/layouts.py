"""The layouts of rows of texts: from the fields of one row to a query with its passages.

Which column is which of our fields is decided by each row's own filled columns (`columns`), so no row decides for
another. A layout is a function from `Fields` to `Row`, listed in `_LAYOUTS`. `RowParser` applies it, adds the ids of a
row, which do not depend on the layout, leaves out texts that are empty, and counts what was not read.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distill.importing.readers.base import Location, Unread, checked_text, id_field, number
from distill.importing.readers.columns import ColumnMap, LayoutChoice, LayoutName, Names
from distill.importing.readers.tables import is_table

_SEEN_ROWS = 10_000  # a column that the recipe names must be filled in one of the first rows
_GRADE_LIMIT = 2**31

Texts = list[str | None]  # null: an entry without a text, which keeps its place beside labels, scores and ids
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One query with passages; `grades`, `scores` (NaN: missing) and `passage_ids` are aligned with `passages`.

    A grade above 0 makes a positive.
    """

    query: str
    passages: list[str]
    grades: list[int]
    scores: list[float] | None
    query_id: str | None = None
    passage_ids: list[str] | None = None

    @property
    def positives(self) -> int:
        """Number of passages that are positives."""
        return sum(grade > 0 for grade in self.grades)


class RowParser:
    """Parses the rows of one file or dataset: `parse(fields, line)`; call `finish()` after the last one.

    `unread` counts, for each column that no field is read from, the rows that fill it, and what is left out: empty
    texts, and rows without a query or any passage. `layouts` counts the rows of each layout, `rows` all of them. Raises
    `DataError` for an entry of `names` (our field -> the file's column) that the layout does not read, and for a named
    column that no row fills.
    """

    def __init__(self, layout: LayoutChoice, names: Names, path: Path, *, first_is_positive: bool = False):
        self.unread, self.layouts = Unread(), dict.fromkeys(_LAYOUTS, 0)
        self._choice, self._names, self._path, self._first_is_positive = layout, names, path, first_is_positive
        self._maps: dict[tuple[tuple[str, ...], tuple[str, ...]], ColumnMap] = {}
        self._wanted = {theirs: ours for ours, theirs in names.items() if theirs is not None}
        self._unseen = set(self._wanted)
        self.rows = self._kept = 0
        # cells hold texts: a list in them was printed
        self._is_table = is_table(path)

    def parse(self, row: dict[str, Any], line: int) -> Row | None:
        """The query and passages of one row; None, counted, for a row without a query or without any passage.

        Raises `DataError` with file, line and column.
        """
        at = Location(self._path, line)
        if self._is_table:  # tables have all columns in every row: an empty cell is not filled
            row = {name: value or None for name, value in row.items()}
        filled = tuple(name for name, value in row.items() if value is not None)
        columns = self._maps.get((filled, tuple(row)))
        if columns is None:
            columns = ColumnMap.of(filled, tuple(row), self._choice, self._names, at)
            self._maps[filled, tuple(row)] = columns
            self._unseen -= set(row)
        self.rows += 1
        if self.rows == _SEEN_ROWS:
            self._check_seen(row)
        fields = Fields(row, columns, at, self._is_table, self._first_is_positive, self.unread)
        parsed = _LAYOUTS[columns.layout](fields)
        self.layouts[columns.layout] += 1
        for name in columns.unread:
            self.unread.add("column", name)
        self._last = row
        if not parsed.query or not parsed.passages:
            self.unread[f"rows without a {'passage' if parsed.query else 'query'}"] += 1
            return None
        self._kept += 1
        return parsed

    def finish(self) -> None:
        """Check that there were rows, the named columns in them, and texts."""
        if not self.rows:
            raise Location(self._path).error("there are no rows")
        self._check_seen(self._last)
        if not self._kept:
            counts = ", ".join(f"{count:,} {what}" for what, count in sorted(self.unread.items()))
            raise Location(self._path).error(f"no row has both a query and a passage: {counts}")

    def _check_seen(self, row: dict[str, Any]) -> None:
        if missing := sorted(self._unseen):
            raise Location(self._path).error(
                f"the file has no column {missing[0]!r}; its rows have: {', '.join(row)}",
                f"data.source.columns.{self._wanted[missing[0]]}",
            )


@dataclass(frozen=True)
class Fields:
    """The fields of one row, by our names; every error names the file, the line and the column."""

    row: dict[str, Any]
    columns: ColumnMap
    at: Location
    is_table: bool
    first_is_positive: bool
    unread: Unread

    def query(self) -> str:
        """The text of the query; "" if it is null or blank."""
        name = self.columns.require("query", self.row, self.at)
        text = self.checked(name, [self.row[name]])[0] or ""
        return text if text.strip() else ""

    def passages(self, name: str) -> Texts:
        """The texts of a column, one or a list. Empty ones are counted, and become null."""
        texts = self.checked(name, _as_list(self.row[name]))
        filled = [text if text and text.strip() else None for text in texts]
        if empty := filled.count(None):
            self.unread.add("empty texts in", name, empty)
        return [text if text is None or kept is not None else "" for text, kept in zip(texts, filled, strict=True)]

    def checked(self, name: str, values: list[Any]) -> Texts:
        """Check that the values of a column are texts or null."""
        for value in values:
            if value is None:
                continue
            if not isinstance(value, str):
                raise self.at.error(f"expected a text, found {type(value).__name__}", name)
            if self.is_table and _is_printed_list(value):
                raise self.at.error(
                    f"{value:.40}... is a printed list, since cells hold only texts; write the rows as JSONL "
                    "(pandas: to_json(path, orient='records', lines=True)) or Parquet",
                    name,
                )
            checked_text(value, self.at, name)
        return list(values)

    def negatives(self) -> Texts:
        """The texts of the negatives' columns, in their order."""
        return [text for name in self.columns.negatives for text in self.passages(name)]

    def scores(self, passages: Texts) -> list[float] | None:
        """One score per passage (null: NaN); None if the row has none."""
        name = self.columns.find("score")
        if name is None:
            return None
        values = self.numbers(name)
        if (scores := _aligned(values, passages, math.nan)) is None:
            raise self.at.error(f"{len(values)} numbers for {len(passages)} passages", name)
        return scores

    def grades(self, passages: Texts) -> list[int] | None:
        """One grade per passage: whole numbers, or true and false; None if the row has none."""
        name = self.columns.find("label")
        if name is None and self.columns.empty_label is not None:
            raise self.at.error(
                "missing: other rows say whether their passages are positives", self.columns.empty_label
            )
        if name is None:
            return None
        values = [float(value) if isinstance(value, bool) else value for value in _as_list(self.row[name])]
        labels = _aligned(values, passages, 0)
        numbers = [
            0.0 if value is None and text is None else number(value, self.at, name)
            for value, text in zip(labels or values, passages if labels else values, strict=True)
        ]
        not_whole = [value for value in numbers if not value.is_integer() or abs(value) >= _GRADE_LIMIT]
        if not_whole or labels is None:
            found = f"{not_whole[0]:g}" if not_whole else f"{len(numbers)} for {len(passages)} passages"
            raise self.at.error(
                f"labels are grades, one whole number per passage; found {found}. If the column holds scores or "
                f"margins, set data.source.columns.score: {name}",
                name,
            )
        return [int(value) for value in numbers]

    def ids(self, passages: Texts) -> list[str] | None:
        """One id per passage, from `passage_ids`, or FlagEmbedding's `pos_id` and `neg_id`; None without any."""
        columns = self.columns.passage_ids
        if not columns:
            return None
        values = [(name, value) for name in columns for value in _as_list(self.row[name])]
        ids = _aligned(values, passages, ("", ""))
        if ids is None:
            raise self.at.error(f"{len(values)} ids for {len(passages)} passages", columns[0])
        return [
            id_field({name: value}, name, self.at) if text is not None else ""
            for (name, value), text in zip(ids, passages, strict=True)
        ]

    def numbers(self, name: str) -> list[float]:
        """The numbers of a column; null is NaN."""
        return [math.nan if value is None else number(value, self.at, name) for value in _as_list(self.row[name])]


def _row(fields: Fields, query: str, passages: Texts, grades: list[int], scores: list[float] | None) -> Row:
    """Add the ids, and leave out passages without a text, with what belongs to them."""
    query_id, ids = fields.columns.find("query_id"), fields.ids(passages)
    kept = [i for i, text in enumerate(passages) if text]
    return Row(
        query,
        [text for text in passages if text],
        [grades[i] for i in kept],
        [scores[i] for i in kept] if scores is not None else None,
        id_field(fields.row, query_id, fields.at) if query_id else None,
        [ids[i] for i in kept] if ids is not None else None,
    )


def _aligned(values: list[T], passages: Texts, missing: T) -> list[T] | None:
    """One value per passage, given for all, or only for those that are not null; None if neither fits."""
    if len(values) == len(passages):
        return values
    if len(values) != len(passages) - passages.count(None):
        return None
    given = iter(values)
    return [missing if text is None else next(given) for text in passages]


def _triples(fields: Fields) -> Row:
    """sentence-transformers' layouts: pairs with a label, triplets, n-tuples, lists with labels or scores."""
    query = fields.query()
    name = fields.columns.find("passages") or fields.columns.require("positive", fields.row, fields.at)
    if isinstance(fields.row[name], list):
        return _list(fields, query, name)
    if name == fields.columns.find("passages"):
        raise fields.at.error(f"expected a list of texts, found {type(fields.row[name]).__name__}", name)
    positives, negatives = fields.passages(name), fields.negatives()
    if not negatives:
        return _pair(fields, query, name, positives)
    passages = positives + negatives
    grades = [1] + [0] * len(negatives)
    if fields.columns.find("label"):
        grades = fields.grades(passages) or grades
        _check_sides(grades, 1, fields)
    return _row(fields, query, passages, grades, _scores_or_margins(fields, 1, passages))


def _pair(fields: Fields, query: str, name: str, passages: Texts) -> Row:
    """A pair is a positive unless a label says otherwise."""
    grades = fields.grades(passages)
    if grades is None and fields.columns.find("score") and not fields.columns.says_positive(name):
        score = fields.columns.find("score")
        raise fields.at.error(
            "a pair with a score but no label: it can't be told whether the passage is a positive. If the score is a "
            f"label of 0 and 1, set data.source.columns.label: {score}; if every passage is a positive, set "
            f"data.source.columns.positive: {name}",
            score,
        )
    return _row(fields, query, passages, grades or [1], fields.scores(passages))


def _list(fields: Fields, query: str, name: str) -> Row:
    """A list: of positives beside a column of negatives, or of both, told apart by labels."""
    passages = fields.passages(name)
    negatives = fields.negatives()
    label = fields.columns.find("label") or fields.columns.empty_label
    if label is not None:
        if fields.columns.negatives:
            raise fields.at.error(
                f"the labels in {label!r} tell positives from negatives in {name!r}, but there are negatives in "
                f"{', '.join(map(repr, fields.columns.negatives))}, too; name the columns that are meant in "
                "data.source.columns, and take the others out",
                label,
            )
        return _row(fields, query, passages, fields.grades(passages) or [], fields.scores(passages))
    if fields.columns.says_positive(name) or fields.columns.negatives:
        if not passages:
            raise fields.at.error("no positive", name)
        grades, both = [1] * len(passages) + [0] * len(negatives), passages + negatives
        return _row(fields, query, both, grades, _scores_or_margins(fields, len(passages), both))
    if not fields.first_is_positive:
        raise fields.at.error(
            "a list without labels: it can't be told which passages are positives. Add a list of grades as 'labels', "
            "or set data.source.first_is_positive: true if the first passage is the positive and the others are "
            f"negatives, or data.source.columns.positive: {name} if all are positives",
            name,
        )
    return _row(fields, query, passages, [int(i == 0) for i in range(len(passages))], fields.scores(passages))


def _check_sides(grades: list[int], positives: int, fields: Fields) -> None:
    """Refuse labels that contradict the columns."""
    wrong = [grade for grade in grades[:positives] if grade <= 0] + [grade for grade in grades[positives:] if grade > 0]
    if wrong:
        raise fields.at.error(
            "the labels contradict the columns: a positive has a label of 0, or a negative one above 0",
            fields.columns.find("label"),
        )


def _scores_or_margins(fields: Fields, positives: int, passages: Texts) -> list[float] | None:
    """One score per passage, positives first; or, with one positive, its margin to each negative."""
    name = fields.columns.find("score")
    if name is None:
        return None
    values = fields.numbers(name)
    scores = _aligned(values, passages, math.nan)
    margins = _aligned(values, passages[1:], math.nan) if positives == 1 else None
    if scores is not None and margins is None:
        return scores
    if margins is not None and scores is None:  # only differences matter, so the positive is put at 0
        return [0.0, *(-value for value in margins)] if passages[0] else [math.nan] * len(passages)
    either = ", or one margin per negative" if positives == 1 else ""
    either += "; since one is null, both fit: write null as its score, too" if scores is not None else ""
    raise fields.at.error(f"{len(values)} numbers for {len(passages)} passages (one per passage{either})", name)


def _flagembedding(fields: Fields) -> Row:
    """FlagEmbedding's lists `pos`, `neg`, `pos_scores`, `neg_scores`."""
    query = fields.query()
    positives, positive_scores = _flagembedding_side(fields, "pos")
    negatives, negative_scores = _flagembedding_side(fields, "neg")
    if not positives:
        raise fields.at.error("no positive", fields.columns.find("pos") or "pos")
    scores = None
    if positive_scores is not None or negative_scores is not None:
        scores = (positive_scores or [math.nan] * len(positives)) + (negative_scores or [math.nan] * len(negatives))
    return _row(fields, query, positives + negatives, [1] * len(positives) + [0] * len(negatives), scores)


def _flagembedding_side(fields: Fields, side: str) -> tuple[Texts, list[float] | None]:
    """The texts of `pos` or `neg`, and their scores if the row has some."""
    name = fields.columns.find(side)
    if name is not None and not isinstance(fields.row[name], list):  # a single text is a sequence: of its letters
        raise fields.at.error(f"expected a list of texts, found {type(fields.row[name]).__name__}", name)
    texts = [] if name is None else fields.passages(name)
    name = fields.columns.find(f"{side}_scores")
    if name is None:
        return texts, None
    values = fields.numbers(name)
    if (scores := _aligned(values, texts, math.nan)) is None:
        raise fields.at.error(f"{len(values)} scores for {len(texts)} passages", name)
    return texts, scores


def _pairs(fields: Fields) -> Row:
    name = fields.columns.require("positive", fields.row, fields.at)
    passages = fields.passages(name)
    if len(passages) != 1:
        raise fields.at.error("expected a text, found list", name)
    return _row(fields, fields.query(), passages, [1], None)


_LAYOUTS: dict[LayoutName, Callable[[Fields], Row]] = {
    "triples": _triples,
    "flagembedding": _flagembedding,
    "pairs": _pairs,
}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_printed_list(text: str) -> bool:
    """Whether a cell is what `str` makes of a list or an array of texts."""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
