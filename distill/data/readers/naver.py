"""Hard negatives with scores beside a BEIR or MS MARCO folder: naver's `{qid: {did: score}}`, or a TREC run.

naver's file for MS MARCO is one JSON object of gigabytes, so it is parsed one query at a time.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from distill import config
from distill.data.readers.base import LISTS, Collection, batches_of, is_score, lines_of, reading, score_fault
from distill.data.readers.beir import beir_files, read_beir
from distill.data.readers.msmarco import msmarco_files, read_msmarco
from distill.errors import DataError

_READ_BYTES = 1 << 20
_VALUE_LIMIT = 1 << 26  # characters of one query's object
_BATCH_QUERIES = 2048  # with hundreds of passages each
_SPACE = " \t\r\n"


def read_naver(source: config.NaverScores) -> Collection:
    inner = (
        read_beir(source.collection) if isinstance(source.collection, config.Beir) else read_msmarco(source.collection)
    )
    rows = _json_rows(source.scores) if ".json" in source.scores.suffixes else _run_rows(source.scores)
    lists = batches_of(rows, LISTS, source.scores, _BATCH_QUERIES)
    return Collection(inner.passages, inner.queries, inner.judgements, {"train": lists})


def naver_files(source: config.NaverScores) -> list[Path]:
    """Every file that the collection is read from."""
    inner = source.collection
    return [*(beir_files(inner) if isinstance(inner, config.Beir) else msmarco_files(inner)), source.scores]


def _json_rows(path: Path) -> Iterator[tuple]:
    for query, scores in json_object_items(path):
        if not isinstance(scores, dict) or not scores:
            raise DataError(f"query {query!r}: expected an object of passage id -> score", path=path)
        for passage, score in scores.items():
            if not is_score(score):
                raise DataError(f"query {query!r}, passage {passage!r}: {score_fault(score)}", path=path, field="score")
        yield query, list(scores), None, list(scores.values()), None


def _run_rows(path: Path) -> Iterator[tuple]:
    """TREC run lines `query Q0 document rank score tag`, those of one query together."""
    for query, group in itertools.groupby(run_lines(path), key=lambda row: row[0]):
        rows = list(group)
        yield query, [row[1] for row in rows], None, [row[2] for row in rows], rows[0][3]


def run_lines(path: Path) -> Iterator[tuple[str, str, float, int]]:
    """(query id, passage id, score, line number) of every line of a TREC run."""
    for line, content in lines_of(path):
        parts = content.split()
        if len(parts) != 6:
            raise DataError(f"expected the 6 columns of a TREC run, found {len(parts)}", path=path, line=line)
        try:
            score = float(parts[4])
        except ValueError:
            raise DataError(f"{parts[4]!r} is not a number", path=path, line=line, field="score") from None
        if not is_score(score):
            raise DataError(score_fault(score), path=path, line=line, field="score")
        yield parts[0], parts[2], score, line


def json_object_items(path: Path) -> Iterator[tuple[str, object]]:
    """(key, value) of the one object in a JSON file, plain or gzipped, with memory for one value only."""
    decode = json.JSONDecoder().raw_decode
    with reading(path):
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as raw:
                buffer = _Buffer(io.TextIOWrapper(raw, encoding="utf-8"))
                buffer.expect("{")
                if buffer.peek() == "}":
                    return
                while True:
                    key = buffer.value(decode)
                    buffer.expect(":")
                    yield str(key), buffer.value(decode)
                    if buffer.peek() != ",":
                        break
                    buffer.expect(",")
                buffer.expect("}")
        except UnicodeDecodeError as error:
            raise DataError(f"not valid UTF-8: {error.reason}", path=path) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"damaged gzip file: {error}", path=path) from None
        except _Malformed as error:
            raise DataError(f"not valid JSON: {error}", path=path) from None


class _Malformed(Exception):
    pass


class _Buffer:
    """A window over a text stream, from which JSON values are taken off the front."""

    def __init__(self, stream: io.TextIOBase):
        self._stream, self._text, self._at, self._dropped = stream, "", 0, 0

    def peek(self) -> str:
        """The next character that isn't a blank; "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise _Malformed(
                f"expected {character!r} at character {self._dropped + self._at + 1}, "
                f"found {found or 'the end of the file'!r}"
            )
        self._at += 1

    def value(self, decode) -> object:
        self.peek()
        while True:
            # a value is surely whole once its closing mark is in the window: don't decode half objects again and again
            opener = self._text[self._at : self._at + 1]
            closer = {"{": "}", "[": "]", '"': '"'}.get(opener, "")
            if not closer or self._text.find(closer, self._at + 1) >= 0:
                try:
                    value, self._at = decode(self._text, self._at)
                    return value
                except json.JSONDecodeError as error:
                    problem = f"{error.msg} at character {self._dropped + error.pos + 1}"
                except (ValueError, RecursionError) as error:  # a number of thousands of digits; objects in objects
                    raise _Malformed(f"{error}, at character {self._dropped + self._at + 1}") from None
            else:
                problem = "the file ends inside a value"
            # a fault in the middle of the file must not pull the rest of it into memory
            if len(self._text) - self._at > _VALUE_LIMIT or not self._more():
                raise _Malformed(problem)

    def _more(self) -> bool:
        block = self._stream.read(_READ_BYTES)
        self._dropped += self._at
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)
