"""Datasets of the Hugging Face hub, or saved on disk (`save_to_disk`, or a folder of Parquet/JSONL files)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from distill import config
from distill.errors import DataError
from distill.importing.readers.base import (
    JUDGEMENTS,
    PASSAGES,
    QUERIES,
    Batches,
    Collection,
    Location,
    without_ids,
)
from distill.importing.readers.jsonl import RawRows, parse_all
from distill.importing.readers.layouts import RowParser
from distill.importing.readers.rows import collection_from_rows

_BATCH_ROWS = 4096
_SPLITS = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}  # ours -> the usual names
Names = dict[str, tuple[str, ...]]  # our column -> the usual names
_PASSAGE_NAMES: Names = {"id": ("_id", "id"), "title": ("title",), "text": ("text",)}
_QUERY_NAMES: Names = {"id": ("_id", "id"), "text": ("text", "query")}
_JUDGEMENT_NAMES: Names = {
    "query_id": ("query-id", "query_id"),
    "grade": ("score", "grade", "label"),
    "passage_id": ("corpus-id", "corpus_id", "passage_id"),
}
_ABSENT = {"title": "", "grade": 1}  # of columns that a dataset may lack; NanoBEIR judges without grades


def read_huggingface(source: config.HuggingFace, seed: int, spool: Path) -> Collection:
    if source.layout == "beir":
        return _read_beir(source)
    parser = RowParser(source.layout, source.columns, Path(source.dataset), first_is_positive=source.first_is_positive)
    loaded = _load(source, source.config)
    if isinstance(loaded, datasets.DatasetDict):
        for name, dataset in loaded.items():
            if name != source.split:
                parser.unread.add("split", str(name), len(dataset))
    rows = _raw_rows(_split_of(loaded, source, source.split))
    return collection_from_rows(parse_all(parser, rows), parser, source, spool, seed)


def dataset_head(source: config.HuggingFace, rows: int) -> tuple[dict[str, int], list[tuple[int, dict[str, Any]]]]:
    """The splits of a saved dataset with their numbers of rows, and the first rows (number, fields) of its split."""
    loaded = _load(source, source.config)
    splits = {name: len(split) for name, split in loaded.items()} if isinstance(loaded, datasets.DatasetDict) else {}
    split = source.split if source.split in splits or not splits else next(iter(splits))
    dataset = _split_of(loaded, source, split)
    return splits or {source.split: len(dataset)}, list(itertools.islice(_raw_rows(dataset), rows))


def _raw_rows(dataset: datasets.Dataset) -> RawRows:
    for start, table in _tables(dataset):
        yield from enumerate(table.to_pylist(), start=start + 1)


def _read_beir(source: config.HuggingFace) -> Collection:
    """Read configurations (or folders) corpus and queries; judgements are in `qrels`, `default`, or `<name>-qrels`."""
    qrels = _qrels(source)
    queries = _load_one(source, "queries")
    return Collection(
        passages=_batches(_load_one(source, "corpus"), PASSAGES, _PASSAGE_NAMES, source),
        queries={split: _judged_queries(queries, dataset, source) for split, dataset in qrels.items()},
        judgements={split: _batches(dataset, JUDGEMENTS, _JUDGEMENT_NAMES, source) for split, dataset in qrels.items()},
    )


def unjudged_queries(source: config.HuggingFace) -> Batches:
    """The queries of the dataset that no split of its judgements judges, whether it is read or not."""
    loaded = _load_qrels(source)
    splits = [loaded] if isinstance(loaded, datasets.Dataset) else list(loaded.values())
    judged = pa.chunked_array([_judged_ids(qrels, source) for qrels in splits], pa.large_string()).unique()
    for batch in _batches(_load_one(source, "queries"), QUERIES, _QUERY_NAMES, source):
        yield without_ids(batch, judged)


def _judged_queries(queries: datasets.Dataset, qrels: datasets.Dataset, source: config.HuggingFace) -> Batches:
    judged = _judged_ids(qrels, source)
    for batch in _batches(queries, QUERIES, _QUERY_NAMES, source):
        yield batch.filter(pc.is_in(batch.column("id"), value_set=judged))


def _judged_ids(qrels: datasets.Dataset, source: config.HuggingFace) -> pa.Array:
    batches = _batches(qrels, JUDGEMENTS, _JUDGEMENT_NAMES, source)
    return pa.chunked_array([batch.column("query_id") for batch in batches], pa.large_string()).unique()


def _tables(dataset: datasets.Dataset) -> Iterator[tuple[int, pa.Table]]:
    """Yield (first row, rows) in pieces."""
    for start in range(0, len(dataset), _BATCH_ROWS):
        yield start, dataset.with_format("arrow")[start : start + _BATCH_ROWS]


def _batches(dataset: datasets.Dataset, schema: pa.Schema, names: Names, source: config.HuggingFace) -> Batches:
    """The dataset's columns under our names and types; the row number, from 1, takes the place of the line."""
    column_of = {ours: _column_name(dataset, ours, theirs, source) for ours, theirs in names.items()}
    schema = schema.with_metadata({"path": source.dataset})
    for start, table in _tables(dataset):
        columns = []
        for field in schema:
            name = column_of.get(field.name)
            if field.name == "line":
                columns.append(pa.array(range(start + 1, start + 1 + len(table)), pa.int64()))
            elif name is None:  # a corpus without titles, judgements without grades
                columns.append(pa.array([_ABSENT[field.name]] * len(table), field.type))
            else:
                column = table.column(name).combine_chunks()
                columns.append(_checked_column(column, field, name, source.dataset, start))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _column_name(
    dataset: datasets.Dataset, ours: str, theirs: tuple[str, ...], source: config.HuggingFace
) -> str | None:
    """The dataset's name of one of our columns: the recipe's, or a usual one; None for an absent title or grade."""
    if ours in source.columns:
        theirs = (source.columns[ours] or "",)  # never null in this layout
    name = next((name for name in theirs if name in dataset.column_names), None)
    nothing_else = len(dataset.column_names) == len(_JUDGEMENT_NAMES) - 1  # so that no column can hold the grades
    absent = ours == "title" or (ours == "grade" and nothing_else)
    if name is None and (not absent or ours in source.columns):
        raise DataError(
            f"missing (there are {', '.join(dataset.column_names)}); name the right column in "
            f"data.source.columns.{ours}",
            path=source.dataset,
            field=theirs[0],
        )
    return name


def _checked_column(column: pa.Array, field: pa.Field, name: str, dataset: str, start: int) -> pa.Array:
    """Cast a column, whose first row is row `start` of the dataset, to our type. Only titles may be null."""
    if column.null_count and field.name != "title":
        row = int(pc.index(column.is_null(), True).as_py())
        raise Location(dataset, start + 1 + row).error("missing", name)
    try:
        column = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        row = next(row for row in range(len(column)) if not _casts(column.slice(row, 1), field.type))
        wanted = "a whole number of 32 bits" if pa.types.is_integer(field.type) else "a text"
        message = f"expected {wanted}, found {column[row].as_py()!r:.80}"
        raise Location(dataset, start + 1 + row).error(message, name) from None
    return pc.fill_null(column, "") if column.null_count else column


def _casts(column: pa.Array, type_: pa.DataType) -> bool:
    try:
        column.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _qrels(source: config.HuggingFace) -> dict[str, datasets.Dataset]:
    """Map our splits to their judgements."""
    loaded = _load_qrels(source)
    if isinstance(loaded, datasets.Dataset):
        return {"test": loaded}
    splits = {ours: loaded[name] for ours, names in _SPLITS.items() for name in names if name in loaded}
    if not splits:
        raise DataError(f"no judgements for train, dev or test (there are {', '.join(loaded)})", path=source.dataset)
    return splits


def _load_qrels(source: config.HuggingFace) -> datasets.Dataset | datasets.DatasetDict:
    """The judgements of all splits, wherever this dataset keeps them."""
    if Path(source.dataset).is_dir():
        return _load(source, "qrels")
    # mteb keeps judgements in the default configuration, BeIR in a separate dataset
    try:
        available = datasets.get_dataset_config_names(source.dataset, revision=source.revision)
        name = next((name for name in ("qrels", "default") if name in available), None)
        return (
            datasets.load_dataset(source.dataset, name, revision=source.revision)
            if name
            else datasets.load_dataset(f"{source.dataset}-qrels")
        )
    except Exception as error:  # as above
        raise DataError(f"its judgements cannot be loaded: {error}", path=source.dataset) from error


def _load(source: config.HuggingFace, name: str | None) -> datasets.Dataset | datasets.DatasetDict:
    """One configuration of the dataset: with its splits, or a single table."""
    folder = Path(source.dataset)
    try:
        if not folder.is_dir():
            return datasets.load_dataset(source.dataset, name, revision=source.revision)
        folder = folder / name if name else folder
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder))
    except Exception as error:  # of damaged files, anything
        raise DataError(f"can't load {name or 'the dataset'}: {error}", path=source.dataset) from error


def _load_one(source: config.HuggingFace, name: str | None, split: str | None = None) -> datasets.Dataset:
    """One split of a configuration; the first one if `split` is None."""
    return _split_of(_load(source, name), source, split)


def _split_of(
    loaded: datasets.Dataset | datasets.DatasetDict, source: config.HuggingFace, split: str | None
) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        return loaded
    wanted = split if split is not None else next(iter(loaded))
    if wanted not in loaded:
        raise DataError(
            f"no split {wanted!r} (there are {', '.join(loaded)}); name one in data.source.split",
            path=source.dataset,
            field="split",
        )
    return loaded[wanted]
