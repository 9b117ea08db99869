"""BEIR's layout: corpus.jsonl, queries.jsonl, and one file of judgements per split under qrels/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from distill import config
from distill.data.readers.base import (
    PASSAGES,
    QUERIES,
    Batches,
    Collection,
    batches_of,
    find_file,
    id_field,
    json_lines,
    require_file,
    text_field,
)
from distill.data.readers.qrels import read_qrels
from distill.errors import DataError


def read_beir(source: config.Beir) -> Collection:
    corpus = require_file(source.path, "corpus.jsonl")
    qrels = qrels_files(source)
    queries = require_file(source.path, "queries.jsonl") if qrels else None  # documents alone are a collection, too
    return Collection(
        passages=batches_of(_passages(corpus), PASSAGES, corpus),
        queries={split: _judged_queries(queries, path) for split, path in qrels.items()},
        judgements={split: read_qrels(path) for split, path in qrels.items()},
    )


def qrels_files(source: config.Beir) -> dict[str, Path]:
    """Our split -> its file of judgements. Splits that the recipe names itself must be there; the defaults may not."""
    found = {}
    for split, name in source.splits.items():
        path = find_file(source.path / "qrels", f"{name}.tsv")
        if path is not None:
            found[split] = path
        elif "splits" in source.model_fields_set:
            raise DataError(f"no judgements for the {split} split: qrels/{name}.tsv is missing", path=source.path)
    return found


def beir_files(source: config.Beir) -> list[Path]:
    """Every file that the collection is read from."""
    corpus, qrels = require_file(source.path, "corpus.jsonl"), qrels_files(source)
    return [corpus, *([require_file(source.path, "queries.jsonl")] if qrels else []), *qrels.values()]


def _passages(path: Path) -> Iterator[tuple]:
    for line, row in json_lines(path):
        yield (
            id_field(row, "_id", path, line),
            text_field(row, "title", path, line, ""),
            text_field(row, "text", path, line),
            line,
        )


def _queries(path: Path) -> Iterator[tuple]:
    for line, row in json_lines(path):
        yield id_field(row, "_id", path, line), text_field(row, "text", path, line), line


def _judged_queries(path: Path, qrels: Path) -> Batches:
    # one file holds the queries of all splits: those of a split are the ones its judgements name
    judged = pa.chunked_array(
        [batch.column("query_id").unique() for batch in read_qrels(qrels)], pa.large_string()
    ).unique()
    for batch in batches_of(_queries(path), QUERIES, path):
        yield batch.filter(pc.is_in(batch.column("id"), value_set=judged))
