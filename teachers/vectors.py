"""Teachers that encode texts separately (bi-encoders, SPLADE): each text is encoded once per run, in chunks on disk.

A passage is a candidate of many queries, in many shards and splits; encoding it for each would multiply the work. The
texts of each chunk are planned once and frozen on disk, so the vectors, and the scores computed from them, repeat to
the byte: a split's chunks hold its queries, and the passages that no split planned before it needs. Any process that
needs a missing or damaged chunk encodes it, starting with chunks that no other process works on; commits are exclusive.
The chunks are a cache: they can be deleted after scoring, or after training if a loss reads the vectors.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import xxhash

from distill.errors import StorageError, TeacherError
from distill.run.files import locked, read_object, write_atomic, write_json
from distill.run.layout import RunFolder
from distill.run.manifest import require_manifest
from distill.run.seals import is_damaged, seal, sealed, take_away
from distill.store.arrow import RowReader, write_ipc
from distill.store.candidates import iterate_candidates, only_batch
from distill.store.texts import TextStore
from teachers.base import Pairs, Work, overflow_hint
from teachers.identity import identity
from teachers.spec import TeacherSpec

if TYPE_CHECKING:
    from teachers.execution import Execution

log = logging.getLogger(__name__)

CHUNK = 512  # texts
STORES = ("queries", "passages")
_PAIRS = 8192  # pairs whose vectors are in memory at once


class Chunk(NamedTuple):
    split: str  # that it was planned for
    store: str  # "queries" or "passages"
    number: int


class Encoder(Protocol):
    """A model behind a `VectorTeacher`. Vectors are Arrow record batches: one row per text, columns of lists."""

    max_length: int

    def vectors(self, store: str, texts: list[str], execution: Execution) -> pa.RecordBatch:
        """Encode texts of a store ("queries" or "passages", for models with prompts or two towers)."""
        ...

    def similarity(self, queries: pa.RecordBatch, passages: pa.RecordBatch) -> np.ndarray:
        """Similarity of each query with the passage in the same row, float32 [n]."""
        ...


def plan_vectors(spec: TeacherSpec, splits: Sequence[str]) -> None:
    """Plan the chunks that each split adds, and write the plan down. Idempotent.

    Vectors of another model, or planned for other candidates, are removed.
    """
    folder, model = spec.folder, identity(spec)
    candidates = {split: require_manifest(folder.candidates(split), "mine").fingerprint for split in splits}
    home = folder.vectors(spec.name)
    with locked(home):  # else the tasks of a job array that start together would remove each other's vectors
        plan = _read_plan(home)
        if (
            plan is None
            or plan["model"] != model
            or any(plan["candidates"].get(split, mined) != mined for split, mined in candidates.items())
        ):
            shutil.rmtree(home, ignore_errors=True)
            plan = {"model": model, "candidates": {}}
        for split in splits:
            if split in plan["candidates"]:
                continue
            for store, rows in _needed_rows(folder, split).items():
                for owner in plan["candidates"] if store == "passages" else ():
                    rows = np.setdiff1d(rows, _rows(home, owner, store), assume_unique=True)
                path = _rows_path(home, split, store)
                with sealed(path), write_atomic(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, rows)
            plan["candidates"][split] = candidates[split]
            with sealed(_plan_path(home)):
                write_json(_plan_path(home), plan)


def _read_plan(home: Path) -> dict[str, Any] | None:
    """Read the plan of a teacher's vectors; None if there is none, or it or a split's rows are damaged (a warning)."""
    path = _plan_path(home)
    if not path.exists():
        return None
    try:
        plan = read_object(path)
        if not isinstance(plan["candidates"], dict) or is_damaged(path):
            raise ValueError("not what was written")
        plan["model"]
        for split in plan["candidates"]:
            for path in (_rows_path(home, split, store) for store in STORES):
                if np.load(path, mmap_mode="r").dtype != np.int64 or is_damaged(path):
                    raise ValueError("not what was written")
    except (StorageError, OSError, EOFError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: a damaged plan of vectors (%s); the texts are planned and encoded again", path, error)
        return None
    return plan


def _needed_rows(folder: RunFolder, split: str) -> dict[str, np.ndarray]:
    """Rows of all texts in a split's candidates, ascending, by store."""
    needed = {
        "queries": np.zeros(len(TextStore.open(folder.queries(split))), bool),
        "passages": np.zeros(len(TextStore.open(folder.passages)), bool),
    }
    for _, candidates in iterate_candidates(folder.candidates(split)):
        needed["queries"][candidates.query] = True
        needed["passages"][candidates.passages] = True
    return {store: np.flatnonzero(mask) for store, mask in needed.items()}


def planned_for(spec: TeacherSpec, split: str, model: dict[str, Any], candidates: str) -> bool:
    """Whether the plan is for this model (its identity) and these candidates of the split (their fingerprint)."""
    plan = _read_plan(spec.folder.vectors(spec.name)) or {"model": None, "candidates": {}}
    return plan["model"] == model and plan["candidates"].get(split) == candidates


class ChunkPlan:
    """Location of each text's vector: in a split's own chunks, or in those of a split planned before it."""

    def __init__(self, name: str, folder: RunFolder):
        self._home = folder.vectors(name)
        self._rows: dict[tuple[str, str], np.ndarray] = {}
        self._planned: dict[str, list[str]] = {}  # the splits planned up to each split

    def path(self, chunk: Chunk) -> Path:
        return self._home / chunk.split / f"{chunk.store}-{chunk.number:05d}.arrow"

    def rows(self, chunk: Chunk) -> np.ndarray:
        """Rows of the store that a chunk has vectors of, in its order: int64, ascending."""
        return self._added(chunk.split, chunk.store)[chunk.number * CHUNK : (chunk.number + 1) * CHUNK]

    def added(self, split: str) -> list[Chunk]:
        """The chunks that a split adds; `plan_vectors` must have run."""
        return [chunk for store in STORES for chunk in self._chunks(split, store)]

    def of(self, split: str) -> list[Chunk]:
        """All chunks that may hold texts of a split."""
        return [
            chunk for store in STORES for owner in self._owners(split, store) for chunk in self._chunks(owner, store)
        ]

    def places(self, split: str, store: str, rows: np.ndarray) -> Iterator[tuple[Chunk, np.ndarray, np.ndarray]]:
        """Locate distinct rows, ascending: yields each chunk with some of them, indices into `rows` and indices into
        the chunk."""
        for owner in self._owners(split, store):
            added = self._added(owner, store)
            at = np.searchsorted(added, rows)
            located = np.flatnonzero(at < len(added))
            located = located[added[at[located]] == rows[located]]
            numbers = at[located] // CHUNK
            for number in np.unique(numbers).tolist():
                indices = located[numbers == number]
                yield Chunk(owner, store, number), indices, at[indices] - number * CHUNK

    def _chunks(self, split: str, store: str) -> list[Chunk]:
        return [Chunk(split, store, start // CHUNK) for start in range(0, len(self._added(split, store)), CHUNK)]

    def _owners(self, split: str, store: str) -> list[str]:
        """The splits whose chunks may hold texts of a split, the split itself last."""
        if store == "queries":
            return [split]
        if split not in self._planned:
            plan = _read_plan(self._home)
            if plan is None:
                raise StorageError(f"{_plan_path(self._home)}: missing or damaged; run `distill score` again")
            planned = list(plan["candidates"])
            self._planned[split] = planned[: planned.index(split) + 1]
        return self._planned[split]

    def _added(self, split: str, store: str) -> np.ndarray:
        if (split, store) not in self._rows:
            self._rows[split, store] = _rows(self._home, split, store)
        return self._rows[split, store]


class VectorTeacher:
    """Scores pairs by the similarity of their texts' vectors."""

    def __init__(self, spec: TeacherSpec, encoder: Encoder, execution: Execution):
        self.name, self.execution, self.max_length = spec.name, execution, encoder.max_length
        self._encoder, self._folder, self.work = encoder, spec.folder, Work()
        self._plan = ChunkPlan(spec.name, spec.folder)
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

    def encode_chunk(self, chunk: Chunk, even_if_busy: bool = False) -> None:
        """Encode and commit a chunk, unless it exists or another process is working on it (or `even_if_busy`).

        Raises `TeacherError` for a vector that is not finite.
        """
        path, store = self._plan.path(chunk), chunk.store
        if path.exists():
            return
        with _working_on(path) as alone:
            if path.exists() or not (alone or even_if_busy):
                return
            rows = self._plan.rows(chunk)
            texts = TextStore.open(self._folder.passages if store == "passages" else self._folder.queries(chunk.split))
            batch = self._encode(store, texts.texts(rows))
            if not all(np.isfinite(column.values.to_numpy()).all() for column in batch.columns):
                raise TeacherError(
                    f"teacher {self.name!r} made a vector with NaN or infinite values, of one of the "
                    f"{store} in rows {rows[0]} to {rows[-1]}" + overflow_hint(self.execution.precision)
                )
            metadata = {"execution": json.dumps(self.execution.record()), "checksum": _checksum(batch)}
            if (shard := write_ipc(path, batch.schema, [batch], metadata, exclusive=True)) is not None:
                seal(path, shard.xxh128)

    def _encode(self, store: str, texts: list[str]) -> pa.RecordBatch:
        from teachers.inference import until_it_fits  # imports torch, which reading the plan does not need

        batch, self.execution = until_it_fits(
            lambda execution: self._encoder.vectors(store, texts, execution), self.execution
        )
        return batch

    def _take(self, split: str, store: str, rows: np.ndarray) -> pa.RecordBatch:
        """Vectors of rows, in the order given, repeats allowed."""
        distinct, inverse = np.unique(rows, return_inverse=True)
        places = list(self._plan.places(split, store, distinct))
        self._encode_missing([chunk for chunk, *_ in places])
        pieces = [self._reader(chunk).take(inside) for chunk, _, inside in places]
        order = np.argsort(np.concatenate([indices for _, indices, _ in places]))
        return pa.Table.from_batches(pieces).combine_chunks().to_batches()[0].take(pa.array(order[inverse]))

    def _encode_missing(self, chunks: list[Chunk]) -> None:
        """Encode missing chunks, each process in its own random order; skip those that others are working on."""
        missing = [chunk for chunk in chunks if not self._plan.path(chunk).exists()]
        for i in np.random.default_rng().permutation(len(missing)):
            self.encode_chunk(missing[i])

    def _reader(self, chunk: Chunk) -> RowReader:
        """Open a chunk's vectors, encoding them first if they are missing or damaged."""
        path = self._plan.path(chunk)
        if path not in self._readers:
            self.encode_chunk(chunk, even_if_busy=True)
            try:
                self._readers[path] = open_chunk(path)
            except StorageError as error:
                take_away(path, error)
                self.encode_chunk(chunk, even_if_busy=True)
                self._readers[path] = open_chunk(path)
        return self._readers[path]


@contextlib.contextmanager
def _working_on(path: Path) -> Iterator[bool]:
    """Signal to other processes that a chunk is being encoded; yields False if another one already signals it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
            alone = True
        except BlockingIOError:
            alone = False
        yield alone


def open_chunk(path: Path) -> RowReader:
    """Open a chunk and verify its checksum. Raises `StorageError` if it is damaged."""
    try:
        reader = RowReader(path)
        batch = only_batch(reader)
        intact = reader.metadata["checksum"] == _checksum(batch)
    except (AttributeError, KeyError, ValueError, pa.ArrowException) as error:
        raise StorageError(f"{path}: damaged: {error}") from None
    if not intact:
        raise StorageError(f"{path}: damaged: its checksum differs from the one stored with it")
    return reader


def _checksum(batch: pa.RecordBatch) -> str:
    """Checksum of columns of lists (names, types, lengths and values), 32 hex digits."""
    digest = xxhash.xxh3_128()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        digest.update(f"{name} {column.type} {len(column)}\n".encode())
        if pa.types.is_list(column.type):
            digest.update(column.offsets.to_numpy())
        digest.update(column.values.to_numpy())
    return digest.hexdigest()


def _plan_path(home: Path) -> Path:
    return home / "plan.json"


def _rows_path(home: Path, split: str, store: str) -> Path:
    return home / split / f"{store}.rows.npy"


def _rows(home: Path, split: str, store: str) -> np.ndarray:
    """Rows of a store that a split adds vectors of: int64, ascending."""
    return np.load(_rows_path(home, split, store), mmap_mode="r")
