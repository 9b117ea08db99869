"""The collection encoded by a miner's model, in chunks of passages, each one file that is written atomically.

A chunk depends only on the model and the passages, so chunks are stored with the data under a key made of both, and
serve every split and round. Any process makes the chunks that it finds missing; commits are exclusive. Chunks are a
cache: after mining they can be deleted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from scipy import sparse

from distill.config import Mine, Miner
from distill.errors import StorageError
from distill.planning.devices import chosen_precision
from distill.retrieval.postings import FORMAT as POSTINGS_FORMAT
from distill.run.device import default_device
from distill.run.fingerprint import fingerprint
from distill.run.layout import RunFolder
from distill.run.manifest import FORMAT
from distill.run.model_ref import ModelRef
from distill.run.seals import seal, take_away
from distill.store.arrow import RowReader, write_ipc
from distill.store.candidates import only_batch
from distill.store.texts import TextStore


class Encoder(Protocol):
    """A loaded model of a miner."""

    def passages(self, rows: np.ndarray, title: str) -> pa.RecordBatch:
        """Encode rows of the collection as a chunk; progress is shown under `title`."""
        ...

    def queries(self, texts: Sequence[str]) -> np.ndarray | sparse.csr_matrix:
        """Encode queries: float32 [n, dimensions]."""
        ...


class Chunks:
    """The chunks of one miner, `mine.shard_passages` each except the last. The model is loaded when first needed.

    `device`: of the model, and of the search of its chunks; None: what this machine has.
    """

    def __init__(self, miner: Miner, passages: TextStore, folder: RunFolder, mine: Mine, device: str | None = None):
        self.miner, self.size, self.precision = miner, mine.shard_passages, mine.precision
        self.collection_size = passages.collection_size
        self._store, self._folder, self._device = passages, folder, device
        self.home = folder.index(index_key(miner, passages, mine))

    def __len__(self) -> int:
        return math.ceil(self.collection_size / self.size)

    @cached_property
    def device(self) -> str:
        return self._device or default_device()

    @cached_property
    def model(self) -> Encoder:
        precision = chosen_precision(self.precision, self.device)
        if self.miner.kind == "dense":
            from distill.retrieval.dense import DenseModel

            return DenseModel(self.miner, self._store, precision, self.device)
        from distill.retrieval.splade import SpladeModel

        return SpladeModel(self.miner, self._store, self._folder, precision, self.device)

    def rows(self, number: int) -> np.ndarray:
        return np.arange(number * self.size, min((number + 1) * self.size, self.collection_size))

    def missing(self) -> list[int]:
        return [number for number in range(len(self)) if not self._path(number).exists()]

    def make(self, number: int) -> None:
        """Encode and commit one chunk, unless it exists."""
        path = self._path(number)
        if not path.exists():
            part = f" {number + 1}/{len(self)}" if len(self) > 1 else ""
            batch = self.model.passages(self.rows(number), f"encode passages{part}")
            shard = write_ipc(path, batch.schema, [batch], exclusive=True)
            if shard is not None:  # else another process was first
                seal(path, shard.xxh128)

    def open(self) -> list[pa.RecordBatch]:
        """Return all chunks in order, memory-mapped; missing ones, and those that cannot be opened, are made first."""
        for number in self.missing():
            self.make(number)
        return [self._open(number) for number in range(len(self))]

    def _open(self, number: int) -> pa.RecordBatch:
        path = self._path(number)
        try:
            return only_batch(RowReader(path))
        except StorageError as error:
            take_away(path, error)
            self.make(number)
            return only_batch(RowReader(path))

    def _path(self, number: int) -> Path:
        return self.home / f"chunk-{number:05d}.arrow"


def index_key(miner: Miner, passages: TextStore, mine: Mine) -> str:
    """Return 16 hex digits that identify the model (a folder by its content), precision, passages and chunk size."""
    assert miner.model is not None  # the schema requires it for dense and SPLADE miners
    layout = {"postings": POSTINGS_FORMAT} if miner.kind == "splade" else {}
    return fingerprint(
        {
            "format": FORMAT,
            **layout,
            "kind": miner.kind,
            "model": ModelRef.parse(miner.model, miner.revision).identity(),
            "texts": passages.fingerprint,
            "passages": passages.collection_size,
            "chunk": mine.shard_passages,
            "precision": mine.precision,
        }
    )
