"""A miner's view of the collection, encoded in chunks of passages, each a file that is there whole or not at all.

What is in a chunk depends on the model and the passages alone, so chunks lie with the data, under a key made of both,
and serve every split and round. Whoever needs a chunk that is missing makes it; committing is exclusive. They are a
cache: once all is mined they can go.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from distill.config import Mine, Miner, resolve_model
from distill.data.arrow import RowReader, write_ipc
from distill.data.candidates import only_batch
from distill.data.checkpoints import checkpoint_digest
from distill.data.fingerprint import fingerprint
from distill.data.layout import RunFolder
from distill.data.manifest import FORMAT
from distill.data.texts import TextStore


class Encoder(Protocol):
    """A miner's model, loaded."""

    def passages(self, rows: np.ndarray, title: str) -> pa.RecordBatch:
        """What is searched of these rows of the collection; progress is shown under `title`."""
        ...


class Chunks:
    """The chunks of one miner: `mine.shard_passages` each, but for the last. The model is loaded when first needed.

    `device`: of the model; None is what this machine has.
    """

    def __init__(self, miner: Miner, passages: TextStore, folder: RunFolder, mine: Mine, device: str | None = None):
        self.miner, self.size, self.precision, self.device = miner, mine.shard_passages, mine.precision, device
        self.collection_size = passages.collection_size
        self._store, self._folder = passages, folder
        self._home = folder.index(index_key(miner, passages, mine))

    def __len__(self) -> int:
        return math.ceil(self.collection_size / self.size)

    @cached_property
    def model(self) -> Encoder:
        if self.miner.kind == "dense":
            from distill.mining.dense import DenseModel

            return DenseModel(self.miner, self._store, self.precision, self.device)
        from distill.mining.splade import SpladeModel

        return SpladeModel(self.miner, self._store, self._folder, self.precision, self.device)

    def rows(self, number: int) -> np.ndarray:
        return np.arange(number * self.size, min((number + 1) * self.size, self.collection_size))

    def missing(self) -> list[int]:
        return [number for number in range(len(self)) if not self._path(number).exists()]

    def make(self, number: int) -> None:
        """Encode and commit one chunk, unless it is there."""
        path = self._path(number)
        if not path.exists():
            of = f" {number + 1}/{len(self)}" if len(self) > 1 else ""
            batch = self.model.passages(self.rows(number), f"encode passages{of}")
            write_ipc(path, batch.schema, [batch], exclusive=True)

    def open(self) -> list[pa.RecordBatch]:
        """All chunks in order, memory-mapped; those that are missing are made first."""
        for number in self.missing():
            self.make(number)
        return [only_batch(RowReader(self._path(number))) for number in range(len(self))]

    def _path(self, number: int) -> Path:
        return self._home / f"chunk-{number:05d}.arrow"


def index_key(miner: Miner, passages: TextStore, mine: Mine) -> str:
    """16 hex digits: the model (a folder by its content), its precision, the passages, and how they are cut."""
    path = Path(resolve_model(miner.model))
    model = {"content": checkpoint_digest(path)} if path.is_dir() else {"name": miner.model, "revision": miner.revision}
    return fingerprint(
        {
            "format": FORMAT,
            "kind": miner.kind,
            "model": model,
            "texts": passages.fingerprint,
            "passages": passages.collection_size,
            "chunk": mine.shard_passages,
            "precision": mine.precision,
        }
    )
