"""`distill export-index`: a collection's vectors under a checkpoint, in a search engine's format.

The collection is streamed: memory holds one slab of texts and their vectors. The folder appears whole or not at all.
"""

from __future__ import annotations

import gzip
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.errors import DataError
from distill.evaluation.explain import open_model
from distill.export.index_formats import FORMATS, SCALE, Format, Text, term_names
from distill.importing.readers import open_source
from distill.importing.sniff import sniff
from distill.retrieval.encode import encode_texts
from distill.run.files import new_folder, write_json
from distill.run.layout import SPLITS, run_at
from distill.store.texts import TextStore, passage_text
from distill.student.base import Side, Student

log = logging.getLogger(__name__)
Stream = Iterable[tuple[list[str], list[str]]]  # ids and texts


def export_index(
    checkpoint: str | Path,
    data: Path,
    output: Path,
    *,
    format: str,
    split: str | None = None,
    slab: int = 16_384,
    trust_remote_code: bool = False,
) -> str:
    """Write the passages of a run folder, or of data that `distill init` recognises; returns a summary line.

    `split`: also write the queries of this split; `slab`: number of texts encoded together. Raises `DataError` for an
    output that exists.
    """
    if format not in FORMATS:
        raise DataError(f"format {format!r} is not known; choose one of {', '.join(FORMATS)}")
    if output.exists():
        raise DataError("exists already; choose another name, or remove it", path=output)
    if split is not None and split not in SPLITS:
        raise DataError(f"split {split!r} is not known; choose one of {', '.join(SPLITS)}")
    student, engine = open_model(checkpoint, trust_remote_code=trust_remote_code), FORMATS[format]
    names = term_names(student.term_names(), engine.refused)
    with tempfile.TemporaryDirectory() as spool:
        passages, queries = _streams(data, split, Path(spool))
        with new_folder(output) as folder:
            if engine.setup is not None:
                write_json(folder / engine.setup[0], engine.setup[1])
            written = _write_passages(folder, engine, names, _vectors(student, passages, "passage", slab))
            if queries is not None:
                with _open(folder / engine.queries.format(split=split)) as file:
                    for text in _vectors(student, queries, "query", slab):
                        file.write(engine.query(text, names))
            _write_facts(folder, format, checkpoint, written, names, student.term_names())
    return f"{output}: {written:,} passages" + (f", the {split} queries" if split else "")


def _write_passages(folder: Path, engine: Format, names: list[str], texts: Iterator[Text]) -> int:
    """Write files of `per_file` passages each; returns the number of passages."""
    written = 0
    with ExitStack() as stack:
        for text in texts:
            if written == 0 or (engine.per_file and written % engine.per_file == 0):
                stack.close()
                part = written // engine.per_file if engine.per_file else 0
                file = stack.enter_context(_open(folder / engine.passages.format(part=part)))
            file.write(engine.passage(text, names))
            written += 1
    return written


def _write_facts(
    folder: Path, format: str, checkpoint: str | Path, passages: int, names: list[str], tokens: list[str | None]
) -> None:
    """Write export.json: what was exported, and the tokens that were renamed."""
    facts: dict[str, Any] = {
        "format": format,
        "model": Path(checkpoint).resolve().name,
        "passages": passages,
        "renamed": {
            name: token for name, token in zip(names, tokens, strict=True) if token is not None and name != token
        },
    }
    if format == "anserini":
        facts["scale"] = SCALE
    write_json(folder / "export.json", facts)


def _vectors(student: Student, stream: Stream, side: Side, slab: int) -> Iterator[Text]:
    row = 0
    for ids, texts in _slabs(stream, slab):
        vectors = encode_texts(student, texts, side)
        for i, (name, text) in enumerate(zip(ids, texts, strict=True)):
            at = slice(*vectors.indptr[i : i + 2])
            yield Text(row, name, text, vectors.indices[at], vectors.data[at])
            row += 1
        log.info("%s %s encoded", f"{row:,}", "passages" if side == "passage" else "queries")


def _slabs(stream: Stream, size: int) -> Stream:
    """Regroup a stream into slabs of `size` texts."""
    ids: list[str] = []
    texts: list[str] = []
    for more_ids, more_texts in stream:
        ids += more_ids
        texts += more_texts
        while len(ids) >= size:
            yield ids[:size], texts[:size]
            ids, texts = ids[size:], texts[size:]
    if ids:
        yield ids, texts


def _streams(data: Path, split: str | None, spool: Path) -> tuple[Stream, Stream | None]:
    """The passages, and the queries of a split, from a run's stores or from a source's own files."""
    folder = run_at(data)
    if folder.passages.is_file():
        if split is not None and not folder.queries(split).is_file():
            raise DataError(f"has no {split} queries", path=data)
        return _stored(folder.passages), None if split is None else _stored(folder.queries(split))

    source = open_source(sniff(data).data, 0, spool)
    if split is not None and split not in source.queries:
        raise DataError(f"has no {split} queries", path=data)
    return _read(source.passages), None if split is None else _read(source.queries[split])


def _stored(path: Path) -> Stream:
    store, row = TextStore.open(path), 0
    for texts in store.text_batches(store.collection_size):
        yield store.ids(np.arange(row, row + len(texts))), texts
        row += len(texts)


def _read(batches: Iterable[pa.RecordBatch]) -> Stream:
    for batch in batches:
        text = batch.column("text")
        if "title" in batch.schema.names:
            text = passage_text(batch.column("title"), text)
        yield batch.column("id").to_pylist(), text.to_pylist()


def _open(path: Path) -> io.TextIOWrapper:
    path.parent.mkdir(exist_ok=True)
    return (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="\n")
