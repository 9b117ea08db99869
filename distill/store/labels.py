"""Label shards, which training reads: one row per query."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.store.arrow import RowReader
from distill.store.candidates import only_batch

LABEL_SCHEMA = pa.schema(
    [
        ("query", pa.int64()),
        ("passages", pa.list_(pa.int64())),
        ("positive", pa.list_(pa.bool_())),
        ("labels", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Labels:
    """Labels of the passages of q queries (CSR), positives first in every list."""

    query: np.ndarray  # int64 [q]
    offsets: np.ndarray  # int64 [q + 1]
    passages: np.ndarray  # int64 [m]
    positive: np.ndarray  # bool [m]
    labels: np.ndarray  # float32 [m]


def read_labels(path: Path) -> Labels:
    """Read one shard; its arrays are views of the mapped file, except `positive`, which Arrow stores as bits."""
    batch = only_batch(RowReader(path))
    passages = batch.column("passages")
    return Labels(
        batch.column("query").to_numpy(),
        passages.offsets.to_numpy().astype(np.int64),
        passages.values.to_numpy(),
        batch.column("positive").values.to_numpy(zero_copy_only=False),
        batch.column("labels").values.to_numpy(),
    )
