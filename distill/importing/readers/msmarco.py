"""MS MARCO's ranking files: collection.tsv of passages or documents, queries.<split>.tsv, qrels.<split>.tsv."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    lines_of,
    other_files,
    require_file,
    without_ids,
)
from distill.importing.readers.qrels import find_qrels, judged_ids, qrels_files, read_qrels
from distill.importing.readers.tables import cells_of, dialect_of

log = logging.getLogger(__name__)

_HEAD_LINES = 1000
_ID_NAMES = {"id", "docid", "docno", "did", "pid", "passageid", "documentid", "corpusid", "qid", "queryid", "topicid"}
_TEXT_NAMES = {
    "text",
    "passage",
    "passagetext",
    "body",
    "contents",
    "content",
    "document",
    "query",
    "querytext",
    "question",
}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|www\.", re.IGNORECASE)


def read_msmarco(source: config.MsMarco) -> Collection:
    collection = require_file(source.path, "collection.tsv")
    queries = {split: _queries_file(source, name) for split, name in source.splits.items()}
    unread = other_files(source.path, msmarco_files(source))
    return Collection(
        passages=batches_of(_rows(collection, unread), PASSAGES, collection),
        queries={split: batches_of(_queries(path, unread), QUERIES, path) for split, path in queries.items()},
        judgements={split: read_qrels(path) for split, path in msmarco_qrels(source).items()},
        unread=unread,
    )


def msmarco_files(source: config.MsMarco) -> list[Path]:
    """List every file that the collection is read from."""
    return [
        require_file(source.path, "collection.tsv"),
        *(_queries_file(source, name) for name in source.splits.values()),
        *msmarco_qrels(source).values(),
    ]


def unjudged_queries(source: config.MsMarco) -> Batches:
    """The queries of the training split's file that no file of judgements judges.

    Raises `DataError` if the recipe names no training split.
    """
    if "train" not in source.splits:
        raise DataError(
            "no training split, whose queries without judgements would be the log; name a file in data.query_log.path",
            field="data.source.splits",
        )
    path = _queries_file(source, source.splits["train"])
    judged = judged_ids(log_qrels(source))
    for batch in batches_of(_queries(path, Unread()), QUERIES, path):
        yield without_ids(batch, judged)


def log_qrels(source: config.MsMarco) -> list[Path]:
    """List every file of judgements, whatever its split."""
    return qrels_files(source.path, "qrels.*")


def msmarco_qrels(source: config.MsMarco) -> dict[config.Split, Path]:
    """Map our splits to their files of judgements. Raises `DataError` for a missing one."""
    files = {}
    for split, name in source.splits.items():
        path = find_qrels(source.path, f"qrels.{name}")
        files[split] = path or require_file(source.path, f"qrels.{name}.tsv")
    return files


def _queries_file(source: config.MsMarco, name: str) -> Path:
    # queries.dev.tsv also contains the queries of dev.small
    return require_file(source.path, *dict.fromkeys((f"queries.{name}.tsv", f"queries.{name.split('.')[0]}.tsv")))


@dataclass(frozen=True)
class TextColumns:
    """The columns of a file of texts: places of id, title (None: no titles) and text, and the names of all."""

    names: tuple[str, ...]
    id: int
    title: int | None
    text: int
    has_header: bool


_PASSAGES = TextColumns(("id", "text"), 0, None, 1, has_header=False)
_DOCUMENTS = TextColumns(("id", "url", "title", "body"), 0, 2, 3, has_header=False)


def text_columns_of(path: Path) -> TextColumns:
    """Decide by a file's first lines: an id and a text; the documents' id, URL, title and body; or a header line.

    Raises `DataError` for other columns without a header line, and for a header line without an id or a text.
    """
    head = [cells for _, cells in itertools.islice(_cells(path), _HEAD_LINES)]
    if not head:
        return _PASSAGES
    first, width = head[0], min(map(len, head))
    names = [re.sub("[^a-z]", "", cell.lower()) for cell in first]
    if len(first) > 1 and any(name in _ID_NAMES for name in names) and any(name in _TEXT_NAMES for name in names):
        return _header_columns(path, first, names)
    if len(first) > 1 and names[0] in _ID_NAMES:
        raise Location(path, 1).error(
            f"a header line ({', '.join(map(repr, first))}) without a column of texts; name it "
            "'text', or remove the line"
        )
    if width <= 2:
        return _PASSAGES
    if width == 4 and all(not cells[1] or _URL.match(cells[1]) for cells in head):
        log.info("%s: MS MARCO's documents, with the columns id, URL, title and body", path)
        return _DOCUMENTS
    raise Location(path, 1).error(
        f"{width} columns; expected an id and a text, or the four of MS MARCO's documents (id, URL, title, body). For "
        "others, add a header line with the names id, title and text"
    )


def _header_columns(path: Path, first: list[str], names: list[str]) -> TextColumns:
    places = {
        ours: next((i for i, name in enumerate(names) if name in usual), None)
        for ours, usual in (("id", _ID_NAMES), ("title", {"title"}), ("text", _TEXT_NAMES))
    }
    if len(names) > len(set(names)):
        raise Location(path, 1).error(f"a header line that repeats a name: {', '.join(map(repr, first))}")
    identifier, title, text = places["id"], places["title"], places["text"]
    assert identifier is not None and text is not None  # the caller has seen both
    log.info("%s: the first line is a header: %s", path, ", ".join(first))
    return TextColumns(tuple(first), identifier, title, text, has_header=True)


def _rows(path: Path, unread: Unread) -> Iterator[tuple[str, str, str, int]]:
    """Yield (id, title, text, line) of a file of texts."""
    columns = text_columns_of(path)
    width = len(columns.names)
    read = {columns.id, columns.title, columns.text}
    others = [(i, f"column of {path.name}", name) for i, name in enumerate(columns.names) if i not in read]
    for line, cells in itertools.islice(_cells(path), int(columns.has_header), None):
        if len(cells) > width and columns.text == width - 1:  # the last column is the text, with tabs in it
            cells[width - 1 :] = ["\t".join(cells[width - 1 :])]
        if len(cells) != width:
            wanted = "an id, a tab and a text" if width == 2 else f"{width} columns ({', '.join(columns.names)})"
            raise Location(path, line).error(f"expected {wanted}, found {len(cells)} columns")
        if not cells[columns.id].strip():
            raise Location(path, line).error("empty id", "id")
        for place, kind, name in others:
            if cells[place]:
                unread.add(kind, name)
        title = "" if columns.title is None else cells[columns.title]
        yield cells[columns.id].strip(), title, cells[columns.text], line


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells). Unless a program has quoted the file, every tab separates and every other mark is text."""
    if dialect_of(path).quoted:
        yield from cells_of(path)
    else:
        yield from ((line, content.split("\t")) for line, content in lines_of(path))


def _queries(path: Path, unread: Unread) -> Iterator[tuple[str, str, int]]:
    for identifier, title, text, line in _rows(path, unread):
        if title:
            unread.add(f"column of {path.name}", "title")
        yield identifier, text, line
