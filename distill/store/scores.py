"""Score shards: one teacher's raw logits, aligned row by row with the candidate shard of the same name.

NaN marks a score that a source lacks; teachers never return it. The schema's metadata holds the fingerprint (what the
scores mean), the execution record (what makes the bytes repeat), and a checksum of the scored passages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from distill.errors import DataError, StorageError
from distill.run.layout import RunFolder
from distill.run.manifest import require_manifest
from distill.store.arrow import RowReader, Shard, write_ipc
from distill.store.candidates import Candidates, csr_column, only_batch

SCHEMA = pa.schema([("query", pa.int64()), ("scores", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class Scores:
    """Scores of the candidates of q queries (CSR), aligned with `Candidates.passages` of the same shard."""

    query: np.ndarray  # int64 [q]
    offsets: np.ndarray  # int64 [q + 1]
    values: np.ndarray  # float32 [m]
    metadata: dict[str, str]


def write_scores(
    path: Path,
    candidates: Candidates,
    values: np.ndarray,
    *,
    fingerprint: str,
    teacher: str,
    execution: dict[str, Any] | None = None,
    missing: bool = False,
    exclusive: bool = True,
) -> Shard | None:
    """Write a shard of raw scores, float32 [m], of `candidates`; returns None if `exclusive` and the shard exists.

    Raises `DataError` for infinite scores, and for NaN unless `missing`: the source may lack scores.
    """
    values = np.asarray(values, np.float32)
    if values.shape != (candidates.pairs,):
        raise ValueError(f"scores of shape {values.shape} for {candidates.pairs} pairs")
    bad = ~np.isfinite(values) if not missing else np.isinf(values)
    if bad.any():
        pair = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"teacher {teacher!r} returned the score {values[pair]} for query row "
            f"{candidates.pair_queries[pair]} and passage row {candidates.passages[pair]}",
            path=path,
        )
    columns = [
        pa.array(candidates.query, pa.int64()),
        csr_column(candidates.offsets, values, SCHEMA.field("scores").type),
    ]
    metadata = {
        "fingerprint": fingerprint,
        "teacher": teacher,
        "execution": json.dumps(execution or {}, sort_keys=True),
        "passages": _passages_of(candidates),
    }
    return write_ipc(path, SCHEMA, [pa.RecordBatch.from_arrays(columns, schema=SCHEMA)], metadata, exclusive)


def read_score_shard(path: Path) -> Scores:
    """Read one shard; its arrays are views of the mapped file."""
    reader = RowReader(path)
    batch = only_batch(reader)
    scores = batch.column("scores")
    return Scores(
        batch.column("query").to_numpy(),
        scores.offsets.to_numpy().astype(np.int64),
        scores.values.to_numpy(),
        reader.metadata,
    )


def aligned_scores(path: Path, candidates: Candidates) -> np.ndarray:
    """Read a shard's scores, float32 [m]. Raises `StorageError` if they belong to other candidates."""
    scores = read_score_shard(path)
    same = np.array_equal(scores.query, candidates.query) and np.array_equal(scores.offsets, candidates.offsets)
    if not same or scores.metadata.get("passages", passages := _passages_of(candidates)) != passages:
        raise StorageError(
            f"{path}: not scores of the candidate shard of the same name, which has been mined again since; "
            "remove the file and its folder's manifest.json, and run `distill score`"
        )
    return scores.values


def _passages_of(candidates: Candidates) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(candidates.passages, np.int64).tobytes())


def read_scores(folder: RunFolder, teacher: str, split: str) -> Iterator[tuple[str, Scores]]:
    """Yield (shard name, scores) of a teacher's shards, in order. Raises `StorageError` if scoring is not finished."""
    path = folder.scores(teacher, split)
    for shard in require_manifest(path, "score").shards:
        yield shard.name, read_score_shard(path / shard.name)
