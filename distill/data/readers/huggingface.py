"""Datasets of the Hugging Face hub, or saved on disk (`save_to_disk`, or a folder of Parquet/JSONL files)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from distill import config
from distill.data.readers.base import JUDGEMENTS, PASSAGES, QUERIES, Batches, Collection
from distill.data.readers.rows import Row, collection_from_rows, row_parser
from distill.errors import DataError

_BATCH_ROWS = 4096
_SPLITS = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}


def read_huggingface(source: config.HuggingFace, seed: int, spool: Path) -> Collection:
    if source.layout == "beir":
        return _read_beir(source)
    rows = _parsed(source)
    return collection_from_rows(rows, Path(source.dataset), spool, seed, source.dev_queries, source.test_queries)


def _parsed(source: config.HuggingFace) -> Iterator[tuple[int, Row]]:
    """(row number from 1, row) of the split."""
    dataset = _load(source, source.config, source.split)
    parse = None
    for start in range(0, len(dataset), _BATCH_ROWS):
        table = dataset.with_format("arrow")[start : start + _BATCH_ROWS]
        for number, row in enumerate(table.to_pylist(), start=start + 1):
            if parse is None:
                parse = row_parser(source.layout, source.columns, row, Path(source.dataset))
            yield number, parse(row, number)
    if parse is None:
        raise DataError("the dataset has no rows", path=source.dataset)


def _read_beir(source: config.HuggingFace) -> Collection:
    """Configurations (or folders) corpus and queries, and the judgements in `qrels`, `default`, or `<name>-qrels`."""
    qrels = _qrels(source)
    queries = _load(source, "queries", None)
    return Collection(
        passages=_batches(
            _load(source, "corpus", None),
            PASSAGES,
            {"id": ("_id", "id"), "title": ("title",), "text": ("text",)},
            source,
        ),
        queries={split: _queries_of(queries, dataset, source) for split, dataset in qrels.items()},
        judgements={split: _judgements(dataset, source) for split, dataset in qrels.items()},
    )


def _queries_of(queries: datasets.Dataset, qrels: datasets.Dataset, source: config.HuggingFace) -> Batches:
    judged = pa.chunked_array(
        [batch.column("query_id") for batch in _judgements(qrels, source)], pa.large_string()
    ).unique()
    for batch in _batches(queries, QUERIES, {"id": ("_id", "id"), "text": ("text", "query")}, source):
        yield batch.filter(pc.is_in(batch.column("id"), value_set=judged))


def _judgements(dataset: datasets.Dataset, source: config.HuggingFace) -> Batches:
    return _batches(
        dataset,
        JUDGEMENTS,
        {
            "query_id": ("query-id", "query_id"),
            "grade": ("score", "grade", "label"),
            "passage_id": ("corpus-id", "corpus_id", "passage_id"),
        },
        source,
    )


def _batches(
    dataset: datasets.Dataset, schema: pa.Schema, names: dict[str, tuple[str, ...]], source: config.HuggingFace
) -> Batches:
    """The dataset's columns under our names and types; the row number, from 1, stands for the line."""
    chosen = {}
    for ours, theirs in names.items():
        candidates = (source.columns[ours],) if ours in source.columns else theirs
        found = next((name for name in candidates if name in dataset.column_names), None)
        if found is None and (ours != "title" or ours in source.columns):
            raise DataError(
                f"missing (there are {', '.join(dataset.column_names)}); name the right one in "
                f"data.source.columns.{ours}",
                path=source.dataset,
                field=candidates[0],
            )
        chosen[ours] = found
    schema = schema.with_metadata({"path": source.dataset})
    for start in range(0, len(dataset), _BATCH_ROWS):
        table = dataset.with_format("arrow")[start : start + _BATCH_ROWS]
        columns = []
        for field in schema:
            name = chosen.get(field.name)
            if field.name == "line":
                column = pa.array(range(start + 1, start + 1 + len(table)), pa.int64())
            elif name is None:  # a corpus without titles
                column = pa.array([""] * len(table), field.type)
            else:
                column = table.column(name).combine_chunks()
                if column.null_count and field.name != "title":
                    row = start + 1 + int(pc.index(column.is_null(), True).as_py())
                    raise DataError("missing", path=source.dataset, line=row, field=name)
                try:
                    column = column.cast(field.type)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                    row = next(row for row in range(len(column)) if not _can_be(column.slice(row, 1), field.type))
                    wanted = "a whole number of 32 bits" if pa.types.is_integer(field.type) else "a text"
                    raise DataError(
                        f"expected {wanted}, found {column[row].as_py()!r:.80}",
                        path=source.dataset,
                        line=start + 1 + row,
                        field=name,
                    ) from None
                column = pc.fill_null(column, "") if column.null_count else column
            columns.append(column)
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _can_be(column: pa.Array, type_: pa.DataType) -> bool:
    try:
        column.cast(type_)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _qrels(source: config.HuggingFace) -> dict[str, datasets.Dataset]:
    """Our split -> judgements, wherever this dataset keeps them."""
    folder = Path(source.dataset)
    if folder.is_dir():
        everything = _load(source, "qrels", None, whole=True)
    else:
        # mteb keeps judgements in the default configuration, BeIR in a dataset of its own
        try:
            available = datasets.get_dataset_config_names(source.dataset, revision=source.revision)
            name = next((name for name in ("qrels", "default") if name in available), None)
            everything = (
                datasets.load_dataset(source.dataset, name, revision=source.revision)
                if name
                else datasets.load_dataset(f"{source.dataset}-qrels")
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"its judgements cannot be loaded: {error}", path=source.dataset) from error
    if isinstance(everything, datasets.Dataset):
        return {"test": everything}
    found = {ours: everything[name] for ours, names in _SPLITS.items() for name in names if name in everything}
    if not found:
        raise DataError(
            f"no judgements for train, dev or test (there are {', '.join(everything)})", path=source.dataset
        )
    return found


def _load(
    source: config.HuggingFace, name: str | None, split: str | None, whole: bool = False
) -> datasets.Dataset | datasets.DatasetDict:
    """One configuration of the dataset; without a split, the only one it has (unless `whole`)."""
    folder = Path(source.dataset)
    try:
        if folder.is_dir():
            folder = folder / name if name else folder
            saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
            loaded = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
        else:
            loaded = datasets.load_dataset(source.dataset, name, revision=source.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"can't load {name or 'the dataset'}: {error}", path=source.dataset) from error
    if whole or isinstance(loaded, datasets.Dataset):
        return loaded
    wanted = split if split is not None else next(iter(loaded))
    if wanted not in loaded:
        raise DataError(f"no split {wanted!r} (there are {', '.join(loaded)})", path=source.dataset, field="split")
    return loaded[wanted]
