"""Files of rankings: which passages belong to each query, best first, by their ids.

Every format becomes lists of (passage, score), to be ranked by descending score; equal scores keep the file's order. A
rank, or a place in a list without scores, becomes the score -rank, so that several lists of one query merge rank by
rank: the first of each, then the second of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.errors import DataError
from distill.importing.readers.base import (
    Batches,
    Location,
    batches_of,
    id_field,
    json_lines,
    open_text,
    reading,
)
from distill.importing.readers.jsonl import parquet_file
from distill.importing.readers.naver import object_items, plain_id, run_lists, scored_ids
from distill.importing.readers.pickles import is_pickle
from distill.importing.readers.qrels import DOCUMENT_NAMES, QUERY_NAMES

RANKINGS = pa.schema(
    [
        ("query_id", pa.large_string()),
        ("passage_ids", pa.large_list(pa.large_string())),
        ("scores", pa.large_list(pa.float64())),
        ("scored", pa.bool_()),  # False: the scores are made of ranks
        ("line", pa.int64()),  # of the first passage; null in a file without lines
        ("lines_per_passage", pa.int64()),  # 1: each passage has a line of its own
    ]
)

_HEAD = 1 << 20  # bytes, in which the first line is looked for
_BATCH_LISTS = 2048  # each may have a thousand passages
_PARQUET_ROWS = 1 << 16


def ranking_files(path: Path) -> list[Path]:
    """Return the file itself, or the files of a folder by name, hidden ones aside. Raises `DataError` without any."""
    if not path.is_dir():
        with reading(path), open(path, "rb"):
            return [path]
    with reading(path):
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DataError("there are no files of rankings in this folder", path=path)
    return files


def read_rankings(path: Path, systems: Sequence[str] = (), found: set[str] | None = None) -> Batches:
    """Yield the lists of one file, `RANKINGS`.

    `systems`: those to read of a file that has lists of several (none given: all of them); the names of all systems in
    the file are added to `found`. Raises `DataError` for a file without lists.
    """
    path, is_empty = Path(path), True
    for batch in _batches(path, systems, set() if found is None else found):
        is_empty = False
        yield batch
    if is_empty:
        raise DataError("there are no rankings in this file", path=path)


def check_rankings(path: Path, systems: Sequence[str] = ()) -> None:
    """Read the first list of a file. A pickle, which can only be read whole, is merely opened."""
    if is_pickle(path):
        with reading(path), open(path, "rb"):
            return
    if ".parquet" in path.suffixes:
        next(read_rankings(path, systems))
    elif next(_rows(path, systems, set()), None) is None:
        raise DataError("there are no rankings in this file", path=path)


def _batches(path: Path, systems: Sequence[str], found: set[str]) -> Batches:
    if ".parquet" in path.suffixes:
        _refuse_systems(systems, Location(path))
        return _parquet_batches(path)
    return batches_of(_rows(path, systems, found), RANKINGS, path, _BATCH_LISTS)


Rows = Iterator[tuple[str, list[str], list[float], bool, int | None, int]]  # `RANKINGS`


def _rows(path: Path, systems: Sequence[str], found: set[str]) -> Rows:
    if is_pickle(path) or _is_one_object(path):
        _refuse_systems(systems, Location(path))
        for query, value in object_items(path):
            yield from _list(query, value, Location(path))
    elif _begins_object(path):
        for line, row in json_lines(path):
            at = Location(path, line)
            if "qid" in row and "neg" in row:
                yield from _of_systems(row, systems, found, at)
            else:
                _refuse_systems(systems, at)
                for query, value in row.items():
                    yield from _list(query, value, at)
    else:
        _refuse_systems(systems, Location(path))
        for query, passages, scores, line in run_lists(path):
            yield query, passages, scores, True, line, 1


def _refuse_systems(systems: Sequence[str], at: Location) -> None:
    if systems:
        raise at.error(
            'has no lists by system (lines of {"qid": .., "neg": {system: [ids]}}), of which some could be chosen; '
            "leave out the miner's `systems`",
            "systems",
        )


def _list(query: str, value: object, at: Location) -> Rows:
    """The row of `{qid: [did]}` or `{qid: {did: score}}`; none for an empty list."""
    if isinstance(value, dict):
        passages, scores = scored_ids(value, at, query)
    elif isinstance(value, list | tuple):
        passages = [plain_id(passage, at, query) for passage in value]
        scores = _by_place(len(passages))
    else:
        raise at.error(f"expected a list of ids or an object of id -> score, found {type(value).__name__}", query)
    if passages:
        yield query, passages, scores, isinstance(value, dict), at.line, 0


def _of_systems(row: dict[str, Any], systems: Collection[str], found: set[str], at: Location) -> Rows:
    """The row of sentence-transformers' `{qid, pos, neg: {system: [did]}}`: the systems' lists, merged by rank."""
    query, by_system = id_field(row, "qid", at), row["neg"]
    if not isinstance(by_system, dict):
        raise at.error(f"expected an object of system -> list of ids, found {type(by_system).__name__}", "neg")
    found.update(by_system)
    passages: list[str] = []
    scores: list[float] = []
    for system, ids in by_system.items():
        if systems and system not in systems:
            continue
        if not isinstance(ids, list):
            raise at.error(f"expected a list of ids, found {type(ids).__name__}", f"neg.{system}")
        passages += [plain_id(passage, at, f"neg.{system}") for passage in ids]
        scores += _by_place(len(ids))
    if passages:
        yield query, passages, scores, False, at.line, 0


def _by_place(size: int) -> list[float]:
    return [-float(rank) for rank in range(1, size + 1)]


def _first_line(path: Path) -> tuple[str, bool]:
    """The first line that is not blank, as far as it lies in the file's head, and whether it is whole."""
    with reading(path), open_text(path) as file:
        head = file.read(_HEAD)
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    line, end, _ = text.partition("\n")
    return line, bool(end) or len(head) < _HEAD


def _begins_object(path: Path) -> bool:
    return _first_line(path)[0].startswith(("{", "["))


def _is_one_object(path: Path) -> bool:
    """Whether a file begins a JSON object that its first line does not end: one object for all queries."""
    line, is_whole = _first_line(path)
    if not line.startswith("{") or ".jsonl" in path.suffixes:
        return False
    if not is_whole:
        return True
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _parquet_batches(path: Path) -> Batches:
    """Rows of (query, passage[, score or rank]), or of (query, list of passages[, list of scores or ranks])."""
    schema = RANKINGS.with_metadata({"path": str(path)})
    with parquet_file(path) as file:
        query, passage, scores, ranks = _columns(path, file.schema_arrow)
        value = scores or ranks
        first = 1
        for batch in file.iter_batches(_PARQUET_ROWS, columns=[name for name in (query, passage, value) if name]):
            if not batch.num_rows:
                continue
            at = [Location(path, first + row) for row in (0, batch.num_rows - 1)]
            for name in batch.schema.names:
                if batch.column(name).null_count:
                    row = pc.index(batch.column(name).is_null(), True).as_py()
                    raise Location(path, first + row).error("null", name)
            queries, passages = _ids(batch.column(query), query, at[0]), batch.column(passage)
            is_flat = not _is_list(passages.type)
            if is_flat:
                changes = pc.not_equal(queries[1:], queries[:-1]).to_numpy(zero_copy_only=False)
                starts = np.concatenate([[0], 1 + np.flatnonzero(changes)]).astype(np.int64)
                offsets, flat = np.append(starts, batch.num_rows), passages
            else:
                starts = np.arange(batch.num_rows)
                offsets, flat = _offsets(passages), passages.flatten()
            if value is None:
                numbers = _places(offsets, first, is_flat)
            else:
                numbers = _numbers(batch.column(value), value, offsets, at[0])
                numbers = numbers if scores else -numbers
            columns = [
                queries.take(pa.array(starts)),
                pa.LargeListArray.from_arrays(pa.array(offsets), _ids(flat, passage, at[0])),
                pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(numbers, pa.float64())),
                pa.array(np.full(len(starts), scores is not None)),
                pa.array(first + starts),
                pa.array(np.full(len(starts), int(is_flat))),
            ]
            lists = pa.RecordBatch.from_arrays(columns, schema=schema)
            yield lists.filter(pa.array(np.diff(offsets) > 0))
            first += batch.num_rows


def _columns(path: Path, schema: pa.Schema) -> tuple[str, str, str | None, str | None]:
    """The columns of query, passages, scores and ranks, by their names."""

    def find(what: str, names: Collection[str]) -> str | None:
        columns = [name for name in schema.names if _reduced(name) in names]
        if len(columns) > 1:
            raise DataError(f"the columns {columns[0]!r} and {columns[1]!r} could both be the {what}", path=path)
        return columns[0] if columns else None

    query = find("query's id", QUERY_NAMES)
    passage = find("passages' ids", DOCUMENT_NAMES | {f"{name}s" for name in DOCUMENT_NAMES})
    if query is None or passage is None:
        missing = "query_id" if query is None else "passage_id (or passage_ids, a list)"
        raise DataError(f"there is no column {missing}; the file has {', '.join(schema.names)}", path=path)
    return query, passage, find("scores", {"score", "scores"}), find("ranks", {"rank", "ranks"})


def _reduced(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_)


def _offsets(lists: pa.Array) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())]).astype(np.int64)


def _ids(values: pa.Array, column: str, at: Location) -> pa.Array:
    """Ids as strings."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    type_ = values.type
    if not (pa.types.is_integer(type_) or pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        raise at.error(f"expected ids, strings or integers, found {type_}", column)
    if values.null_count:
        raise at.error("null among the ids", column)
    return values.cast(pa.large_string())


def _numbers(values: pa.Array, column: str, offsets: np.ndarray, at: Location) -> np.ndarray:
    """Scores or ranks, float64, one per passage. Raises `DataError` for one that is not finite."""
    if _is_list(values.type):
        if not np.array_equal(_offsets(values), offsets):
            raise at.error("not one per passage in every row from here on", column)
        values = values.flatten()
    type_ = values.type
    if not (pa.types.is_integer(type_) or pa.types.is_floating(type_)) or len(values) != offsets[-1]:
        raise at.error(f"expected one number per passage, found {type_}", column)
    numbers = values.cast(pa.float64()).fill_null(np.nan).to_numpy()
    if not np.isfinite(numbers).all():
        raise at.error("a number that is missing or not finite, in this row or one of the next", column)
    return numbers


def _places(offsets: np.ndarray, first: int, is_flat: bool) -> np.ndarray:
    """Scores of passages without any: minus the row in the file, or minus the place in the list."""
    places = np.arange(offsets[-1], dtype=np.float64)
    return -(first + places) if is_flat else np.repeat(offsets[:-1], np.diff(offsets)) - places - 1
