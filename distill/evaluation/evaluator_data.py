"""Texts and labels for sentence-transformers' evaluators, from a file, a folder saved by `datasets` or the hub.

Columns follow the convention of its trainers: texts by position, the label by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from distill.config.evaluators import Evaluator, OfAFile
from distill.errors import DataError
from distill.importing.readers.base import Location, number
from distill.importing.readers.tables import is_table, table_rows
from distill.run.files import xxh128_file
from distill.run.fingerprint import fingerprint

_LABELS = ("label", "labels", "score", "scores")
_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def read_texts(entry: OfAFile) -> tuple[list[str], list[str]]:
    """Read the two text columns that an evaluator compares; `mse` may use one column for both. Raises `DataError`."""
    dataset = _load(entry)
    columns = list(entry.columns) or [name for name in dataset.column_names if name not in _LABELS]
    if entry.kind == "mse" and len(columns) == 1:
        columns *= 2
    missing = [name for name in columns if name not in dataset.column_names]
    if missing or len(columns) < 2:
        problem = f"no column {missing[0]!r}" if missing else "two columns of texts are needed"
        raise DataError(
            f"{problem} (columns: {', '.join(dataset.column_names)}); name them with `columns`", path=entry.data
        )
    if len(dataset) == 0:
        raise DataError("no rows", path=entry.data)
    first, second = (_checked(entry, name, dataset[name][:], str) for name in columns[:2])
    return first, second


def read_labels(entry: OfAFile) -> list[float]:
    """Read the column of labels or scores. Raises `DataError`."""
    dataset = _load(entry)
    name = next((name for name in _LABELS if name in dataset.column_names), None)
    if name is None:
        raise DataError(
            f"no column called {', '.join(_LABELS[:-1])} or {_LABELS[-1]} (columns: "
            f"{', '.join(dataset.column_names)}); rename the one that holds the labels",
            path=entry.data,
        )
    values = dataset[name][:]
    if is_table(Path(entry.data)):  # cells are texts
        values = [
            value if value is None else number(value, Location(entry.data, row), name)
            for row, value in enumerate(values, start=1)
        ]
    labels = _checked(entry, name, values, (int, float))
    if entry.kind == "binary-classification":
        row = next((i for i, label in enumerate(labels) if label not in (0, 1)), None)
        if row is not None:
            raise DataError(f"expected 0 or 1, found {labels[row]:g}", path=entry.data, line=row + 1, field=name)
    return labels


def evaluator_fields(entry: Evaluator) -> dict[str, Any]:
    """Fingerprint inputs of an evaluator: its settings, with local files by content."""
    fields = entry.model_dump(mode="json", exclude={"batch_size"}, exclude_none=True)
    path = Path(fields.get("data", ""))
    if "data" in fields and path.exists():
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        fields["data"] = fingerprint({str(file.relative_to(path)): xxh128_file(file) for file in files})
    return fields


def _checked(entry: OfAFile, name: str, values: list[Any], kind: type | tuple[type, ...]) -> list[Any]:
    for row, value in enumerate(values, start=1):
        if not isinstance(value, kind):
            expected = "a text" if kind is str else "a number"
            raise DataError(f"expected {expected}, found {value!r}", path=entry.data, line=row, field=name)
    return values


def _load(entry: OfAFile) -> datasets.Dataset:
    path = Path(entry.data)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    try:
        if plain.suffix in _READERS or is_table(path):
            if not path.is_file():
                raise DataError("no such file", path=path)
            if is_table(path):
                return _table(path)
            loaded = datasets.load_dataset(_READERS[plain.suffix], data_files=str(path))
        elif path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(entry.data, entry.config, revision=entry.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"cannot be loaded: {error}", path=entry.data) from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    splits = list(loaded)
    split = entry.split or (splits[0] if len(splits) == 1 else None)
    if split not in loaded:
        raise DataError(
            f"no split {split!r}" if split else "several splits: choose one with `split`",
            path=f"{entry.data} (splits: {', '.join(splits)})",
        )
    return loaded[split]


def _table(path: Path) -> datasets.Dataset:
    """Read a CSV or TSV file in the import's dialect: its cells are texts, empty ones null."""
    rows = [{name: value or None for name, value in row.items()} for _, row in table_rows(path)]
    if not rows:
        raise DataError("no rows", path=path)
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})
