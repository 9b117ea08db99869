"""Rankings that a miner of kind `run` reads from files, as an index of rows: for each query its passages, best first.

The files are converted once, into one Arrow file per split below the data's index/, under a key made of their content.
Miners map these files into memory, on every machine that sees the run folder; like other indexes they are a cache.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.config import Data, Miner
from distill.errors import DataError
from distill.importing.readers.base import Location, location_of, reading
from distill.importing.readers.rankings import check_rankings, ranking_files, read_rankings
from distill.importing.spool import Spool
from distill.importing.stores import in_bulk, quoted_id
from distill.progress import progress
from distill.run.files import checksum, locked
from distill.run.fingerprint import fingerprint
from distill.run.layout import SPLITS
from distill.run.manifest import FORMAT
from distill.run.output import Output
from distill.run.run import Run
from distill.store.arrow import RowReader, write_ipc
from distill.store.texts import TextStore

log = logging.getLogger(__name__)

_LOOKUP_IDS = 1 << 21  # passage ids resolved at once: each look-up scans the ids of the collection
_MERGED_QUERIES = 1024  # ranked at once
_ROWS, _SCORES = pa.large_list(pa.int64()), pa.large_list(pa.float64())
_INDEX = pa.schema([("query", pa.int64()), ("passages", _ROWS)])  # ascending queries


class RankingIndex:
    """The rankings of a split's queries, memory-mapped. `counts`: of what the files hold, for this split."""

    def __init__(self, path: Path):
        self._reader = RowReader(path)
        columns = [batch.column("query").to_numpy() for batch in self._reader.batches]
        self.queries = np.concatenate([np.empty(0, np.int64), *columns])  # int64 [q], ascending
        self.counts: dict[str, int] = json.loads(self._reader.metadata["counts"])

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the best `k` passages of each query row: int64 [n, <= k], -1 after the last one."""
        places = np.searchsorted(self.queries, queries)
        has_list = np.isin(queries, self.queries)
        lists = self._reader.take(places[has_list], ["passages"]).column(0)
        lengths = np.zeros(len(queries), np.int64)
        lengths[has_list] = lists.value_lengths().to_numpy()
        starts = np.cumsum(lengths) - lengths
        within = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        kept = within < k
        rows = np.full((len(queries), min(k, int(lengths.max(initial=0)))), -1, np.int64)
        rows[np.repeat(np.arange(len(queries)), lengths)[kept], within[kept]] = lists.flatten().to_numpy()[kept]
        return rows


def ranking_fields(miner: Miner) -> dict[str, Any]:
    """Fingerprint inputs of a miner's rankings: the content of its files, in order, wherever they are."""
    assert miner.path is not None  # the schema requires it
    checksums = []
    for file in ranking_files(miner.path):
        with reading(file):
            checksums.append(checksum(file))
    return {"files": checksums, "systems": sorted(set(miner.systems))}


def check_miner(name: str, miner: Miner) -> None:
    """Raise `DataError` for files that are missing, or whose first list cannot be read."""
    assert miner.path is not None
    if not miner.path.exists():
        raise DataError("no such file or folder", path=miner.path, field=f"mine.miners.{name}.path")
    for file in ranking_files(miner.path):
        check_rankings(file, miner.systems)


def ranking_indexes(run: Run, outputs: Sequence[Output] = ()) -> dict[str, Path]:
    """Return the folder of each run miner's index, one file per split; a missing index is made first.

    Raises `DataError` for rankings that do not fit the data, and if the first miner has no ranking for the evaluated
    queries although their candidates are among `outputs`.
    """
    miners = {name: miner for name, miner in run.recipe.mine.miners.items() if miner.kind == "run"}
    homes = {name: _make(run, name, miner) for name, miner in miners.items()}
    first, split = next(iter(run.recipe.mine.miners)), run.recipe.evaluate.split
    is_needed = first in homes and split != "train" and (split,) in [output.key for output in outputs]
    if is_needed and not len(RankingIndex(index_file(homes[first], split)).queries):
        raise DataError(
            f"ranks none of the {split} queries (evaluate.split), whose candidates are the first miner's. Put a miner "
            "first that ranks them (bm25: {kind: bm25, top: 0} adds no negatives), or add lists of them",
            path=miners[first].path,
            field=f"mine.miners.{first}",
        )
    return homes


def ranking_counts(homes: Mapping[str, Path], split: str, shards: Sequence[np.ndarray]) -> dict[str, int]:
    """Counts of what each of these miners' files hold, and of the queries, by shard, that they do not rank."""
    counts: dict[str, int] = {}
    queries = np.concatenate([np.empty(0, np.int64), *shards])
    for name, home in homes.items():
        index = RankingIndex(index_file(home, split))
        without = int((~np.isin(queries, index.queries)).sum())
        if without:
            log.warning("mine.miners.%s ranks nothing for %d of %d %s queries", name, without, len(queries), split)
        of_miner = {"queries_without_list": without, **index.counts}
        counts |= {f"{name}.{what}": count for what, count in of_miner.items()}
    return counts


def index_file(home: Path, split: str) -> Path:
    return home / f"{split}.arrow"


def _make(run: Run, name: str, miner: Miner) -> Path:
    """Convert a miner's files, unless that is done; returns the folder."""
    fields = {
        "format": FORMAT,
        "kind": miner.kind,
        "texts": TextStore.open(run.folder.passages).fingerprint,
        **ranking_fields(miner),
    }
    home = run.folder.index(fingerprint(fields))
    stores = {split: TextStore.open(path) for split in SPLITS if (path := run.folder.queries(split)).exists()}
    with locked(home):
        if not all(index_file(home, split).exists() for split in stores):
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".rankings-", dir=home.parent) as spool:
                _convert(run, name, miner, stores, home, Path(spool))
    return home


def _convert(run: Run, name: str, miner: Miner, stores: Mapping[str, TextStore], home: Path, spool: Path) -> None:
    """Write the index of every split: read the files once, then merge the lists of each query."""
    lists, unknown, dropped = _resolve(run, name, miner, stores, spool)
    for split in stores:
        counts = {"unknown_queries": unknown[split], "dropped": dropped}
        write_ipc(index_file(home, split), _INDEX, _merged(lists, split), {"counts": json.dumps(counts)})
    told = ", ".join(f"{len(RankingIndex(index_file(home, split)).queries):,} {split}" for split in stores)
    log.info("mine.miners.%s: %s ranks %s queries", name, miner.path, told)
    if dropped:
        log.warning("mine.miners.%s: %d ids are of passages that the collection does not have; left out", name, dropped)


def _resolve(
    run: Run, name: str, miner: Miner, stores: Mapping[str, TextStore], spool: Path
) -> tuple[RowReader, dict[str, int], int]:
    """Spool all lists in row numbers; a list about a query of no split is only counted.

    Returns the lists, with a column of query rows per split (-1: not its query); the number of queries that each split
    does not have; and the number of ids left out. Raises `DataError` for an unknown passage unless
    `data.on_missing` is `drop`, for an unknown system, and for scores in one place and ranks in another.
    """
    assert miner.path is not None
    passages, options = TextStore.open(run.folder.passages), run.recipe.data
    schema = pa.schema([*((split, pa.int64()) for split in stores), ("passages", _ROWS), ("scores", _SCORES)])
    systems: set[str] = set()
    queries: list[pa.Array] = []
    known = {split: np.zeros(len(store), bool) for split, store in stores.items()}
    dropped, scored = 0, None
    with progress(f"read {name}", None, "lists") as advance, Spool(spool / "lists.arrow", schema) as lists:
        for table in _tables(miner, systems):
            scored = _one_kind(table, scored)
            queries.append(pc.unique(table.column("query_id")))
            columns = {split: _rows(store, table.column("query_id"), options) for split, store in stores.items()}
            is_known = np.any([rows >= 0 for rows in columns.values()], axis=0)
            for split, rows in columns.items():
                known[split][rows[rows >= 0]] = True
            advance(len(table))
            if not is_known.any():
                continue
            batch = table.filter(pa.array(is_known)).combine_chunks().to_batches()[0]
            ids, scores = batch.column("passage_ids").flatten(), batch.column("scores").flatten()
            rows, offsets = _rows(passages, ids, options), _offsets(batch.column("passage_ids"))
            if (missing := np.flatnonzero(rows < 0)).size:
                if options.on_missing == "refuse":
                    raise _unknown_passage(name, batch, ids, int(missing[0]))
                dropped += missing.size
                offsets = np.concatenate([[0], np.cumsum(rows >= 0)])[offsets]
                scores, rows = scores.filter(pa.array(rows >= 0)), rows[rows >= 0]
            flat = [pa.LargeListArray.from_arrays(pa.array(offsets), column) for column in (pa.array(rows), scores)]
            of_split = [pa.array(rows[is_known]) for rows in columns.values()]
            lists.write_batch(pa.RecordBatch.from_arrays([*of_split, *flat], schema=schema))
    if others := [system for system in miner.systems if system not in systems]:
        raise DataError(
            f"there is no system {others[0]!r}; it has {', '.join(sorted(systems))}",
            path=miner.path,
            field=f"mine.miners.{name}.systems",
        )
    distinct = len(pa.chunked_array(queries, pa.large_string()).unique())
    unknown = {split: distinct - int(of_split.sum()) for split, of_split in known.items()}
    return RowReader(spool / "lists.arrow"), unknown, dropped


def _tables(miner: Miner, systems: set[str]) -> Iterator[pa.Table]:
    """The lists of all files, in tables of about `_LOOKUP_IDS` ids of one file."""
    assert miner.path is not None
    for file in ranking_files(miner.path):
        batches = read_rankings(file, miner.systems, systems)
        yield from in_bulk(batches, _LOOKUP_IDS, lambda batch: len(batch.column("passage_ids").flatten()))


def _one_kind(table: pa.Table, scored: bool | None) -> bool:
    """Raise `DataError` unless all lists have scores or none has: the two cannot be merged."""
    kinds = table.column("scored").to_numpy()
    expected = bool(kinds[0]) if scored is None else scored
    if (others := np.flatnonzero(kinds != expected)).size:
        here, before = ("scores", "none") if kinds[others[0]] else ("no scores", "scores")
        raise location_of(table, int(others[0])).error(
            f"a list with {here}, where the lists before it have {before}; give each kind a miner of its own"
        )
    return expected


def _rows(store: TextStore, ids: pa.Array | pa.ChunkedArray, options: Data) -> np.ndarray:
    """The row of each id, -1 for an unknown one. With `data.quote_ids`, ids may be quoted already or not."""
    rows = store.rows_of(ids)
    if options.quote_ids and (missing := np.flatnonzero(rows < 0)).size:
        rows = rows.copy()
        rows[missing] = store.rows_of([quoted_id(value) for value in ids.take(pa.array(missing)).to_pylist()])
    return rows


def _offsets(lists: pa.Array) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())]).astype(np.int64)


def _unknown_passage(name: str, batch: pa.RecordBatch, ids: pa.Array, at: int) -> DataError:
    """The error for the id at place `at` of a batch's lists."""
    offsets = _offsets(batch.column("passage_ids"))
    row = int(np.searchsorted(offsets, at, side="right")) - 1
    path, line = location_of(batch, row)
    if line is not None:
        line += batch.column("lines_per_passage")[row].as_py() * (at - int(offsets[row]))
    return Location(path, line).error(
        f"the collection has no passage with the id {ids[at].as_py()!r}, in the list of query "
        f"{batch.column('query_id')[row].as_py()!r}. If these are rankings of this collection, set data.on_missing: "
        "drop to leave such ids out",
        f"mine.miners.{name}",
    )


def _merged(lists: RowReader, split: str) -> Iterator[pa.RecordBatch]:
    """The one ranking of each query of a split: by descending score, equal scores in the files' order.

    Of a passage that is there twice, the better place counts.
    """
    query = lists.table().column(split).to_numpy()
    order = np.argsort(query, kind="stable")
    order = order[query[order] >= 0]
    starts = np.flatnonzero(np.diff(query[order], prepend=-1))
    for first in range(0, len(starts), _MERGED_QUERIES):
        stop = starts[first + _MERGED_QUERIES] if first + _MERGED_QUERIES < len(starts) else len(order)
        batch = lists.take(order[starts[first] : stop], [split, "passages", "scores"])
        of = np.repeat(batch.column(split).to_numpy(), batch.column("passages").value_lengths().to_numpy())
        passages, scores = (batch.column(name).flatten().to_numpy() for name in ("passages", "scores"))
        best = np.lexsort((-scores, of))
        pairs = np.stack([of[best], passages[best]], axis=1)
        best = best[np.sort(np.unique(pairs, axis=0, return_index=True)[1])]
        queries, lengths = np.unique(of[best], return_counts=True)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        ranked = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(passages[best]))
        yield pa.RecordBatch.from_arrays([pa.array(queries), ranked], schema=_INDEX)
