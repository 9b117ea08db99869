"""Scored hard negatives for a BEIR or MS MARCO folder: naver's `{qid: {did: score}}` (JSON, pickle), or a TREC run.

naver's file for MS MARCO is one JSON object of gigabytes, so it is parsed one query at a time.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from distill import config
from distill.errors import DataError
from distill.importing.readers.base import (
    LISTS,
    Collection,
    Location,
    batches_of,
    checked_text,
    lines_of,
    number,
    open_text,
    other_files,
    reading,
    trec_columns,
)
from distill.importing.readers.beir import beir_files, read_beir
from distill.importing.readers.msmarco import msmarco_files, read_msmarco
from distill.importing.readers.pickles import is_pickle, read_pickle

_BLOCK = 1 << 20  # characters
_VALUE_LIMIT = 1 << 26  # characters of one query's object
_BATCH_QUERIES = 2048  # each has hundreds of passages
_SPACE = " \t\r\n"


def read_naver(source: config.NaverScores) -> Collection:
    """Read the folder, and the negatives with their scores as lists of the training split."""
    inner = (
        read_beir(source.collection) if isinstance(source.collection, config.Beir) else read_msmarco(source.collection)
    )
    is_object = ".json" in source.scores.suffixes or is_pickle(source.scores)
    rows = _scored_rows(source.scores) if is_object else _run_rows(source.scores)
    lists = batches_of(rows, LISTS, source.scores, _BATCH_QUERIES)
    inner.unread.clear()  # the file of scores may lie in the folder
    inner.unread.update(other_files(source.collection.path, naver_files(source)))
    return Collection(inner.passages, inner.queries, inner.judgements, {"train": lists}, inner.unread)


def naver_files(source: config.NaverScores) -> list[Path]:
    """List every file that the collection is read from."""
    inner = source.collection
    return [*(beir_files(inner) if isinstance(inner, config.Beir) else msmarco_files(inner)), source.scores]


def _scored_rows(path: Path) -> Iterator[tuple]:
    at = Location(path)
    for query, scores in object_items(path):
        if not isinstance(scores, dict) or not scores:
            raise at.error(f"query {query!r}: expected an object of passage id -> score")
        passages, numbers = scored_ids(scores, at, query)
        yield query, passages, None, numbers, None


def _run_rows(path: Path) -> Iterator[tuple]:
    """Yield one list for consecutive lines of a query. The import joins the lists of a query."""
    for query, passages, scores, line in run_lists(path):
        yield query, passages, None, scores, line


def object_items(path: Path) -> Iterator[tuple[str, object]]:
    """Yield (key, value) of the one object in a JSON file or a pickle. A pickle is read whole, into memory."""
    if not is_pickle(path):
        yield from json_object_items(path)
        return
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"expected a dict of query ids, found {type(content).__name__}", path=path)
    for key, value in content.items():
        yield plain_id(key, Location(path), "query id"), value


def scored_ids(scores: dict, at: Location, query: str) -> tuple[list[str], list[float]]:
    """Return the ids and the scores of `{did: score}`. Raises `DataError` for a value that is no score."""
    ids = [plain_id(passage, at, query) for passage in scores]
    return ids, [number(score, at, f"{query}.{passage}") for passage, score in scores.items()]


def plain_id(value: object, at: Location, field: str) -> str:
    """An id as a string: a JSON key is one already, in lists and in pickles ids may be integers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise at.error(f"{value!r:.80} is no id, which is a string or an integer", field)
    return checked_text(value, at, field)


def run_lists(path: Path) -> Iterator[tuple[str, list[str], list[float], int]]:
    """Yield (query id, passage ids, scores, number of the first line) for consecutive lines of a query in a TREC run.

    No line is left out between the first one and the last: that of each passage follows from the first one's.
    """
    rows = enumerate(run_lines(path))
    for (query, _), group in itertools.groupby(rows, key=lambda item: (item[1][0], item[1][3] - item[0])):
        _, passages, scores, lines = zip(*(row for _, row in group), strict=True)
        yield query, list(passages), list(scores), lines[0]


def run_lines(path: Path) -> Iterator[tuple[str, str, float, int]]:
    """Yield (query id, passage id, score, line number) of a TREC run: `query Q0 document rank score tag`."""
    for line, content in lines_of(path):
        at, parts = Location(path, line), trec_columns(content)
        if len(parts) != 6:
            raise at.error(f"expected the 6 columns of a TREC run, found {len(parts)}")
        yield parts[0], parts[2], number(parts[4], at, "score"), line


def json_object_items(path: Path, block: int = _BLOCK) -> Iterator[tuple[str, object]]:
    """Yield (key, value) of a JSON file that holds one object, plain or gzipped, with memory for one value at a time.

    `block`: characters that are read at once.
    """
    decode = json.JSONDecoder().raw_decode
    with reading(path):
        try:
            with open_text(path) as raw:
                buffer = _Buffer(io.TextIOWrapper(raw, encoding="utf-8-sig"), block)
                buffer.expect("{")
                more = buffer.peek() != "}"
                while more:
                    if buffer.peek() != '"':
                        buffer.expect('"')
                    key = buffer.value(decode)
                    buffer.expect(":")
                    yield str(key), buffer.value(decode)
                    more = buffer.peek() == ","
                    if more:
                        buffer.expect(",")
                buffer.expect("}")
                if buffer.peek():
                    raise _Malformed(f"there is more after the object, at character {buffer.position}")
        except UnicodeDecodeError as error:
            raise DataError(f"not valid UTF-8: {error.reason}", path=path) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"damaged gzip file: {error}", path=path) from None
        except _Malformed as error:
            raise DataError(f"not valid JSON: {error}", path=path) from None


class _Malformed(Exception):
    pass


class _Buffer:
    """A window over a text stream; JSON values are taken off its front."""

    def __init__(self, stream: io.TextIOBase, block: int):
        self._stream, self._block = stream, block
        self._text, self._at, self._dropped = "", 0, 0  # the window, our position in it, characters before it

    @property
    def position(self) -> int:
        """The place of the next character in the file, from 1."""
        return self._position(self._at)

    def peek(self) -> str:
        """Skip blanks and return the next character; "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._read():
                return self._text[self._at : self._at + 1]

    def expect(self, character: str) -> None:
        """Take one character off the front. Raises `_Malformed` for another one."""
        following = self.peek()
        if following != character:
            raise _Malformed(
                f"expected {character!r} at character {self._position(self._at)}, "
                f"found {following or 'the end of the file'!r}"
            )
        self._at += 1

    def value(self, decode: Callable[[str, int], tuple[object, int]]) -> object:
        """Take one JSON value off the front."""
        self.peek()
        while True:
            # decode only once the closing mark is in the window, or an object would be decoded anew for every block
            opener = self._text[self._at : self._at + 1]
            closer = {"{": "}", "[": "]", '"': '"'}.get(opener, "")
            if not closer or self._text.find(closer, self._at + 1) >= 0:
                try:
                    value, self._at = decode(self._text, self._at)
                    return value
                except json.JSONDecodeError as error:
                    problem = f"{error.msg} at character {self._position(error.pos)}"
                except (ValueError, RecursionError) as error:  # a number with thousands of digits; deep nesting
                    raise _Malformed(f"{error}, at character {self._position(self._at)}") from None
            else:
                problem = "the file ends inside a value"
            # the limit keeps an error in mid-file from pulling the rest of the file into memory
            if len(self._text) - self._at > _VALUE_LIMIT or not self._read():
                raise _Malformed(problem)

    def _position(self, at: int) -> int:
        """The place of a character of the window in the file, from 1."""
        return self._dropped + at + 1

    def _read(self) -> bool:
        """Append a block to the window and drop what was taken; False at the end of the file."""
        block = self._stream.read(self._block)
        self._dropped += self._at
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)
