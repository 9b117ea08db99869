"""Teachers that encode texts apart (bi-encoders, SPLADE): each text is encoded once a run, into chunks on disk.

A passage is a candidate of many queries, in many shards and splits; encoding it in each would cost several times the
job. Which texts form a chunk is planned once and frozen on disk, so vectors, and the scores made of them, repeat to
the byte: a split's chunks hold its queries, and the passages that no split planned before it needs. Whoever needs a
chunk that is not there, or is damaged, makes it, those first that nobody else has in hand; committing is exclusive. The
chunks are a cache: once all is scored, and trained on where a loss takes the vectors themselves, they can go.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash

from distill.data.arrow import RowReader, write_ipc
from distill.data.candidates import iterate_candidates, only_batch
from distill.data.files import locked, read_json, write_atomic, write_json
from distill.data.layout import RunFolder
from distill.data.manifest import require_manifest
from distill.data.texts import TextStore
from distill.errors import StorageError, TeacherError
from teachers.base import Pairs, Work

if TYPE_CHECKING:
    from teachers.execution import Execution

log = logging.getLogger(__name__)

CHUNK = 512  # texts
STORES = ("queries", "passages")
_PAIRS = 8192  # whose vectors are in memory at once

Chunk = tuple[str, str, int]  # the split that it was planned for, the store, its number


class Encoder(Protocol):
    """A model behind a `VectorTeacher`; `vectors` and `similarity` speak Arrow: a row a text, columns of lists."""

    max_length: int

    def vectors(self, store: str, texts: list[str], execution: Execution) -> pa.RecordBatch:
        """`store`: "queries" or "passages", for models with prompts or two towers; `execution`: how large a batch."""
        ...

    def similarity(self, queries: pa.RecordBatch, passages: pa.RecordBatch) -> np.ndarray:
        """Row by row: float32 [n]."""
        ...


def plan_vectors(name: str, folder: RunFolder, splits: Sequence[str], identity: dict[str, Any]) -> None:
    """Write down which texts each split adds to those encoded. Idempotent.

    Vectors made by another model, or planned for other candidates, are removed.
    """
    candidates = {split: require_manifest(folder.candidates(split), "mine").fingerprint for split in splits}
    home = _home(folder, name)
    with locked(home):  # or the tasks of a job array that start together would remove each other's vectors
        plan = read_json(_plan_path(home)) if _plan_path(home).exists() else None
        if (
            plan is None
            or plan["model"] != identity
            or any(plan["candidates"].get(split, mined) != mined for split, mined in candidates.items())
        ):
            shutil.rmtree(home, ignore_errors=True)
            plan = {"model": identity, "candidates": {}}
        for split in splits:
            if split in plan["candidates"]:
                continue
            for store, rows in _needed_rows(folder, split).items():
                for owner in plan["candidates"] if store == "passages" else ():
                    rows = np.setdiff1d(rows, _rows(home, owner, store), assume_unique=True)
                with write_atomic(_rows_path(home, split, store)) as temporary, open(temporary, "wb") as file:
                    np.save(file, rows)
            plan["candidates"][split] = candidates[split]
            write_json(_plan_path(home), plan)


def _needed_rows(folder: RunFolder, split: str) -> dict[str, np.ndarray]:
    """Store -> the rows, ascending, of every text in a split's candidates."""
    needed = {
        "queries": np.zeros(len(TextStore.open(folder.queries(split))), bool),
        "passages": np.zeros(len(TextStore.open(folder.passages)), bool),
    }
    for _, candidates in iterate_candidates(folder.candidates(split)):
        needed["queries"][candidates.query] = True
        needed["passages"][candidates.passages] = True
    return {store: np.flatnonzero(mask) for store, mask in needed.items()}


def planned_for(name: str, folder: RunFolder, split: str, model: dict[str, Any], candidates: str) -> bool:
    """Whether the vectors planned are those of this model (its identity), for these candidates (their fingerprint)."""
    path = _plan_path(_home(folder, name))
    plan = read_json(path) if path.exists() else {"model": None, "candidates": {}}
    return plan["model"] == model and plan["candidates"].get(split) == candidates


def vector_chunks(name: str, folder: RunFolder, split: str) -> list[tuple[str, int]]:
    """(store, chunk number) of every chunk that a split adds; `plan_vectors` must have run."""
    home = _home(folder, name)
    return [(store, start // CHUNK) for store in STORES for start in range(0, len(_rows(home, split, store)), CHUNK)]


def chunk_done(name: str, folder: RunFolder, split: str, store: str, chunk: int) -> bool:
    return _chunk_path(_home(folder, name), split, store, chunk).exists()


class ChunkPlan:
    """Where the vectors of texts lie: a split's own chunks, and those of the splits planned before it."""

    def __init__(self, name: str, folder: RunFolder):
        self._home = _home(folder, name)
        self._rows: dict[tuple[str, str], np.ndarray] = {}
        self._planned: dict[str, list[str]] = {}  # a split -> those planned up to it

    def path(self, chunk: Chunk) -> Path:
        return _chunk_path(self._home, *chunk)

    def rows(self, chunk: Chunk) -> np.ndarray:
        """int64, ascending: the rows of the store whose vectors a chunk has, in its order."""
        split, store, number = chunk
        return self._added(split, store)[number * CHUNK : (number + 1) * CHUNK]

    def of(self, split: str) -> Iterator[Chunk]:
        """All that a split's texts may lie in."""
        for store in STORES:
            for owner in self._owners(split, store):
                for start in range(0, len(self._added(owner, store)), CHUNK):
                    yield owner, store, start // CHUNK

    def places(self, split: str, store: str, rows: np.ndarray) -> Iterator[tuple[Chunk, np.ndarray, np.ndarray]]:
        """For distinct rows, ascending: each chunk that has some, the places of these in `rows` and in the chunk."""
        for owner in self._owners(split, store):
            added = self._added(owner, store)
            at = np.searchsorted(added, rows)
            there = np.flatnonzero(at < len(added))
            there = there[added[at[there]] == rows[there]]
            numbers = at[there] // CHUNK
            for number in np.unique(numbers).tolist():
                here = there[numbers == number]
                yield (owner, store, number), here, at[here] - number * CHUNK

    def _owners(self, split: str, store: str) -> list[str]:
        """The splits among whose chunks a split's texts are, itself the last."""
        if store == "queries":
            return [split]
        if split not in self._planned:
            planned = list(read_json(_plan_path(self._home))["candidates"])
            self._planned[split] = planned[: planned.index(split) + 1]
        return self._planned[split]

    def _added(self, split: str, store: str) -> np.ndarray:
        if (split, store) not in self._rows:
            self._rows[split, store] = _rows(self._home, split, store)
        return self._rows[split, store]


class VectorTeacher:
    """Scores pairs by the similarity of their texts' vectors."""

    def __init__(self, name: str, encoder: Encoder, folder: RunFolder, execution: Execution):
        self.name, self.execution, self.max_length = name, execution, encoder.max_length
        self._encoder, self._folder, self.work = encoder, folder, Work()
        self._chunks = ChunkPlan(name, folder)
        self._readers: dict[Path, RowReader] = {}

    def score(self, pairs: Pairs) -> np.ndarray:
        """float32 [n]."""
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(pairs), _PAIRS):
            part = pairs.take(np.arange(start, min(start + _PAIRS, len(pairs))))
            parts.append(
                self._encoder.similarity(
                    self._take(part.split, "queries", part.query_rows),
                    self._take(part.split, "passages", part.passage_rows),
                )
            )
        return np.concatenate(parts)

    def encode_chunk(self, split: str, store: str, chunk: int, even_if_busy: bool = False) -> None:
        """Encode and commit one chunk of those a split adds, unless it is there or another process has it in hand.

        Raises `TeacherError` for a vector that is not finite.
        """
        path = self._chunks.path((split, store, chunk))
        if path.exists():
            return
        with _in_hand(path) as alone:
            if path.exists() or not (alone or even_if_busy):
                return
            rows = self._chunks.rows((split, store, chunk))
            texts = TextStore.open(self._folder.passages if store == "passages" else self._folder.queries(split))
            batch = self._encode(store, texts.texts(rows))
            if not all(np.isfinite(column.values.to_numpy()).all() for column in batch.columns):
                half = self.execution.precision == "float16"
                raise TeacherError(
                    f"teacher {self.name!r} made a vector with NaN or infinite values, of one of the "
                    f"{store} in rows {rows[0]} to {rows[-1]}"
                    + half
                    * ("; float16 may have overflowed: set the teacher's dtype to float32")
                )
            metadata = {"execution": json.dumps(self.execution.record()), "checksum": _checksum(batch)}
            write_ipc(path, batch.schema, [batch], metadata, exclusive=True)

    def _encode(self, store: str, texts: list[str]) -> pa.RecordBatch:
        from teachers.inference import until_it_fits  # torch: a look at the plan doesn't need it

        batch, self.execution = until_it_fits(
            lambda execution: self._encoder.vectors(store, texts, execution), self.execution
        )
        return batch

    def _take(self, split: str, store: str, rows: np.ndarray) -> pa.RecordBatch:
        """Vectors of the given rows, in their order, repeats allowed."""
        distinct, back = np.unique(rows, return_inverse=True)
        placed = list(self._chunks.places(split, store, distinct))
        self._encode_missing([chunk for chunk, *_ in placed])
        pieces = [self._reader(*chunk).take(inside) for chunk, _, inside in placed]
        order = np.argsort(np.concatenate([here for _, here, _ in placed]))
        return pa.Table.from_batches(pieces).combine_chunks().to_batches()[0].take(pa.array(order[back]))

    def _encode_missing(self, chunks: list[Chunk]) -> None:
        """Encode those that are not there, each process in an order of its own; what others have in hand is left."""
        missing = [chunk for chunk in chunks if not self._chunks.path(chunk).exists()]
        for i in np.random.default_rng().permutation(len(missing)):
            self.encode_chunk(*missing[i])

    def _reader(self, split: str, store: str, chunk: int) -> RowReader:
        """A chunk's vectors; encoded first where they are not there, and again where they are damaged."""
        path = self._chunks.path((split, store, chunk))
        if path not in self._readers:
            self.encode_chunk(split, store, chunk, even_if_busy=True)
            try:
                self._readers[path] = open_chunk(path)
            except StorageError as error:
                log.warning("%s; its texts are encoded again", error)
                with contextlib.suppress(FileNotFoundError):  # another process may have done it
                    path.replace(path.with_name(f"{path.name}.damaged"))
                self.encode_chunk(split, store, chunk, even_if_busy=True)
                self._readers[path] = open_chunk(path)
        return self._readers[path]


@contextlib.contextmanager
def _in_hand(path: Path) -> Iterator[bool]:
    """Show other processes that a chunk is being made; False where one of them has shown it already."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
            alone = True
        except BlockingIOError:
            alone = False
        yield alone


def open_chunk(path: Path) -> RowReader:
    """Raises `StorageError` where the vectors are not those that were written."""
    try:
        reader = RowReader(path)
        batch = only_batch(reader)
        batch.validate()  # or a flipped length could be read beyond the end of the file
        intact = reader.metadata["checksum"] == _checksum(batch)
    except (AssertionError, AttributeError, KeyError, ValueError, pa.ArrowException) as error:
        raise StorageError(f"{path}: damaged: {error}") from None
    if not intact:
        raise StorageError(f"{path}: damaged, its checksum is not the one written with it")
    return reader


def _checksum(batch: pa.RecordBatch) -> str:
    """Of columns of lists: their names, types, lengths and values; 32 hex digits."""
    digest = xxhash.xxh3_128()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        digest.update(f"{name} {column.type} {len(column)}\n".encode())
        if pa.types.is_list(column.type):
            digest.update(column.offsets.to_numpy())
        digest.update(column.values.to_numpy())
    return digest.hexdigest()


def _home(folder: RunFolder, name: str) -> Path:
    return folder.scores(name, "vectors")


def _plan_path(home: Path) -> Path:
    return home / "plan.json"


def _rows_path(home: Path, split: str, store: str) -> Path:
    return home / split / f"{store}.rows.npy"


def _rows(home: Path, split: str, store: str) -> np.ndarray:
    """int64, ascending: the rows of a store whose vectors a split adds."""
    return np.load(_rows_path(home, split, store), mmap_mode="r")


def _chunk_path(home: Path, split: str, store: str, chunk: int) -> Path:
    return home / split / f"{store}-{chunk:05d}.arrow"
