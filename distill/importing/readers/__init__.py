"""One module per kind of source; each yields a `Collection` of record batches, in constant memory.

A new kind of source is a section in `distill.config.data`, a module here with a function that reads it (and one that
lists its files), and a case in `open_source` and `_files`.
"""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

from distill import config
from distill.importing.readers.base import Collection, reading
from distill.importing.readers.beir import beir_files, read_beir
from distill.importing.readers.ir_datasets import read_ir_datasets
from distill.importing.readers.jsonl import read_jsonl
from distill.importing.readers.kinds import check_kind
from distill.importing.readers.msmarco import msmarco_files, read_msmarco
from distill.importing.readers.naver import naver_files, read_naver
from distill.importing.readers.python_docs import python_docs
from distill.run.files import xxh128_file
from distill.store.texts import passage_text

__all__ = ["Collection", "open_source", "read_passages", "source_fields"]


def open_source(data: config.Data, seed: int, spool: Path) -> Collection:
    """Open the streams of a recipe's source. `spool`: an empty folder for temporary files, kept until they are read.

    Raises `DataError` for missing files; errors inside the files are raised while the streams are read.
    """
    check_kind(data.source)
    match data.source:
        case config.Beir() as source:
            return read_beir(source)
        case config.MsMarco() as source:
            return read_msmarco(source)
        case config.Jsonl() as source:
            return read_jsonl(source, seed, spool)
        case config.NaverScores() as source:
            return read_naver(source)
        case config.HuggingFace() as source:
            from distill.importing.readers.huggingface import read_huggingface  # slow to import

            return read_huggingface(source, seed, spool)
        case config.IrDatasets() as source:
            return read_ir_datasets(source)
        case config.PythonDocs() as source:
            return python_docs(source, seed)


def read_passages(data: config.Data) -> tuple[list[str], list[str]]:
    """Read the ids and texts (title and text) of a source's passages into memory: for small collections."""
    ids: list[str] = []
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as spool:
        for batch in open_source(data, 0, Path(spool)).passages:
            ids += batch.column("id").to_pylist()
            texts += passage_text(batch.column("title"), batch.column("text")).to_pylist()
    return ids, texts


def source_fields(source: config.Source) -> dict[str, Any]:
    """Fingerprint inputs of a source: its options and the content of its files, wherever they are.

    A hub dataset is identified by name and revision, the interpreter's documentation by the interpreter's version.
    """
    check_kind(source)
    options = _without_default_columns(source.model_dump(mode="json", exclude={"path", "scores", "collection"}), source)
    files = _files(source)
    if files:
        options["files"] = {_short_name(path, source): _checksum(path) for path in files}
    if isinstance(source, config.PythonDocs):
        options["python"] = platform.python_version()
    if isinstance(source, config.NaverScores):
        inner = source.collection
        options["collection"] = _without_default_columns(inner.model_dump(mode="json", exclude={"path"}), inner)
    return options


def _without_default_columns(options: dict[str, Any], source: config.Source) -> dict[str, Any]:
    """A folder in BEIR's layout read by its usual names is what it was before columns could be named."""
    if isinstance(source, config.Beir) and not source.columns:
        del options["columns"]
    return options


def _files(source: config.Source) -> list[Path]:
    """List the files whose content identifies the source; [] for a source that is not in local files."""
    match source:
        case config.Beir():
            return beir_files(source)
        case config.MsMarco():
            return msmarco_files(source)
        case config.NaverScores():
            return naver_files(source)
        case config.Jsonl():
            return [source.path]
        case config.HuggingFace() if Path(source.dataset).is_dir():
            return sorted(path for path in Path(source.dataset).rglob("*") if path.is_file())
        case _:
            return []


def _short_name(path: Path, source: config.Source) -> str:
    """The name of a file relative to its folder, so that a moved folder is the same source."""
    return str(path.relative_to(source.dataset)) if isinstance(source, config.HuggingFace) else path.name


def _checksum(path: Path) -> str:
    with reading(path):
        return xxh128_file(path)
