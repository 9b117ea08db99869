"""Which kind of source reads what lies at a path: for `distill init`, and for a recipe that names another kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill import config
from distill.errors import DataError
from distill.importing.readers.base import find_file, reading

ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Place:
    """A kind of source, and the path that it takes: a file in the folder that was looked at, for one file of rows."""

    kind: Literal["beir", "msmarco", "huggingface", "jsonl"]
    path: Path

    def __str__(self) -> str:
        field = "dataset" if self.kind == "huggingface" else "path"
        return f"{{kind: {self.kind}, {field}: {self.path}}}"


def place_of(path: Path) -> Place | None:
    """Look at the names of files alone; None if nothing is recognised."""
    path = Path(path)
    if path.is_file():
        return Place("jsonl", path) if is_rows(path) else None
    if not path.is_dir():
        return None
    if find_file(path, "corpus.jsonl"):
        return Place("beir", path)
    if find_file(path, "collection.tsv"):
        return Place("msmarco", path)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return Place("huggingface", path)
    files = [file for file in sorted(path.iterdir()) if is_rows(file)]
    if len(files) == 1:
        return Place("jsonl", files[0])
    shards = files or sorted(path.glob("data/*.parquet"))
    if len({file.suffix for file in shards}) == 1 and len(shards) > 1 and shards[0].suffix != ".gz":
        return Place("huggingface", path)  # `datasets` takes a folder of files for one table
    return None


def is_rows(path: Path) -> bool:
    """Whether a path is a file of rows by its name."""
    return path.is_file() and path.name.removesuffix(".gz").endswith(ROW_SUFFIXES)


def check_kind(source: config.Source) -> None:
    """Raise `DataError` for a folder where the kind reads a file, the reverse, and a folder of another kind.

    The message names the source that reads what is there.
    """
    match source:
        case config.NaverScores():
            check_kind(source.collection)
            _check(source.kind, source.scores, wants_file=True, hint=" of scores in data.source.scores")
        case config.Jsonl():
            _check(source.kind, source.path, wants_file=True)
        case config.Beir() | config.MsMarco():
            _check(source.kind, source.path, wants_file=False)
        case config.HuggingFace() if (path := Path(source.dataset)).exists():
            _check(source.kind, path, wants_file=False)
        case _:
            pass


def _check(kind: str, path: Path, *, wants_file: bool, hint: str = "") -> None:
    with reading(path):
        place = place_of(path)
    reads = f"; data.source: {place} reads it" if place is not None and kind != "naver" else ""
    if path.is_dir() and wants_file:
        raise DataError(f"is a folder, but kind: {kind} reads one file{hint}{reads}", path=path)
    if path.is_file() and not wants_file:
        raise DataError(f"is a file, but kind: {kind} reads a folder{reads}", path=path)
    if place is None or wants_file or place.kind == kind:
        return
    if kind != "huggingface" or place.kind in ("beir", "msmarco"):
        raise DataError(f"kind: {kind} does not read this folder{reads}", path=path)
