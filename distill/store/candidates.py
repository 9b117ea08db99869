"""Candidate shards: the passages to score for each query, positives first, and the source of each.

A folder holds `part-00000.arrow`, ... and a manifest. In memory a shard is a few flat arrays (CSR), never lists of
Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.errors import StorageError
from distill.run.manifest import read_manifest, require_manifest
from distill.store.arrow import RowReader, Shard, write_ipc

SCHEMA = pa.schema(
    [
        ("query", pa.int64()),
        ("passages", pa.list_(pa.int64())),
        ("positive", pa.list_(pa.bool_())),
        ("source", pa.list_(pa.uint8())),  # code of the source, named in the schema's metadata
        ("rank", pa.list_(pa.int32())),  # in that source's ranking, from 1; 0: not ranked
    ]
)


@dataclass(frozen=True)
class Candidates:
    """Candidates of q queries (CSR): those of `query[i]` are `offsets[i]:offsets[i + 1]` of the flat arrays."""

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
        """Number of candidates, m."""
        return len(self.passages)

    @property
    def has_positive(self) -> np.ndarray:
        """Whether each list has a positive: bool [q]."""
        return lists_with(self.positive, self.offsets)

    @property
    def pair_queries(self) -> np.ndarray:
        """Query row of each candidate: int64 [m]."""
        return np.repeat(self.query, np.diff(self.offsets))


def lists_with(marked: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Whether any entry of each list of a CSR array is marked; marked: bool [m], offsets: int64 [q + 1]; bool [q]."""
    before = np.concatenate([[0], np.cumsum(marked)])
    return before[offsets[1:]] > before[offsets[:-1]]


def shard_name(index: int) -> str:
    return f"part-{index:05d}.arrow"


def write_candidates(path: Path, candidates: Candidates, fingerprint: str, exclusive: bool = False) -> Shard | None:
    """Write one shard, with positives first in every list. Returns None if `exclusive` and the shard exists."""
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
    """Read one shard; its arrays are views of the mapped file, except `positive`, which Arrow stores as bits."""
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
    """Return the shards of a candidates folder (`RunFolder.candidates(split)`), in order."""
    return require_manifest(folder, "mine").shards


def iterate_candidates(folder: Path) -> Iterator[tuple[str, Candidates]]:
    """Yield (shard name, candidates) of every shard of a candidates folder, in order."""
    for shard in candidate_shards(folder):
        yield shard.name, read_candidates(Path(folder) / shard.name)


def are_imported(folder: Path) -> bool:
    """Return whether the import wrote these candidates: then the source has its own negatives."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.fields.get("stage") == "import"


def csr_column(offsets: np.ndarray, values: np.ndarray, type_: pa.DataType) -> pa.ListArray:
    """Return a list column of flat values and offsets. A shard has fewer than 2^31 values, so offsets are 32-bit."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, type_.value_type))


def only_batch(reader: RowReader) -> pa.RecordBatch:
    """Return the rows of a shard, which is written as one record batch. Raises `StorageError` if they are not whole."""
    if len(reader.batches) != 1:
        raise StorageError(f"{reader.path}: damaged, a shard has one record batch, not {len(reader.batches)}")
    try:
        reader.batches[0].validate()  # else a corrupt length could make Arrow read beyond the end of the file
    except pa.ArrowException as error:
        raise StorageError(f"{reader.path}: damaged: {error}") from None
    return reader.batches[0]


def from_lists(
    query: Sequence[int],
    lists: Sequence[Sequence[int]],
    positives: Sequence[int],
    sources: tuple[str, ...],
    source: Sequence[Sequence[int]] | None = None,
    rank: Sequence[Sequence[int]] | None = None,
) -> Candidates:
    """Make candidates from one list of passage rows per query, of which the first `positives[i]` are positive."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)  # position in its list

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
    # a positive directly after a negative in the same list
    late = candidates.positive[1:] & ~candidates.positive[:-1]
    starts = candidates.offsets[1:-1]
    late[starts[(starts > 0) & (starts < candidates.pairs)] - 1] = False
    assert not late.any(), "positives come first in a candidate list"
