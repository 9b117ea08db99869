"""Sources whose rows hold texts: a query with its positives and negatives, perhaps with scores and ids.

Rows with ids say which texts are the same passage or query. Without ids the content says it: equal texts are one, and
its id is a hash of the text.
The rows are read once, into temporary Arrow files, from which the collection is then streamed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from distill.config.data import unread_column
from distill.data.arrow import RowReader, write_ipc
from distill.data.readers.base import (
    JUDGEMENTS,
    LISTS,
    PASSAGES,
    QUERIES,
    Batches,
    Collection,
    checked_text,
    id_field,
    is_score,
    score_fault,
)
from distill.data.spool import Spool
from distill.errors import DataError

Layout = Literal["auto", "triples", "flagembedding", "pairs"]

# our name -> the names in use for it: sentence-transformers' hard negatives, FlagEmbedding, common datasets
_ALIASES = {
    "query": ("query", "anchor", "question", "sentence1"),
    "positive": ("positive", "pos", "passage", "document", "text", "answer", "response", "sentence2"),
    "negative": ("negative", "neg", "negatives"),
    "passages": ("passages", "docs", "documents"),
    "label": ("label", "labels"),
    "score": ("score", "scores"),
    "query_id": ("query_id", "qid", "query-id"),
    "passage_ids": ("passage_ids",),
}
_MARKS = {0.0, 1.0}
_CHUNK_ROWS = 2048  # each row may bring a hundred passages
_DIGEST = pa.field("digest", pa.uint64())  # of the text


@dataclass(frozen=True)
class Row:
    """One query with passages; `positive`, `scores` (NaN for none) and `passage_ids` are aligned with them."""

    query: str
    passages: list[str]
    positive: list[bool]
    scores: list[float] | None
    query_id: str | None = None
    passage_ids: list[str] | None = None


Parse = Callable[[dict[str, Any], int], Row]


def row_parser(layout: Layout, columns: dict[str, str | None], first: dict[str, Any], path: Path) -> Parse:
    """The function (row, line) -> `Row` for a layout; `auto` looks at the fields of the first row.

    `columns`: our name -> the file's; None: ids that are there are not read. Raises `DataError` for a name that the
    layout has no use for, and for a column that the first row lacks.
    """
    if layout == "auto":
        layout = detect_layout(first, columns)
    if unread := unread_column(columns, layout):
        raise DataError(unread, path=path, field="data.source")
    for ours, theirs in columns.items():
        if theirs is not None and theirs not in first:
            raise DataError(
                f"the file has no column {theirs!r}; its first row has: {', '.join(first)}",
                path=path,
                field=f"data.source.columns.{ours}",
            )
    reader = _Fields(columns, path)
    read = {"triples": reader.triples, "flagembedding": reader.flagembedding, "pairs": reader.pairs}[layout]
    return lambda row, line: reader.with_ids(read(row, line), row, line)


def detect_layout(row: dict[str, Any], columns: dict[str, str | None]) -> Layout:
    """FlagEmbedding where there is `pos`; triples where there are negatives, labels or scores; else pairs."""
    if "pos" in row or "pos" in columns:
        return "flagembedding"
    fields = row.keys() - set(columns.values()) | columns.keys()  # those that have another name, by ours
    names = {*_ALIASES["negative"], *_ALIASES["passages"], *_ALIASES["label"], *_ALIASES["score"], "negative_1"}
    return "triples" if names & fields else "pairs"


class _Fields:
    """Reads the fields of one source's rows; every fault names the file, the line and the field."""

    def __init__(self, columns: dict[str, str | None], path: Path):
        self._columns, self._path = columns, path

    def triples(self, row: dict[str, Any], line: int) -> Row:
        """sentence-transformers' layouts: pairs with a label, triplets, n-tuples, lists with labels or scores."""
        query = self._text(row, "query", line)
        listed = self._name(row, "passages")
        name = listed or self._name(row, "positive", line)
        if isinstance(row[name], list):  # a labelled list: positives and negatives in one column
            passages = self._texts(row[name], name, line)
            labels = self._numbers(row, "label", line, len(passages))
            scores = self._numbers(row, "score", line, len(passages))
            if labels is not None and set(labels) <= _MARKS:
                return Row(query, passages, [label > 0 for label in labels], scores)
            # without marks, the first passage is the positive (what sentence-transformers' miner writes)
            return Row(query, passages, [i == 0 for i in range(len(passages))], scores or labels)
        positive = self._text(row, "positive", line)
        negatives = self._negatives(row, line)
        passages = [positive, *negatives]
        label_name = self._filled(row, "label") or self._filled(row, "score")
        if label_name is None:
            return Row(query, passages, [True] + [False] * len(negatives), None)
        values = self._values(row[label_name], label_name, line, missing=label_name == self._filled(row, "score"))
        if not negatives:
            if len(values) != 1 or values[0] not in _MARKS:
                raise DataError(
                    "a pair's label must be 0 or 1, or it can't be told whether the passage is a positive",
                    path=self._path,
                    line=line,
                    field=label_name,
                )
            beside = label_name in self._names("label")
            return Row(query, passages, [values[0] == 1.0], self._numbers(row, "score", line, 1) if beside else None)
        if len(values) == len(negatives):  # margins: only differences mean anything, so the positive stands at 0
            values = [0.0, *(-value for value in values)]
        elif len(values) != len(passages):
            raise DataError(
                f"{len(values)} numbers for {len(passages)} passages (one a passage, or one margin a negative)",
                path=self._path,
                line=line,
                field=label_name,
            )
        return Row(query, passages, [True] + [False] * len(negatives), values)

    def flagembedding(self, row: dict[str, Any], line: int) -> Row:
        """FlagEmbedding: lists `pos`, `neg`, `pos_scores`, `neg_scores`."""
        query = self._text(row, "query", line)
        sides = []
        for side in ("pos", "neg"):
            name = self._columns.get(side, side)
            texts = row.get(name) or []
            if not isinstance(texts, list):  # a text is a sequence, too: of its letters
                raise DataError(
                    f"expected a list of texts, found {type(texts).__name__}", path=self._path, line=line, field=name
                )
            texts = self._texts(texts, name, line)
            field = self._columns.get(f"{side}_scores", f"{side}_scores")
            scores = self._values(row[field], field, line, missing=True) if row.get(field) is not None else None
            if scores is not None and len(scores) != len(texts):
                raise DataError(
                    f"{len(scores)} scores for {len(texts)} passages", path=self._path, line=line, field=field
                )
            sides.append((texts, scores))
        (pos, pos_scores), (neg, neg_scores) = sides
        if not pos:
            raise DataError("no positive", path=self._path, line=line, field=self._columns.get("pos", "pos"))
        scores = None
        if pos_scores is not None or neg_scores is not None:
            scores = (pos_scores or [math.nan] * len(pos)) + (neg_scores or [math.nan] * len(neg))
        return Row(query, pos + neg, [True] * len(pos) + [False] * len(neg), scores)

    def pairs(self, row: dict[str, Any], line: int) -> Row:
        return Row(self._text(row, "query", line), [self._text(row, "positive", line)], [True], None)

    def with_ids(self, parsed: Row, row: dict[str, Any], line: int) -> Row:
        """The row with the ids it has: `query_id`, and `passage_ids` or FlagEmbedding's `pos_id` and `neg_id`."""
        query = self._filled(row, "query_id")
        listed = self._filled(row, "passage_ids")
        beside = () if "passage_ids" in self._columns else ("pos_id", "neg_id")
        names = [listed] if listed else [name for name in beside if row.get(name) is not None]
        values = [
            (name, value) for name in names for value in (row[name] if isinstance(row[name], list) else [row[name]])
        ]
        if names and len(values) != len(parsed.passages):
            raise DataError(
                f"{len(values)} ids for {len(parsed.passages)} passages", path=self._path, line=line, field=names[0]
            )
        return replace(
            parsed,
            query_id=id_field(row, query, self._path, line) if query else None,
            passage_ids=[id_field({name: value}, name, self._path, line) for name, value in values] if names else None,
        )

    def _negatives(self, row: dict[str, Any], line: int) -> list[str]:
        name = self._name(row, "negative")
        if name is not None:
            negatives = row[name] if isinstance(row[name], list) else [row[name]]
            return self._texts([text for text in negatives if text is not None], name, line)
        numbered = sorted(
            (field for field in row if field.startswith("negative_") and field[9:].isdigit()),
            key=lambda field: int(field[9:]),
        )
        # rows of a table have all columns; those with fewer negatives leave the last ones empty
        return [text for field in numbered if row[field] is not None for text in self._texts([row[field]], field, line)]

    def _names(self, ours: str) -> tuple[str, ...]:
        if ours not in self._columns:
            return _ALIASES[ours]
        theirs = self._columns[ours]
        return () if theirs is None else (theirs,)

    def _filled(self, row: dict[str, Any], ours: str) -> str | None:
        """The row's own name of one of our fields, if it isn't null there."""
        return next((name for name in self._names(ours) if row.get(name) is not None), None)

    def _name(self, row: dict[str, Any], ours: str, line: int | None = None) -> str | None:
        """The row's own name of one of our fields; with a line, its absence is an error."""
        names = self._names(ours)
        found = next((name for name in names if name in row), None)
        if found is None and line is not None:
            alone = ours == "query" and ours not in self._columns and detect_layout(row, self._columns) == "pairs"
            raise DataError(
                f"missing (the row has {', '.join(map(repr, row))}); name the right one in "
                f"data.source.columns.{ours}"
                + (
                    ". Documents alone, without queries, are read from a "
                    "folder with corpus.jsonl, whose rows have `_id` and `text`"
                    if alone
                    else ""
                ),
                path=self._path,
                line=line,
                field=names[0],
            )
        return found

    def _text(self, row: dict[str, Any], ours: str, line: int) -> str:
        name = self._name(row, ours, line)
        return self._texts([row[name]], name, line)[0]

    def _texts(self, values: Any, field: str, line: int) -> list[str]:
        for value in values:
            if not isinstance(value, str):
                raise DataError(
                    f"expected a text, found {type(value).__name__}", path=self._path, line=line, field=field
                )
            checked_text(value, self._path, line, field)
        return list(values)

    def _numbers(self, row: dict[str, Any], ours: str, line: int, count: int) -> list[float] | None:
        name = self._filled(row, ours)
        if name is None:
            return None
        values = self._values(row[name], name, line, missing=ours == "score")
        if len(values) != count:
            raise DataError(f"{len(values)} numbers for {count} passages", path=self._path, line=line, field=name)
        return values

    def _values(self, value: Any, field: str, line: int, missing: bool = False) -> list[float]:
        """The numbers of a field; with `missing`, null stands for none, and becomes NaN."""
        values = []
        for number in value if isinstance(value, list) else [value]:
            if number is None and missing:
                values.append(math.nan)
                continue
            if isinstance(number, str):  # CSV has nothing but strings
                try:
                    number = float(number)
                except ValueError:
                    raise DataError(f"{number!r} is not a number", path=self._path, line=line, field=field) from None
            if not is_score(number):
                raise DataError(score_fault(number), path=self._path, line=line, field=field)
            values.append(float(number))
        return values


def collection_from_rows(
    rows: Iterable[tuple[int, Row]], path: Path, spool: Path, seed: int, dev_queries: int, test_queries: int
) -> Collection:
    """Turn (line, row) pairs into a collection: dev and test queries are drawn with `seed`, the rest is for training.

    `spool` is an empty folder for temporary files, which must outlive the collection.
    """
    metadata = {"path": str(path)}
    write_ipc(spool / "lists.arrow", LISTS, _spool_texts(rows, spool), metadata)
    passages = _Distinct(spool / "passages.arrow", path, "passage_ids")
    queries = _Distinct(spool / "queries.arrow", path, "query_id")
    order = np.random.default_rng([seed, 0x5B117]).permutation(len(queries))
    if dev_queries + test_queries >= len(order) > 0:
        raise DataError(
            f"{dev_queries} dev and {test_queries} test queries asked for, of {len(order)} in all; "
            "none are left for training. Lower data.source.dev_queries and data.source.test_queries",
            path=path,
        )
    split_of = np.full(len(queries), "train", dtype=object)
    split_of[order[:test_queries]] = "test"
    split_of[order[test_queries : test_queries + dev_queries]] = "dev"
    splits = [split for split, size in (("train", 1), ("dev", dev_queries), ("test", test_queries)) if size]
    lists = RowReader(spool / "lists.arrow")
    members = {split: queries.ids.filter(pa.array(split_of == split)) for split in splits}
    return Collection(
        passages=passages.batches(PASSAGES),
        queries={split: queries.batches(QUERIES, members[split]) for split in splits},
        judgements={split: _judgements(lists, members[split]) for split in splits},
        lists={"train": _of_queries(lists, members["train"])},
    )


def _text_id(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _spool_texts(rows: Iterable[tuple[int, Row]], spool: Path) -> Batches:
    """Write passages and queries (with repeats between chunks) to the spool; yield the lists in batches."""
    with (
        Spool(spool / "passages.arrow", PASSAGES.append(_DIGEST)) as passages,
        Spool(spool / "queries.arrow", QUERIES.append(_DIGEST)) as queries,
    ):
        for chunk in _chunks(rows):
            texts: dict[tuple[str, str], int] = {}
            asked: dict[tuple[str, str], int] = {}
            lists = []
            for line, row in chunk:
                query = row.query_id or _text_id(row.query)
                ids = row.passage_ids or [_text_id(text) for text in row.passages]
                asked.setdefault((query, row.query), line)
                for pair in zip(ids, row.passages, strict=True):
                    texts.setdefault(pair, line)
                lists.append((query, ids, row.positive, row.scores, line))
            passages.write([(name, "", text, line, _digest(text)) for (name, text), line in texts.items()])
            queries.write([(name, text, line, _digest(text)) for (name, text), line in asked.items()])
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(zip(*lists, strict=True), LISTS, strict=True)],
                schema=LISTS,
            )


def _chunks(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    chunk: list[tuple[int, Row]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Distinct:
    """The first row of each id in a spooled file; refuses an id that stands for two texts."""

    def __init__(self, path: Path, source: Path, field: str):
        self._reader = RowReader(path)
        ids = self._reader.table().column("id")
        encoded = pc.dictionary_encode(ids)
        codes = np.concatenate([np.empty(0, np.int64), *(chunk.indices.to_numpy() for chunk in encoded.chunks)])
        # codes count up in order of first appearance: a row is new where its code exceeds all before it
        self._first = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
        self.ids = pa.chunked_array([*ids.filter(pa.array(self._first)).chunks], pa.large_string()).combine_chunks()
        digests = self._reader.table().column("digest").to_numpy()
        differ = np.flatnonzero(digests != digests[self._first][codes])
        if differ.size:
            place = self._reader.take(differ[:1], ["id", "line"]).to_pylist()[0]
            other = self._reader.take(np.flatnonzero(self._first)[codes[differ[:1]]], ["line"]).to_pylist()[0]
            raise DataError(
                f"the id {place['id']!r} stands for two texts (the other in line {other['line']}); name "
                f"the right column in data.source.columns.{field}, or null to tell texts apart by "
                "their content",
                path=source,
                line=place["line"],
                field=field,
            )

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, schema: pa.Schema, members: pa.Array | None = None) -> Batches:
        for start, batch in zip(self._reader.starts, self._reader.batches, strict=False):
            batch = batch.filter(pa.array(self._first[start : start + batch.num_rows])).select(schema.names)
            if members is not None:
                batch = batch.filter(pc.is_in(batch.column("id"), value_set=members))
            yield batch


def _of_queries(lists: RowReader, members: pa.Array) -> Batches:
    for batch in lists.batches:
        yield batch.filter(pc.is_in(batch.column("query_id"), value_set=members))


def _judgements(lists: RowReader, members: pa.Array) -> Batches:
    """The positives of the lists, with grade 1."""
    for batch in _of_queries(lists, members):
        passages, positive = batch.column("passage_ids"), batch.column("positive")
        parents = pc.list_parent_indices(passages)
        keep = pc.list_flatten(positive)
        parents = parents.filter(keep)
        ids = pc.list_flatten(passages).filter(keep)
        yield pa.RecordBatch.from_arrays(
            [
                batch.column("query_id").take(parents),
                ids,
                pa.array(np.ones(len(ids), np.int32)),
                batch.column("line").take(parents),
            ],
            schema=JUDGEMENTS.with_metadata(lists.schema.metadata),
        )
