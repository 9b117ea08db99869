"""Training batches: the order of the queries, and one positive and `n` negatives for each.

A list without a positive, as of a query from a log, gives `1 + n` passages, drawn as negatives are; the one with the
highest label stands in the positive's place.

The order depends only on (seed, epoch), and the passages drawn for a query only on (seed, epoch, query) and how often
the epoch has drawn it before. So the global
batches are the same for any number of processes, and the sampler's state is three numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.config import QueryWeights, Sampling
from distill.run.layout import RunFolder
from distill.run.manifest import require_manifest
from distill.store.arrow import RowReader
from distill.store.identity import Copies, positives_of_equal_queries
from distill.store.judgements import load_judgements
from distill.store.labels import Labels, read_labels
from distill.store.texts import TextStore

UNIFORM = Sampling()
_ORDER, _DRAW = 0, 1  # streams of random numbers
_REPEATS = 1 << 32  # more than the draws of a query in an epoch


@dataclass(frozen=True)
class Batch:
    """A global batch of B queries with 1 + n passages each, the positive or else the highest label first."""

    query_rows: np.ndarray  # int64 [B], in queries.train
    passage_rows: np.ndarray  # int64 [B, 1 + n], in passages
    labels: np.ndarray  # float32 [B, 1 + n]
    origins: np.ndarray  # int64 [B, 1 + n]: the passages by their text, see `TrainingData.origins`
    positives: tuple[np.ndarray, ...]  # per query, the origins of all known positives: int64

    def __len__(self) -> int:
        return len(self.query_rows)

    def bounds(self, rank: int, world_size: int) -> tuple[int, int]:
        """First and last + 1 query of a rank: contiguous slices, of equal size if the world size divides B."""
        first, last = (len(self) * r // world_size for r in (rank, rank + 1))
        return first, last

    def rows(self, first: int, last: int) -> Batch:
        """Queries `first` to `last - 1`."""
        queries = slice(first, last)
        return Batch(
            self.query_rows[queries],
            self.passage_rows[queries],
            self.labels[queries],
            self.origins[queries],
            self.positives[queries],
        )

    def known_positives(self, first: int, last: int) -> np.ndarray:
        """Index pairs (query, flat passage) of known positives in the batch, other than each query's own: int64 [2, k].

        Of queries `first` to `last - 1`, counted from `first`. Variants count as the passage they were cut from.
        """
        flat = self.origins.reshape(-1)
        order = np.argsort(flat, kind="stable")
        rows = np.concatenate([np.empty(0, np.int64), *self.positives[first:last]])
        queries = np.repeat(np.arange(first, last), [len(known) for known in self.positives[first:last]])
        # occurrences of each known positive in the batch: a run of `counts` entries from `starts` in the sorted batch
        starts = np.searchsorted(flat[order], rows, side="left")
        counts = np.searchsorted(flat[order], rows, side="right") - starts
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        passages, queries = order[np.repeat(starts, counts) + within], np.repeat(queries, counts)
        others = passages != queries * self.passage_rows.shape[1]  # not the query's own positive
        return np.stack([queries - first, passages])[:, others]


class TrainingData:
    """The label shards of a run, indexed by one running number per labelled query.

    `passages`: the store that tells variants from originals; None: there are no variants. `copies`: the passages of
    equal texts; None: there are none. `equal`: query row -> the positives of all queries with its text. `asked`: how
    often each row of queries.train was asked, 0 for queries that are not from a log: int64; None: there is no log.
    """

    def __init__(
        self,
        shards: list[Labels],
        passages: TextStore | None = None,
        copies: Copies | None = None,
        equal: dict[int, np.ndarray] | None = None,
        asked: np.ndarray | None = None,
    ):
        self._shards, self._passages, self._copies = shards, passages, copies
        self._equal, self._asked = equal or {}, asked
        self._starts = np.cumsum([0] + [len(shard.query) for shard in shards])

    @classmethod
    def open(cls, folder: RunFolder) -> TrainingData:
        """Map the finished label shards. Raises `StorageError` if labelling has not finished."""
        path = folder.labels()
        manifest = require_manifest(path, "label")
        shards = [read_labels(path / shard.name) for shard in manifest.shards]
        equal = positives_of_equal_queries(TextStore.open(folder.queries("train")), load_judgements(folder, "train"))
        asked = None
        if folder.query_counts.exists():
            asked = RowReader(folder.query_counts).table().column("count").to_numpy()
        return cls(shards, TextStore.open(folder.passages), Copies.load(folder), equal, asked)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def draws_per_epoch(self, weights: QueryWeights) -> np.ndarray | None:
        """Expected draws of each labelled query in an epoch, float64 [n]; None if each is drawn once.

        A query of a log has a share of the log's draws, one per query, that grows with its count.
        """
        if weights == "equal" or self._asked is None or not len(self):
            return None
        asked = self._asked[np.concatenate([shard.query for shard in self._shards])].astype(np.float64)
        logged, draws = asked > 0, np.ones(len(asked))
        share = asked[logged] if weights == "count" else np.sqrt(asked[logged])
        draws[logged] = share / share.sum() * logged.sum()
        return draws

    def origins(self, rows: np.ndarray) -> np.ndarray:
        """Passage rows with variants replaced by the passage they were cut from, and copies by the first of their text.

        int64 of the same shape.
        """
        origins = rows
        if self._passages is not None and (variants := rows >= self._passages.collection_size).any():
            origins = rows.copy()
            origins[variants] = self._passages.origin(rows[variants])
        return origins if self._copies is None else self._copies.originals(origins)

    def known_positives(self, query: int, positives: np.ndarray) -> np.ndarray:
        """Add to a query's own positives those of the queries with its text: int64."""
        return np.union1d(positives, self._equal[query]) if query in self._equal else positives

    def query(self, item: int) -> tuple[int, np.ndarray, np.ndarray, int]:
        """Query row, passage rows, labels, and the number of positives, which come first among the passages."""
        s = int(np.searchsorted(self._starts, item, side="right")) - 1
        shard, i = self._shards[s], item - int(self._starts[s])
        entries = slice(int(shard.offsets[i]), int(shard.offsets[i + 1]))
        return int(shard.query[i]), shard.passages[entries], shard.labels[entries], int(shard.positive[entries].sum())


class Sampler:
    """Endless global batches over `TrainingData`, each epoch in its own shuffled order.

    A batch may span two epochs: every query is seen once per epoch, or as often as `weights` says, and every batch is
    full. `pseudo_positives`: a loss takes the passage with the highest label for the positive of a list without one;
    see `draw`.
    """

    def __init__(
        self,
        data: TrainingData,
        negatives: int,
        seed: int,
        sampling: Sampling = UNIFORM,
        pseudo_positives: bool = False,
        weights: QueryWeights = "equal",
    ):
        self._data, self._negatives, self._seed, self._sampling = data, negatives, seed, sampling
        self._pseudo_positives = pseudo_positives
        self._draws = data.draws_per_epoch(weights)
        self._epoch, self._position = 0, 0
        self._order = self._shuffled()

    @property
    def queries(self) -> int:
        return len(self._data)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the position at which `state_dict` was called, over the same data."""
        self._seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
        self._order = self._shuffled()

    def next_batch(self, batch_size: int) -> Batch:
        """Return the next global batch, the same on every rank."""
        queries = np.empty(batch_size, np.int64)
        passages = np.empty((batch_size, 1 + self._negatives), np.int64)
        labels = np.empty((batch_size, 1 + self._negatives), np.float32)
        known: list[np.ndarray] = []  # per query, its known positives
        for row in range(batch_size):
            if self._position == len(self._order):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._shuffled()
            item, again = divmod(int(self._order[self._position]), _REPEATS)
            self._position += 1
            queries[row], rows, values, positives = self._data.query(item)
            seed = (self._seed, self._epoch, int(queries[row]), *([again] if again else []))
            drawn = draw(positives, values, self._negatives, seed, self._sampling, self._pseudo_positives)
            passages[row], labels[row] = rows[drawn], values[drawn]
            labelled = rows[:positives] if positives or not self._pseudo_positives else rows[drawn[:1]]
            known.append(self._data.known_positives(int(queries[row]), labelled))
        origins = self._data.origins(np.concatenate([passages.reshape(-1), *known]))  # one access to the store
        ends = np.cumsum([passages.size, *map(len, known)])
        of_passages, *of_positives = np.split(origins, ends[:-1])
        return Batch(queries, passages, labels, of_passages.reshape(passages.shape), tuple(of_positives))

    def _shuffled(self) -> np.ndarray:
        """The epoch's draws in order, `_REPEATS` * item + how often the item was drawn before: int64."""
        rng = np.random.default_rng([self._seed, self._epoch, _ORDER])
        if self._draws is None:
            return rng.permutation(len(self._data)) * _REPEATS
        times = systematic(self._draws, rng)
        items = np.repeat(np.arange(len(times)), times)
        earlier = np.arange(len(items)) - np.repeat(np.cumsum(times) - times, times)
        return rng.permutation(items * _REPEATS + earlier)


def systematic(expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw whole numbers, each the `expected` one rounded up or down, with these means and nearly their sum: int64 [n].

    Systematic sampling (Madow 1949) of the fractions.
    """
    whole = np.floor(expected)
    steps = np.floor(np.cumsum(expected - whole) + rng.random())
    return (whole + np.diff(steps, prepend=0)).astype(np.int64)


def draw(
    positives: int,
    labels: np.ndarray,
    negatives: int,
    seed: tuple[int, ...],
    sampling: Sampling = UNIFORM,
    pseudo_positive: bool = False,
) -> np.ndarray:
    """Draw one positive, then negatives, from a list with these `labels` whose first `positives` entries are positive.

    Returns indices into the list: int64 [1 + negatives]. Negatives are drawn without replacement, as `sampling` says; a
    list with too few is repeated in full until the rest is smaller than the list. Without positives, all are drawn as
    negatives are, the highest label first; with `pseudo_positive`, the highest label of the list is the positive.
    """
    rng = np.random.default_rng([*seed, _DRAW])
    everything = np.arange(len(labels))
    if positives:
        positive = rng.integers(positives) if positives > 1 else 0
        return np.append(positive, _negatives(everything[positives:], labels, negatives, rng, sampling))
    best = int(np.argmax(labels))
    if pseudo_positive:
        return np.append(best, _negatives(np.delete(everything, best), labels, negatives, rng, sampling))
    drawn = _negatives(everything, labels, 1 + negatives, rng, sampling)
    first = int(np.argmax(labels[drawn]))
    return np.append(drawn[first], np.delete(drawn, first))


def _negatives(
    entries: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator, sampling: Sampling
) -> np.ndarray:
    """Draw `count` of the `entries`, indices into the list, as `sampling` says: int64 [count]."""
    pool = _pool(entries, labels, sampling.ranks)
    rounds = [rng.permutation(pool) for _ in range(count // len(pool))]
    rest = count % len(pool)
    if rest:
        match sampling.by:
            case "uniform":
                rounds.append(rng.choice(pool, rest, replace=False))
            case "label":  # the largest of label / temperature + Gumbel noise: softmax without replacement
                keys = labels[pool] / sampling.temperature + rng.gumbel(size=len(pool))
                rounds.append(pool[np.argsort(-keys, kind="stable")[:rest]])
            case "hardest":
                rounds.append(pool[np.argsort(-labels[pool], kind="stable")[:rest]])
    return np.concatenate(rounds).astype(np.int64)


def _pool(pool: np.ndarray, labels: np.ndarray, ranks: tuple[int, int] | None) -> np.ndarray:
    """Those of the `pool` within `ranks` of the labels; the last-ranked one if there are too few for them."""
    if ranks is None:
        return pool
    ranked = pool[np.argsort(-labels[pool], kind="stable")]
    first, last = ranks
    return np.sort(ranked[first - 1 : last]) if first <= len(ranked) else ranked[-1:]
