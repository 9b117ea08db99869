"""The queries of a log: distinct, without those of other splits, the most frequent first.

Texts are compared by a 64-bit hash of their words in one case; a log of millions of queries needs some bytes of memory
for each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from distill.config import Data
from distill.errors import DataError
from distill.importing.readers.base import Batches, Unread
from distill.importing.readers.query_log import LOG, forget_unread, read_query_log
from distill.importing.spool import Spool
from distill.importing.stores import check_ids, quoted_ids, sample_below
from distill.run.manifest import Shard
from distill.store.arrow import BATCH_ROWS, RowReader, write_ipc
from distill.store.texts import QUERY_SCHEMA

log = logging.getLogger(__name__)

COUNT_SCHEMA = pa.schema([("count", pa.int64())])


@dataclass(frozen=True)
class LoggedQueries:
    """Distinct queries of a log: rows `rows[i]` of `reader`, ascending, each asked `counts[i]` times."""

    reader: RowReader  # of `LOG`
    rows: np.ndarray  # int64 [n]
    counts: np.ndarray  # int64 [n]
    digests: np.ndarray  # uint64 [n]

    def __len__(self) -> int:
        return len(self.rows)

    def most_frequent(self, number: int, seed: Sequence[int]) -> np.ndarray:
        """Indices of the `number` most frequent queries, ascending; ties in a shuffle of this seed."""
        shuffled = np.random.default_rng(list(seed)).permutation(len(self))
        by_count = shuffled[np.argsort(-self.counts[shuffled], kind="stable")]
        return np.sort(by_count[:number])

    def texts(self, chosen: np.ndarray) -> list[str]:
        """The texts of the queries with these indices."""
        return [str(text) for text in self.reader.take(self.rows[chosen], ["text"]).column(0).to_pylist()]

    def write_counts(self, chosen: np.ndarray, others: int, path: Path, fingerprint: str) -> Shard:
        """Write how often each training query was asked: 0 for the first `others`, then those with these indices."""
        asked = pa.array(np.concatenate([np.zeros(others, np.int64), self.counts[chosen]]))
        batch = pa.RecordBatch.from_arrays([asked], schema=COUNT_SCHEMA)
        shard = write_ipc(path, COUNT_SCHEMA, [batch], {"fingerprint": fingerprint})
        assert shard is not None  # only exclusive writes give None
        return shard

    def batches(self, chosen: np.ndarray) -> Batches:
        """The queries with these indices, in batches of the query store's schema."""
        for start in range(0, len(chosen), BATCH_ROWS):
            rows = self.rows[chosen[start : start + BATCH_ROWS]]
            yield pa.RecordBatch.from_arrays(self.reader.take(rows, ["id", "text"]).columns, schema=QUERY_SCHEMA)


def read_log(data: Data, unread: Unread, spool: Path, counts: dict[str, Any]) -> LoggedQueries:
    """Read `data.query_log` into a temporary file, and leave out what is empty or repeated.

    Adds to `unread`, and to `counts` the rows read and left out. Raises `DataError` for a row that cannot be read.
    """
    digests, asked, rows, empty = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0, 0
    with Spool(spool / "query_log.arrow", LOG) as store:
        batches = read_query_log(data, unread)
        for batch in quoted_ids(batches, ("id",)) if data.quote_ids else batches:
            check_ids(batch, "query")
            rows += batch.num_rows
            texts = [_normalised(text) for text in batch.column("text").to_pylist()]
            batch = batch.filter(pa.array([bool(text) for text in texts], pa.bool_()))
            empty += len(texts) - batch.num_rows
            store.write_batch(batch)
            digests.append(_digests(text for text in texts if text))
            asked.append(batch.column("count").to_numpy())
    forget_unread(data, unread)
    distinct, first, codes = np.unique(np.concatenate(digests), return_index=True, return_inverse=True)
    total = np.zeros(len(distinct), np.int64)
    np.add.at(total, codes, np.concatenate(asked))
    counts["query_log.rows"], counts["query_log.empty"] = rows, empty
    counts["query_log.repeated"] = len(codes) - len(distinct)
    order = np.argsort(first)
    return LoggedQueries(RowReader(store.path), first[order].astype(np.int64), total[order], distinct[order])


def leave_out(log: LoggedQueries, known: Mapping[str, Iterable[list[str]]], counts: dict[str, Any]) -> LoggedQueries:
    """Leave out the queries of a log that are queries of a split.

    `known`: split -> its queries' texts, in lists. Adds to `counts` how many each split has.
    """
    usable = np.ones(len(log), bool)
    for split, texts_of_split in known.items():
        parts = [np.empty(0, np.uint64), *(_digests(map(_normalised, texts)) for texts in texts_of_split)]
        same = np.isin(log.digests, np.concatenate(parts))
        counts[f"query_log.in_{split}"] = int((usable & same).sum())
        usable &= ~same
    return LoggedQueries(log.reader, log.rows[usable], log.counts[usable], log.digests[usable])


def choose_training(
    data: Data, others: int, logged: LoggedQueries, limits: Sequence[int], seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Choose among `others` judged and generated queries and those of a log, at most as many as `limits` allow.

    Returns the numbers of the others and the indices of the log's, both ascending.
    """
    options = data.query_log
    assert options is not None
    available = min(len(logged), options.limit or len(logged))
    if options.share is None:
        sample = sample_below(others + available, limits, seed)
        return sample[sample < others], logged.most_frequent(int((sample >= others).sum()), seed)
    kept, taken = _sizes(options.share, others, available, min(limits, default=None))
    return sample_below(others, [kept], seed), logged.most_frequent(taken, seed)


def _sizes(share: float, others: int, logged: int, cap: int | None) -> tuple[int, int]:
    """The numbers of other and of logged queries with a `share` of the latter.

    `others`, `logged`: available; `cap`: at most so many in all. Raises `DataError` without any others.
    """
    if not others:
        raise DataError(
            "there are no judged or generated training queries beside the log's; leave share out, or set data.generate",
            field="data.query_log.share",
        )
    total = round(others / (1 - share))
    if cap is not None:
        total = min(total, cap)
    kept = min(others, max(1, round(total * (1 - share))))
    wanted = total - kept
    taken = min(logged, wanted)
    if taken < wanted:
        log.warning(
            "the query log has %d usable queries, which are %.1f%% of the training queries (data.query_log.share: %g)",
            taken,
            100 * taken / (taken + kept),
            share,
        )
    return kept, taken


def report_log(counts: dict[str, Any]) -> None:
    """Say what of a log is trained on, and what was left out."""
    log.info(
        "%d of %d rows of the query log are training queries", counts["queries.train.logged"], counts["query_log.rows"]
    )
    for name, message in (
        ("empty", "have no text"),
        ("repeated", "repeat an earlier one, to whose count they add,"),
        ("in_train", "are judged or generated training queries already"),
        ("in_dev", "are development queries"),
        ("in_test", "are test queries"),
        ("not_drawn", "are beyond the limits (data.query_log.limit or share, data.train_queries, data.limit)"),
    ):
        if number := counts.get(f"query_log.{name}"):
            log.warning("%d queries of the log %s and are left out", number, message)


def _normalised(text: str) -> str:
    """The words of a text in one case, with one blank between them."""
    return " ".join(text.casefold().split())


def _digests(texts: Iterable[str]) -> np.ndarray:
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in texts), np.uint64)
