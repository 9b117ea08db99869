"""MS MARCO's passage ranking files: collection.tsv, queries.<split>.tsv, qrels.<split>.tsv."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill import config
from distill.data.readers.base import PASSAGES, QUERIES, Collection, batches_of, lines_of, require_file
from distill.data.readers.qrels import read_qrels
from distill.errors import DataError


def read_msmarco(source: config.MsMarco) -> Collection:
    collection = require_file(source.path, "collection.tsv")
    queries = {split: _queries_file(source, name) for split, name in source.splits.items()}
    qrels = {split: require_file(source.path, f"qrels.{name}.tsv") for split, name in source.splits.items()}
    return Collection(
        passages=batches_of(_passages(collection), PASSAGES, collection),
        queries={split: batches_of(_two_columns(path), QUERIES, path) for split, path in queries.items()},
        judgements={split: read_qrels(path) for split, path in qrels.items()},
    )


def msmarco_files(source: config.MsMarco) -> list[Path]:
    """Every file that the collection is read from."""
    return [
        require_file(source.path, "collection.tsv"),
        *(_queries_file(source, name) for name in source.splits.values()),
        *(require_file(source.path, f"qrels.{name}.tsv") for name in source.splits.values()),
    ]


def _queries_file(source: config.MsMarco, name: str) -> Path:
    # the queries of dev.small are also sold inside queries.dev.tsv
    return require_file(source.path, *dict.fromkeys((f"queries.{name}.tsv", f"queries.{name.split('.')[0]}.tsv")))


def _passages(path: Path) -> Iterator[tuple]:
    for identifier, text, line in _two_columns(path):
        yield identifier, "", text, line


def _two_columns(path: Path) -> Iterator[tuple[str, str, int]]:
    for line, content in lines_of(path):
        identifier, tab, text = content.partition("\t")
        if not tab:
            raise DataError("expected an id, a tab and a text", path=path, line=line)
        if not identifier.strip():
            raise DataError("empty id", path=path, line=line, field="id")
        yield identifier.strip(), text, line
