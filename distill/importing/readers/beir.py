"""BEIR's layout: corpus.jsonl, queries.jsonl, and one file of judgements per split in qrels/."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from distill import config
from distill.errors import DataError
from distill.importing.readers.base import (
    PASSAGES,
    QUERIES,
    Batches,
    Collection,
    Location,
    Unread,
    batches_of,
    id_field,
    json_lines,
    other_files,
    require_file,
    text_field,
    without_ids,
)
from distill.importing.readers.qrels import find_qrels, judged_ids, qrels_files, read_qrels

log = logging.getLogger(__name__)

_ID = ("_id", "id")
_CORPUS = {  # our field -> BEIR's name, then those of Anserini, Pyserini, TREC and other collections
    "id": (*_ID, "docid", "doc_id", "docno", "pid", "passage_id"),
    "title": ("title",),
    "text": ("text", "contents", "content", "body", "passage", "segment"),
}
_QUERIES = {
    "query_id": (*_ID, "query_id", "qid", "query-id", "topic_id"),
    "query": ("text", "query", "question", "contents"),
}


def read_beir(source: config.Beir) -> Collection:
    """Read a BEIR folder. Without judgements the passages alone are a collection, and queries.jsonl is not read."""
    corpus = require_file(source.path, "corpus.jsonl")
    qrels = beir_qrels(source)
    queries = require_file(source.path, "queries.jsonl") if qrels else None
    unread = other_files(source.path, beir_files(source))
    splits: dict[str, Batches] = {}
    if queries is not None:
        for split, path in qrels.items():  # the fields of the one file of queries are counted once
            splits[split] = _judged_queries(queries, path, source, Unread() if splits else unread)
    return Collection(
        passages=batches_of(_passages(corpus, source, unread), PASSAGES, corpus),
        queries=splits,
        judgements={split: read_qrels(path) for split, path in qrels.items()},
        unread=unread,
    )


def beir_files(source: config.Beir) -> list[Path]:
    """List every file that the collection is read from."""
    corpus, qrels = require_file(source.path, "corpus.jsonl"), beir_qrels(source)
    queries = [require_file(source.path, "queries.jsonl")] if qrels else []
    return [corpus, *queries, *qrels.values()]


def unjudged_queries(source: config.Beir, unread: Unread) -> Batches:
    """The queries of queries.jsonl that no file in qrels/ judges, whether it is a split's or not."""
    path, *qrels = queries_files(source)
    judged = judged_ids(qrels)
    counted = Unread() if beir_qrels(source) else unread  # its fields are counted once
    for batch in batches_of(_queries(path, source, counted), QUERIES, path):
        yield without_ids(batch, judged)


def queries_files(source: config.Beir) -> list[Path]:
    """List queries.jsonl, then every file of judgements, whatever its split."""
    return [require_file(source.path, "queries.jsonl"), *qrels_files(source.path / "qrels")]


def beir_qrels(source: config.Beir) -> dict[config.Split, Path]:
    """Map our splits to their files of judgements.

    A split that the recipe names must have its file (`DataError`); one of the default splits may lack it.
    """
    files: dict[config.Split, Path] = {}
    for split, name in source.splits.items():
        path = find_qrels(source.path / "qrels", name)
        if path is not None:
            files[split] = path
        elif "splits" in source.model_fields_set:
            raise DataError(f"no judgements for the {split} split: qrels/{name}.tsv is missing", path=source.path)
    others = sorted(path.name for path in source.path.glob("qrels/*") if not path.name.startswith("."))
    if others and not files and "splits" not in source.model_fields_set:
        raise DataError(
            f"there are judgements in qrels/ ({', '.join(others[:8])}), but for no split of data.source.splits; name "
            "the files there, without their endings",
            path=source.path,
        )
    return files


class _Fields:
    """Reads our fields from the objects of a file, each under the name that the recipe gives or a usual one.

    Names other than BEIR's own are told once.
    """

    def __init__(self, path: Path, usual: dict[str, tuple[str, ...]], source: config.Beir, unread: Unread):
        self._path, self._unread, self._told = path, unread, set[tuple[str, str]]()
        named = {str(ours): theirs for ours, theirs in source.columns.items()}
        self._usual = {ours: (named[ours],) if ours in named else names for ours, names in usual.items()}
        self._named, self._standard = named, {ours: names[0] for ours, names in usual.items()}

    def of(self, row: dict[str, Any], at: Location) -> dict[str, str]:
        """Our field -> its name in this object."""
        found = {}
        for ours, names in self._usual.items():
            name = next((name for name in names if row.get(name) is not None), None)
            if name is None and (ours != "title" or (ours in self._named and names[0] not in row)):
                null = next((name for name in names if name in row), None)
                problem = "null" if null else f"missing (the row has {', '.join(map(repr, row))})"
                raise at.error(f"{problem}; name the right field in data.source.columns.{ours}", null or names[0])
            found[ours] = name or names[0]
            if name and name != self._standard[ours] and (ours, name) not in self._told:
                self._told.add((ours, name))
                log.info("%s: the field %r is read as %s", self._path, name, ours)
        for name, value in row.items():
            if name not in found.values() and value not in (None, "", {}, []):
                self._unread.add(f"field of {_plain(self._path)}", name)
        return found


def _plain(path: Path) -> str:
    return path.name.removesuffix(".gz")


def _passages(path: Path, source: config.Beir, unread: Unread) -> Iterator[tuple]:
    fields = _Fields(path, _CORPUS, source, unread)
    for line, row in json_lines(path):
        at = Location(path, line)
        of = fields.of(row, at)
        yield id_field(row, of["id"], at), text_field(row, of["title"], at, ""), text_field(row, of["text"], at), line


def _queries(path: Path, source: config.Beir, unread: Unread) -> Iterator[tuple]:
    fields = _Fields(path, _QUERIES, source, unread)
    for line, row in json_lines(path):
        at = Location(path, line)
        of = fields.of(row, at)
        yield id_field(row, of["query_id"], at), text_field(row, of["query"], at), line


def _judged_queries(path: Path, qrels: Path, source: config.Beir, unread: Unread) -> Batches:
    # one file holds the queries of all splits; those of a split are the queries that it has judgements of
    judged = judged_ids([qrels])
    for batch in batches_of(_queries(path, source, unread), QUERIES, path):
        yield batch.filter(pc.is_in(batch.column("id"), value_set=judged))
