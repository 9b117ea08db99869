"""Sources whose rows hold texts (`layouts`) instead of ids: from rows to a collection.

Ids in the rows identify passages and queries. Without ids, equal texts are the same passage or query, and the id is a
hash of the text. The rows are read once, into temporary Arrow files, from which the collection is then streamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from distill import config
from distill.importing.readers.base import JUDGEMENTS, LISTS, PASSAGES, QUERIES, Batches, Collection, Location
from distill.importing.readers.layouts import Row, RowParser
from distill.importing.spool import Spool, record_batch
from distill.store.arrow import RowReader, first_of_each, write_ipc

_CHUNK_ROWS = 2048  # each row may hold a hundred passages
_DIGEST = pa.field("digest", pa.uint64())  # of the text


def collection_from_rows(
    rows: Iterable[tuple[int, Row]],
    parser: RowParser,
    source: config.Jsonl | config.HuggingFace,
    spool: Path,
    seed: int,
) -> Collection:
    """Turn (line, row) pairs of `parser` into a collection.

    Dev and test queries are drawn with `seed`, the rest are for training. `spool` is an empty folder for temporary
    files, which must outlive the collection.
    """
    path = Path(source.dataset) if isinstance(source, config.HuggingFace) else source.path
    dev_queries, test_queries = source.dev_queries, source.test_queries
    write_ipc(spool / "lists.arrow", LISTS, _spool_texts(rows, spool), {"path": str(path)})
    passages = _DistinctTexts(spool / "passages.arrow", path, "passage_ids")
    queries = _DistinctTexts(spool / "queries.arrow", path, "query_id")
    order = np.random.default_rng([seed, 0x5B117]).permutation(len(queries))
    if dev_queries + test_queries >= len(order) > 0:
        raise Location(path).error(
            f"{dev_queries} dev and {test_queries} test queries asked for, of {len(order)} in all; "
            "none are left for training. Lower data.source.dev_queries and data.source.test_queries"
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
        lists={"train": _lists_of(lists, members["train"])},
        unread=parser.unread,
    )


def text_id(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _spool_texts(rows: Iterable[tuple[int, Row]], spool: Path) -> Batches:
    """Write passages and queries to the spool, distinct within each chunk of rows; yield the lists in batches."""
    with (
        Spool(spool / "passages.arrow", PASSAGES.append(_DIGEST)) as passages,
        Spool(spool / "queries.arrow", QUERIES.append(_DIGEST)) as queries,
    ):
        for chunk in _chunks(rows):
            first_line: dict[tuple[str, str], int] = {}  # of each (passage id, text)
            first_line_of_query: dict[tuple[str, str], int] = {}
            lists = []
            for line, row in chunk:
                query = row.query_id or text_id(row.query)
                ids = row.passage_ids or [text_id(text) for text in row.passages]
                first_line_of_query.setdefault((query, row.query), line)
                for passage in zip(ids, row.passages, strict=True):
                    first_line.setdefault(passage, line)
                lists.append((query, ids, row.grades, row.scores, line))
            passages.write([(name, "", text, line, _digest(text)) for (name, text), line in first_line.items()])
            queries.write([(name, text, line, _digest(text)) for (name, text), line in first_line_of_query.items()])
            yield record_batch(lists, LISTS)


def _chunks(rows: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    chunk: list[tuple[int, Row]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _DistinctTexts:
    """The first row of each id in a spooled file. Raises `DataError` for an id that stands for two texts."""

    def __init__(self, path: Path, source: Path, field: str):
        self._reader = RowReader(path)
        ids = self._reader.table().column("id")
        codes, self._is_first = first_of_each(ids)
        self.ids = pa.chunked_array([*ids.filter(pa.array(self._is_first)).chunks], pa.large_string()).combine_chunks()
        digests = self._reader.table().column("digest").to_numpy()
        differing = np.flatnonzero(digests != digests[self._is_first][codes])
        if differing.size:
            second = self._reader.take(differing[:1], ["id", "line"]).to_pylist()[0]
            first = self._reader.take(np.flatnonzero(self._is_first)[codes[differing[:1]]], ["line"]).to_pylist()[0]
            raise Location(source, second["line"]).error(
                f"the id {second['id']!r} stands for two texts (the other in line {first['line']}); name the right "
                f"column in data.source.columns.{field}, or set it to null to tell texts apart by their content",
                field,
            )

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, schema: pa.Schema, members: pa.Array | None = None) -> Batches:
        """The first row of each id, or of the ids in `members`, with the columns of `schema`."""
        for start, batch in zip(self._reader.starts, self._reader.batches, strict=False):
            batch = batch.filter(pa.array(self._is_first[start : start + batch.num_rows])).select(schema.names)
            if members is not None:
                batch = batch.filter(pc.is_in(batch.column("id"), value_set=members))
            yield batch


def _lists_of(lists: RowReader, queries: pa.Array) -> Batches:
    for batch in lists.batches:
        yield batch.filter(pc.is_in(batch.column("query_id"), value_set=queries))


def _judgements(lists: RowReader, queries: pa.Array) -> Batches:
    """The positives of the queries' lists, with their grades."""
    schema = JUDGEMENTS.with_metadata(lists.schema.metadata)
    for batch in _lists_of(lists, queries):
        passages, grades = batch.column("passage_ids"), pc.list_flatten(batch.column("grades"))
        positive = pc.greater(grades, 0)
        ids = pc.list_flatten(passages).filter(positive)
        parents = pc.list_parent_indices(passages).filter(positive)
        columns = [
            batch.column("query_id").take(parents),
            ids,
            grades.filter(positive),
            batch.column("line").take(parents),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
