"""Which column of a row is which of our fields, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distill.config.data import COLUMNS, unread_column
from distill.importing.readers.base import Location

LayoutName = Literal["triples", "flagembedding", "pairs"]
LayoutChoice = Literal["triples", "flagembedding", "pairs", "auto"]
Names = dict[str, str | None]  # our field -> the file's column, where they differ; null: an id that is not read

# our field -> the usual column names: sentence-transformers' hard negatives, FlagEmbedding, common datasets.
# The first one is our own name, and goes before the others; several of the others are an ambiguity.
_USUAL = {
    "query": ("query", "anchor", "question", "sentence1"),
    "positive": ("positive", "positives", "pos", "passage", "document", "text", "answer", "response", "sentence2"),
    "negative": ("negative", "negatives", "neg"),
    "passages": ("passages", "docs", "documents"),
    "label": ("label", "labels"),
    "score": ("score", "scores"),
    "pos": ("pos",),
    "neg": ("neg",),
    "pos_scores": ("pos_scores",),
    "neg_scores": ("neg_scores",),
    "query_id": ("query_id", "qid", "query-id"),
    "passage_ids": ("passage_ids",),
}
_ALL_MATTER = ("negative", "label", "score")  # of these, two columns are an ambiguity whatever their names
_SAY_POSITIVE = ("positive", "positives", "pos")  # names that state what other usual names do not


@dataclass(frozen=True)
class ColumnMap:
    """The columns of rows that fill the same columns.

    `fields`: our field -> its column; `negatives` and `passage_ids`: the columns in the order in which they are read;
    `unread`: the filled columns that nothing is read from.
    """

    layout: LayoutName
    fields: dict[str, str]
    negatives: tuple[str, ...]
    passage_ids: tuple[str, ...]
    unread: tuple[str, ...]
    empty_label: str | None  # the column of labels, if the rows have one and leave it empty
    named: dict[str, str | None]  # our fields that the recipe names a column for

    @classmethod
    def of(
        cls, filled: Sequence[str], columns: Sequence[str], choice: LayoutChoice, names: Names, at: Location
    ) -> ColumnMap:
        """Find the fields among `filled`, the columns that a row fills; `columns` are all that it has.

        Raises `DataError` for two columns that could be the same field, and for labels that the layout does not read.
        """
        layout = _layout(columns, choice, names)
        if message := unread_column(names, layout):
            raise at.error(message, "data.source")
        fields = {}
        for ours in COLUMNS[layout]:
            if (name := _find(ours, filled, names, at)) is not None:
                fields[ours] = name
        if "passages" in fields and "positive" in fields and "positive" not in names and "passages" not in names:
            if fields["positive"] in _SAY_POSITIVE:
                raise _ambiguous("the passages", (fields["passages"], fields["positive"]), "passages", at)
            del fields["positive"]  # `text` or `answer` beside a list of passages
        negatives: tuple[str, ...] = (fields["negative"],) if "negative" in fields else ()
        if layout == "triples" and "negative" not in names:
            numbered = _numbered(filled)
            if negatives and numbered:
                raise _ambiguous("the negatives", (*negatives, *numbered), "negative", at)
            negatives = negatives or numbered
        if layout != "triples" and (label := _find("label", filled, {}, at)) and label not in names.values():
            raise at.error(
                f"there are labels, which the layout {layout} does not read; set data.source.layout: triples, or take "
                "the column out",
                label,
            )
        passage_ids = _passage_ids(filled, fields, names)
        read = {*fields.values(), *negatives, *passage_ids, ""}
        unread = tuple(name for name in filled if name not in read)
        empty_label = None if "label" in fields else _find("label", columns, names, at)
        return cls(layout, fields, negatives, passage_ids, unread, empty_label, names)

    def find(self, ours: str) -> str | None:
        """The column that holds one of our fields; None if the row fills none."""
        return self.fields.get(ours)

    def require(self, ours: str, row: dict[str, Any], at: Location) -> str:
        """As `find`, but a missing column is an error; one that the row leaves empty is returned."""
        name = self.fields.get(ours) or next((name for name in self._names_of(ours) if name in row), None)
        if name is not None:
            return name
        hint = ""
        if ours == "query" and not self.negatives and self.find("passages") is None and "query" not in self.named:
            hint = (
                ". Documents alone, without queries, are read from a folder with corpus.jsonl, whose rows have `_id` "
                "and `text`"
            )
        raise at.error(
            f"missing (the row has {', '.join(repr(name)[:60] for name in row)}); name the right column in "
            f"data.source.columns.{ours}, or add a header line if the file has none{hint}",
            _USUAL[ours][0],
        )

    def _names_of(self, ours: str) -> tuple[str, ...]:
        theirs = self.named.get(ours)
        return _USUAL[ours] if theirs is None else (theirs,)

    def says_positive(self, column: str) -> bool:
        """Whether a column states by its name, or by the recipe's, that its passages are positives."""
        return column in _SAY_POSITIVE or ("positive" in self.named and self.fields.get("positive") == column)


def _layout(columns: Sequence[str], choice: LayoutChoice, names: Names) -> LayoutName:
    """The recipe's layout, or flagembedding for a row with a column `pos`, else triples."""
    if choice != "auto":
        return choice
    sides = ("pos", "neg", "pos_scores", "neg_scores")
    if "positive" in names or "negative" in names:  # `pos` under one of these names is a list of triples
        return "triples"
    return "flagembedding" if "pos" in columns or any(side in names for side in sides) else "triples"


def _find(ours: str, filled: Sequence[str], names: Names, at: Location) -> str | None:
    if ours in names:
        theirs = names[ours]
        return theirs if theirs in filled else None
    taken = set(names.values())  # a column has one meaning
    found = [name for name in _USUAL[ours] if name in filled and name not in taken]
    if len(found) > 1 and (found[0] != _USUAL[ours][0] or ours in _ALL_MATTER):
        raise _ambiguous(f"the field {ours!r}", found, ours, at)
    return found[0] if found else None


def _numbered(filled: Sequence[str]) -> tuple[str, ...]:
    """The columns `negative_1`, `negative_2`, ... by number.

    Tables have all columns in every row; a row with fewer negatives leaves the last ones empty.
    """
    numbers = {name: name.removeprefix("negative_") for name in filled if name.startswith("negative_")}
    return tuple(
        sorted(
            (name for name, digits in numbers.items() if digits.isascii() and digits.isdigit()),
            key=lambda name: int(numbers[name]),
        )
    )


def _passage_ids(filled: Sequence[str], fields: dict[str, str], names: Names) -> tuple[str, ...]:
    if "passage_ids" in fields:
        return (fields["passage_ids"],)
    return () if "passage_ids" in names else tuple(name for name in ("pos_id", "neg_id") if name in filled)


def _ambiguous(what: str, columns: Sequence[str], ours: str, at: Location) -> Exception:
    return at.error(
        f"{what} could be in any of {', '.join(map(repr, columns))}; name the column in data.source.columns.{ours}, "
        "and the others are left out",
        columns[1],
    )
