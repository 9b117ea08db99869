"""One module per kind of source; each yields a `Collection` of record batches, in constant memory.

`open_source` imports only the module that it needs: some bring heavy libraries.
"""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

from distill import config
from distill.data.files import xxh128_file
from distill.data.readers.base import Collection, reading
from distill.data.texts import passage_text

__all__ = ["Collection", "open_source", "read_passages", "source_fields"]


def open_source(data: config.Data, seed: int, spool: Path) -> Collection:
    """The streams of a recipe's source. `spool`: an empty folder for temporary files, kept until they are read.

    Raises `DataError` for files that are missing; faults inside the files are raised while they are read.
    """
    source = data.source
    if isinstance(source, config.PythonDocs):
        from distill.data.readers.python_docs import python_docs

        return python_docs(source, seed)
    if isinstance(source, config.Beir):
        from distill.data.readers.beir import read_beir

        return read_beir(source)
    if isinstance(source, config.MsMarco):
        from distill.data.readers.msmarco import read_msmarco

        return read_msmarco(source)
    if isinstance(source, config.Jsonl):
        from distill.data.readers.jsonl import read_jsonl

        return read_jsonl(source, seed, spool)
    if isinstance(source, config.NaverScores):
        from distill.data.readers.naver import read_naver

        return read_naver(source)
    if isinstance(source, config.HuggingFace):
        from distill.data.readers.huggingface import read_huggingface

        return read_huggingface(source, seed, spool)
    from distill.data.readers.ir_datasets import read_ir_datasets

    return read_ir_datasets(source)


def read_passages(data: config.Data) -> tuple[list[str], list[str]]:
    """Ids and texts (title and text) of a source's passages, in memory: for a look into a small collection."""
    ids: list[str] = []
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as spool:
        for batch in open_source(data, 0, Path(spool)).passages:
            ids += batch.column("id").to_pylist()
            texts += passage_text(batch.column("title"), batch.column("text")).to_pylist()
    return ids, texts


def source_fields(source: config.Source) -> dict[str, Any]:
    """What the source's content depends on, for a fingerprint: for files their content, wherever they lie.

    A hub dataset is known by name and revision, the interpreter's documentation by the interpreter's version.
    """
    options = source.model_dump(mode="json", exclude={"path", "scores", "collection"})
    files = _files(source)
    if files:
        options["files"] = {_short_name(path, source): _checksum(path) for path in files}
    if isinstance(source, config.PythonDocs):
        options["python"] = platform.python_version()
        if not source.documents_only:  # a later field: without it, what was imported before stays valid
            del options["documents_only"]
    if isinstance(source, config.NaverScores):
        options["collection"] = source.collection.model_dump(mode="json", exclude={"path"})
    return options


def _short_name(path: Path, source: config.Source) -> str:
    """Files of a folder by their place in it: the same data may lie elsewhere tomorrow."""
    return str(path.relative_to(source.dataset)) if isinstance(source, config.HuggingFace) else path.name


def _checksum(path: Path) -> str:
    with reading(path):
        return xxh128_file(path)


def _files(source: config.Source) -> list[Path]:
    from distill.data.readers.beir import beir_files
    from distill.data.readers.msmarco import msmarco_files
    from distill.data.readers.naver import naver_files

    if isinstance(source, config.Beir):
        return beir_files(source)
    if isinstance(source, config.MsMarco):
        return msmarco_files(source)
    if isinstance(source, config.NaverScores):
        return naver_files(source)
    if isinstance(source, config.Jsonl):
        return [source.path]
    if isinstance(source, config.HuggingFace) and Path(source.dataset).is_dir():
        return sorted(path for path in Path(source.dataset).rglob("*") if path.is_file())
    return []
