"""Candidate shards: for each query the passages to score, positives first, and where each came from.

A folder holds `part-00000.arrow`, ... and a manifest. In memory a shard is a few flat arrays (CSR), never
lists of Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.data.arrow import RowReader, Shard, write_ipc
from distill.data.manifest import read_manifest, require_manifest

SCHEMA = pa.schema(
    [
        ("query", pa.int64()),
        ("passages", pa.list_(pa.int64())),
        ("positive", pa.list_(pa.bool_())),
        ("source", pa.list_(pa.uint8())),  # code of who brought it, named in the schema's metadata
        ("rank", pa.list_(pa.int32())),  # in that source's ranking, from 1; 0 where there is none
    ]
)


@dataclass(frozen=True)
class Candidates:
    """Candidates of some queries (CSR): those of `query[i]` lie at `offsets[i]:offsets[i + 1]` of the flat arrays."""

    query: np.ndarray  # int64 [q]
    offsets: np.ndarray  # int64 [q + 1]
    passages: np.ndarray  # int64 [m]
    positive: np.ndarray  # bool [m]
    source: np.ndarray  # uint8 [m]
    rank: np.ndarray  # int32 [m]
    sources: tuple[str, ...] = ("judgement",)  # name of each source code

    def __len__(self) -> int:
        return len(self.query)

    @property
    def pairs(self) -> int:
        return len(self.passages)

    @property
    def pair_queries(self) -> np.ndarray:
        """int64 [m]: the query row of each pair."""
        return np.repeat(self.query, np.diff(self.offsets))


def shard_name(index: int) -> str:
    return f"part-{index:05d}.arrow"


def write_candidates(path: Path, candidates: Candidates, fingerprint: str, exclusive: bool = False) -> Shard | None:
    """Write one shard. Positives must come first in every list; None if `exclusive` and the shard was there."""
    _check_positives_first(candidates)
    offsets = candidates.offsets
    columns = [pa.array(candidates.query, pa.int64())] + [
        csr_column(offsets, values, field.type)
        for values, field in zip(
            (candidates.passages, candidates.positive, candidates.source, candidates.rank),
            list(SCHEMA)[1:],
            strict=True,
        )
    ]
    metadata = {"fingerprint": fingerprint, "sources": "\n".join(candidates.sources)}
    return write_ipc(path, SCHEMA, [pa.RecordBatch.from_arrays(columns, schema=SCHEMA)], metadata, exclusive)


def read_candidates(path: Path) -> Candidates:
    """One shard; its arrays lie in the mapped file, except `positive` (Arrow keeps bits)."""
    reader = RowReader(path)
    batch = only_batch(reader)
    passages = batch.column("passages")
    return Candidates(
        query=batch.column("query").to_numpy(),
        offsets=passages.offsets.to_numpy().astype(np.int64),
        passages=passages.values.to_numpy(),
        positive=batch.column("positive").values.to_numpy(zero_copy_only=False),
        source=batch.column("source").values.to_numpy(),
        rank=batch.column("rank").values.to_numpy(),
        sources=tuple(reader.metadata["sources"].split("\n")),
    )


def candidate_shards(folder: Path) -> tuple[Shard, ...]:
    """The shards that the manifest of a candidates folder (`RunFolder.candidates(split)`) names, in order."""
    return require_manifest(folder, "mine").shards


def iterate_candidates(folder: Path) -> Iterator[tuple[str, Candidates]]:
    """(shard name, candidates) of every shard in a candidates folder, in order."""
    for shard in candidate_shards(folder):
        yield shard.name, read_candidates(Path(folder) / shard.name)


def are_imported(folder: Path) -> bool:
    """Whether the import wrote these candidates, because the source brought its own negatives."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.fields.get("stage") == "import"


def csr_column(offsets: np.ndarray, values: np.ndarray, type_: pa.DataType) -> pa.ListArray:
    """A list column from flat values and offsets; a shard stays below 2^31 values, so offsets are 32-bit."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, type_.value_type))


def only_batch(reader: RowReader) -> pa.RecordBatch:
    """A shard's rows, which are written as one record batch."""
    if len(reader.batches) == 1:
        return reader.batches[0]
    raise AssertionError(f"{reader.path}: a shard holds one record batch, this has {len(reader.batches)}")


def from_lists(
    query: Sequence[int],
    lists: Sequence[Sequence[int]],
    positives: Sequence[int],
    sources: tuple[str, ...],
    source: Sequence[Sequence[int]] | None = None,
    rank: Sequence[Sequence[int]] | None = None,
) -> Candidates:
    """Candidates from one list of passage rows per query, the first `positives[i]` of which are positive."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)  # position inside its list

    def flat(values: Sequence[Sequence[int]] | None, dtype: type) -> np.ndarray:
        if values is None:
            return np.zeros(offsets[-1], dtype)
        return np.fromiter((value for row in values for value in row), dtype, int(offsets[-1]))

    return Candidates(
        np.asarray(query, np.int64),
        offsets,
        flat(lists, np.int64),
        within < np.repeat(np.asarray(positives, np.int64), lengths),
        flat(source, np.uint8),
        flat(rank, np.int32),
        sources,
    )


def _check_positives_first(candidates: Candidates) -> None:
    # a positive right after a negative, inside one list
    late = candidates.positive[1:] & ~candidates.positive[:-1]
    starts = candidates.offsets[1:-1]
    late[starts[(starts > 0) & (starts < candidates.pairs)] - 1] = False
    assert not late.any(), "positives come first in a candidate list"
