"""Training batches: which queries come next, and one positive and `n` negatives for each.

The order depends on (seed, epoch) and a query's draws on (seed, epoch, query) alone, so any number of processes gets
the same global batches, and a position is a state of three numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.config import Sampling
from distill.data.labels import Labels, read_labels
from distill.data.layout import RunFolder
from distill.data.manifest import require_manifest
from distill.data.texts import TextStore

UNIFORM = Sampling()
_ORDER, _DRAW = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Batch:
    """A global batch of B queries with 1 + n passages each, the positive first."""

    query_rows: np.ndarray  # int64 [B], in queries.train
    passage_rows: np.ndarray  # int64 [B, 1 + n], in passages
    labels: np.ndarray  # float32 [B, 1 + n]
    origins: np.ndarray  # int64 [B, 1 + n]: the passages, and for variants those that they were cut from
    positives: tuple[np.ndarray, ...]  # of each query, the origins of all known positives: int64

    def __len__(self) -> int:
        return len(self.query_rows)

    def bounds(self, rank: int, world_size: int) -> tuple[int, int]:
        """First and last + 1 query of one process: a contiguous slice, of equal size where the world size divides B."""
        first, last = (len(self) * r // world_size for r in (rank, rank + 1))
        return first, last

    def rows(self, first: int, last: int) -> Batch:
        piece = slice(first, last)
        return Batch(
            self.query_rows[piece],
            self.passage_rows[piece],
            self.labels[piece],
            self.origins[piece],
            self.positives[piece],
        )

    def also_positive(self, first: int, last: int) -> np.ndarray:
        """Queries `first` to `last`, counted from `first`, and places in the flattened passages of the batch where one
        of theirs is a known positive, or a variant of one, but for their own first place: int64 [2, k]."""
        flat = self.origins.reshape(-1)
        order = np.argsort(flat, kind="stable")
        rows = np.concatenate([np.empty(0, np.int64), *self.positives[first:last]])
        queries = np.repeat(np.arange(first, last), [len(known) for known in self.positives[first:last]])
        starts, ends = (np.searchsorted(flat[order], rows, side=side) for side in ("left", "right"))
        counts = ends - starts
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places, queries = order[np.repeat(starts, counts) + within], np.repeat(queries, counts)
        others = places != queries * self.passage_rows.shape[1]
        return np.stack([queries - first, places])[:, others]


class TrainingData:
    """The label shards of a run, addressed by one running number per labelled query. `passages`: whose variants are
    known as such; None where there are none."""

    def __init__(self, shards: list[Labels], passages: TextStore | None = None):
        self._shards, self._passages = shards, passages
        self._starts = np.cumsum([0] + [len(shard.query) for shard in shards])

    @classmethod
    def open(cls, folder: RunFolder) -> TrainingData:
        """Map the finished label shards; `StorageError` where labelling hasn't finished."""
        path = folder.labels()
        manifest = require_manifest(path, "label")
        return cls([read_labels(path / shard.name) for shard in manifest.shards], TextStore.open(folder.passages))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def origins(self, rows: np.ndarray) -> np.ndarray:
        """The passages `rows`, variants replaced by what they were cut from: int64 of the same shape."""
        variants = rows >= self._passages.collection_size if self._passages is not None else np.zeros(rows.shape, bool)
        if not variants.any():
            return rows
        found = rows.copy()
        found[variants] = self._passages.origin(rows[variants])
        return found

    def query(self, item: int) -> tuple[int, np.ndarray, np.ndarray, int]:
        """Query row, passage rows, labels, and how many of the passages (the first ones) are positives."""
        s = int(np.searchsorted(self._starts, item, side="right")) - 1
        shard, i = self._shards[s], item - int(self._starts[s])
        piece = slice(int(shard.offsets[i]), int(shard.offsets[i + 1]))
        return int(shard.query[i]), shard.passages[piece], shard.labels[piece], int(shard.positive[piece].sum())


class Sampler:
    """Endless global batches over `TrainingData`, epoch after epoch, each in its own shuffled order.

    A batch may reach over the end of an epoch: every query is seen once an epoch and every batch is full.
    """

    def __init__(self, data: TrainingData, negatives: int, seed: int, sampling: Sampling = UNIFORM):
        self._data, self._negatives, self._seed, self._sampling = data, negatives, seed, sampling
        self._epoch, self._position = 0, 0
        self._order = self._shuffled()

    @property
    def queries(self) -> int:
        return len(self._data)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, over the same data."""
        self._seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
        self._order = self._shuffled()

    def next_batch(self, batch_size: int) -> Batch:
        """The next `batch_size` queries of the global order, whoever asks."""
        queries = np.empty(batch_size, np.int64)
        passages = np.empty((batch_size, 1 + self._negatives), np.int64)
        labels = np.empty((batch_size, 1 + self._negatives), np.float32)
        known = []
        for row in range(batch_size):
            if self._position == len(self._order):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._shuffled()
            item = int(self._order[self._position])
            self._position += 1
            queries[row], rows, values, positives = self._data.query(item)
            drawn = draw(
                positives, values, self._negatives, (self._seed, self._epoch, int(queries[row])), self._sampling
            )
            passages[row], labels[row] = rows[drawn], values[drawn]
            known.append(rows[:positives])
        origins = self._data.origins(np.concatenate([passages.reshape(-1), *known]))  # one look into the store
        ends = np.cumsum([passages.size, *map(len, known)])
        of_passages, *of_positives = np.split(origins, ends[:-1])
        return Batch(queries, passages, labels, of_passages.reshape(passages.shape), tuple(of_positives))

    def _shuffled(self) -> np.ndarray:
        return np.random.default_rng([self._seed, self._epoch, _ORDER]).permutation(len(self._data))


def draw(
    positives: int, labels: np.ndarray, negatives: int, seed: tuple[int, int, int], sampling: Sampling = UNIFORM
) -> np.ndarray:
    """Places in a list with these `labels`, the first `positives` of which are positive: one positive, then negatives.

    Negatives are drawn without replacement, as `sampling` says; a list with too few is used whole, again and again.
    """
    rng = np.random.default_rng([*seed, _DRAW])
    positive = rng.integers(positives) if positives > 1 else 0
    pool = _pool(positives, labels, sampling.ranks)  # places
    rounds = [rng.permutation(pool) for _ in range(negatives // len(pool))]
    left = negatives % len(pool)
    if left:
        match sampling.by:
            case "uniform":
                rounds.append(rng.choice(pool, left, replace=False))
            case "label":  # the largest of label / temperature + Gumbel noise: softmax without replacement
                keys = labels[pool] / sampling.temperature + rng.gumbel(size=len(pool))
                rounds.append(pool[np.argsort(-keys, kind="stable")[:left]])
            case "hardest":
                rounds.append(pool[np.argsort(-labels[pool], kind="stable")[:left]])
    return np.concatenate([[positive], *rounds]).astype(np.int64)


def _pool(positives: int, labels: np.ndarray, ranks: tuple[int, int] | None) -> np.ndarray:
    """The negatives that may be drawn; of a list too short for `ranks` its last ones."""
    pool = np.arange(positives, len(labels))
    if ranks is None:
        return pool
    ranked = pool[np.argsort(-labels[pool], kind="stable")]
    first, last = ranks
    return np.sort(ranked[first - 1 : last]) if first <= len(ranked) else ranked[-1:]
