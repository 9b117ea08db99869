"""A source's own negatives and scores become candidate and score shards, in row numbers.

Lists about the same query are merged, and judged positives that a list lacks are added. The scores belong to the
recipe's teacher of kind `imported`.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.config import Recipe
from distill.errors import RecipeError
from distill.importing.readers.base import Batches
from distill.importing.spool import Spool
from distill.importing.stores import in_bulk, unknown_id
from distill.run.fingerprint import check_same, fingerprint
from distill.run.layout import RunFolder
from distill.run.manifest import FORMAT, Manifest, Shard, read_manifest, write_manifest
from distill.store.arrow import RowReader
from distill.store.candidates import Candidates, shard_name, write_candidates
from distill.store.identity import Copies, load_own_documents, positives_of_equal_queries
from distill.store.judgements import Judgements, load_judgements
from distill.store.scores import write_scores
from distill.store.texts import TextStore

log = logging.getLogger(__name__)

SOURCES = ("judgement", "imported")
_TOLD = {
    "negatives_judged_positive": "%d passages are negatives in one place and positives of the same query in another; "
    "they count as positives",
    "pairs_with_several_scores": "%d pairs of query and passage have several scores; the first one counts",
    "positives_of_equal_queries": "%d negatives are positives of another query with the same text; left out",
    "empty_negatives": "%d negatives have no text; left out",
}
_TOTALS = (
    "queries",
    "positives",
    "negatives",
    "queries_without_negatives",
    "queries_without_positives",
    "negatives_judged_positive",
    "pairs_with_several_scores",
    "copies_of_positives",
    "own_documents",
    "scores_missing",
    "scored",
    "outscored",
)
OUTSCORED = (
    "in %d of %d lists most negatives outscore the positive (%s): are the scores of positives and negatives on two "
    "scales, or the wrong way round?"
)
_LOOKUP_LISTS = 16_384  # lists resolved at once, each with about a hundred passages
_RESOLVED = pa.schema(
    [
        ("query", pa.int64()),
        ("passages", pa.large_list(pa.int64())),
        ("positive", pa.large_list(pa.bool_())),
        ("scores", pa.large_list(pa.float32())),
    ]
)


def imported_teacher(recipe: Recipe) -> str | None:
    """The teacher that the source's scores belong to; None without one. Raises `RecipeError` for two."""
    names = [name for name, teacher in recipe.teachers.items() if teacher.kind == "imported"]
    if len(names) > 1:
        raise RecipeError(
            f"teachers {' and '.join(names)} are of kind imported, but a source has one set of scores; keep one of them"
        )
    return names[0] if names else None


def list_fields(recipe: Recipe, data_fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fingerprint inputs of imported candidates, and of their scores."""
    fields = {
        "stage": "import",
        "format": FORMAT,
        "split": "train",
        "data": fingerprint(data_fields),
        "shard_queries": recipe.mine.shard_queries,
    }
    return fields, {**fields, "teacher": imported_teacher(recipe), "candidates": fingerprint(fields)}


@dataclass(frozen=True)
class ResolvedLists:
    """The lists of a split in row numbers."""

    rows: RowReader  # of `_RESOLVED`
    unknown: int  # lists about queries that the source does not have
    dropped: int  # entries of passages that the source does not have
    has_scores: bool


def resolve_lists(
    batches: Batches,
    queries: TextStore,
    final: np.ndarray,
    passages: TextStore,
    path: Path,
    *,
    drop_unknown: bool = False,
) -> ResolvedLists:
    """Spool the lists of the imported queries to `path`, in row numbers.

    `queries`: all queries of the source; `final`: int64, the row of each in the split's store (-1: left out). Score
    files often cover more queries than a split, so lists about unknown queries are only counted. An unknown passage
    raises `DataError`, or is left out with `drop_unknown`.
    """
    unknown, dropped, has_scores = 0, 0, False
    with Spool(path, _RESOLVED) as spool:
        for table in in_bulk(batches, _LOOKUP_LISTS):
            rows = queries.rows_of(table.column("query_id"))
            unknown += int((rows < 0).sum())
            rows = np.where(rows >= 0, final[rows], -1) if len(final) else rows
            table = table.filter(pa.array(rows >= 0)).combine_chunks()
            if not len(table):
                continue
            batch = table.to_batches()[0]
            lists = batch.column("passage_ids")
            passage_rows = passages.rows_of(lists.flatten())
            missing = np.flatnonzero(passage_rows < 0)
            if missing.size and not drop_unknown:
                at = int(missing[0])
                list_number = pc.list_parent_indices(lists)[at].as_py()
                raise unknown_id(batch, list_number, lists.flatten()[at].as_py(), "passage_id")
            offsets = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())]).astype(np.int64)
            positive = pc.greater(_aligned(batch.column("grades"), offsets, pa.int32()), 0)
            scores = _aligned(batch.column("scores"), offsets, pa.float32())
            has_scores = has_scores or scores.null_count < len(scores)
            if missing.size:
                dropped += missing.size
                known = passage_rows >= 0
                offsets = np.concatenate([[0], np.cumsum(known)])[offsets]
                passage_rows = passage_rows[known]
                positive, scores = positive.filter(pa.array(known)), scores.filter(pa.array(known))
            columns = [
                pa.LargeListArray.from_arrays(pa.array(offsets), values)
                for values in (pa.array(passage_rows), positive, scores)
            ]
            spool.write_batch(pa.RecordBatch.from_arrays([pa.array(rows[rows >= 0]), *columns], schema=_RESOLVED))
    return ResolvedLists(RowReader(path), unknown, dropped, has_scores)


def write_lists(
    recipe: Recipe, lists: ResolvedLists, data_fields: dict[str, Any], staged: RunFolder, empty: np.ndarray
) -> dict[str, int]:
    """Write the candidates (and scores) of the training split below `staged`; returns counts.

    A copy of a positive (of any query with the same text), a query's own document, and a passage without a text
    (`empty`: their rows) is no negative and is left out. Writes nothing if no list has a negative. Raises `RecipeError`
    for a teacher of kind `imported` without scores.
    """
    teacher = imported_teacher(recipe)
    if teacher is not None and not lists.has_scores:
        raise RecipeError(f"teacher {teacher!r} is of kind imported, but the source brings no scores")
    if lists.has_scores and teacher is None:
        log.warning("the source's scores are not used: the recipe has no teacher of kind imported")
    fields, score_fields = list_fields(recipe, data_fields)
    key, score_key = fingerprint(fields), fingerprint(score_fields)
    shards: list[Shard] = []
    score_shards: list[Shard] = []
    totals = dict.fromkeys(_TOTALS, 0)
    folder = staged.candidates("train")
    judgements = load_judgements(staged, "train")
    no_negatives = _NoNegatives(
        Copies.load(staged),
        np.array(sorted(load_own_documents(staged, "train").items()), np.int64).reshape(-1, 2),
        positives_of_equal_queries(TextStore.open(staged.queries("train")), judgements),
        empty,
    )
    for group in _groups(lists.rows, recipe.mine.shard_queries):
        pairs = _distinct(_pairs(lists.rows.take(group), judgements), totals)
        candidates, scores = _merge(no_negatives.taken_out(pairs, totals), totals)
        if not len(candidates):
            continue
        name = shard_name(len(shards))
        shard = write_candidates(folder / name, candidates, key)
        assert shard is not None  # only exclusive writes give None
        shards.append(shard)
        if teacher is not None:
            totals["scores_missing"] += int(np.isnan(scores).sum())
            scored, outscored = outscored_lists(candidates, scores)
            totals["scored"], totals["outscored"] = totals["scored"] + scored, totals["outscored"] + outscored
            path = staged.scores(teacher, "train") / name
            shard = write_scores(path, candidates, scores, fingerprint=score_key, teacher=teacher, missing=True)
            assert shard is not None
            score_shards.append(shard)
        positives = int(candidates.positive.sum())
        totals["queries"] += len(candidates)
        totals["positives"] += positives
        totals["negatives"] += candidates.pairs - positives
    counts = {"lists.unknown_queries": lists.unknown} if lists.unknown else {}
    if lists.dropped:
        counts["lists.dropped"] = lists.dropped
        log.warning("%d scores are of passages that the source does not have; left out", lists.dropped)
    if 2 * totals["outscored"] > totals["scored"]:
        log.warning(OUTSCORED, totals["outscored"], totals["scored"], "the source's scores")
    for name, message in _TOLD.items():
        if count := totals.get(name):
            log.warning(message, count)
    if not shards:
        return {**counts, **{f"lists.{name}": value for name, value in totals.items() if value}}
    write_manifest(folder, Manifest(fields, tuple(shards), totals))
    if teacher is not None:
        write_manifest(staged.scores(teacher, "train"), Manifest(score_fields, tuple(score_shards), totals))
    return {**counts, **{f"lists.{name}": value for name, value in totals.items() if value}}


def outscored_lists(candidates: Candidates, scores: np.ndarray) -> tuple[int, int]:
    """Count the lists with scores on both sides, and those in which most negatives lie above the best positive.

    `scores`: float [pairs], NaN where missing.
    """
    starts = candidates.offsets[:-1]
    lists = np.repeat(np.arange(len(candidates)), np.diff(candidates.offsets))
    best = np.maximum.reduceat(np.where(candidates.positive & ~np.isnan(scores), scores, -np.inf), starts)
    negative = ~candidates.positive & ~np.isnan(scores)
    negatives = np.add.reduceat(negative.astype(np.int64), starts)
    above = np.add.reduceat((negative & (scores > best[lists])).astype(np.int64), starts)
    both = (negatives > 0) & np.isfinite(best)
    return int(both.sum()), int((both & (2 * above > negatives)).sum())


def publish(staged: RunFolder, folder: RunFolder) -> None:
    """Move the staged shards to their places, one folder at a time.

    Raises `FingerprintError` rather than overwrite the shards of another import.
    """
    score_folders = sorted(path.parent for path in staged.root.glob("scores/*/train/manifest.json"))
    # candidates last: a process that sees them also finds their scores
    for source in [*score_folders, staged.candidates("train")]:
        target = folder.root / source.relative_to(staged.root)
        new, old = read_manifest(source), read_manifest(target)
        if old is not None and (new is not None or old.fields.get("stage") == "import"):
            check_same(target, old.fields, {} if new is None else new.fields)
        elif new is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)  # without a manifest: left by an interrupted import
            os.rename(source, target)


def _aligned(column: pa.Array, offsets: np.ndarray, type_: pa.DataType) -> pa.Array:
    """Flatten a list column to the length of the passages, with nulls for a list that is null."""
    if not column.null_count:
        return column.flatten()
    lengths = np.diff(offsets)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    positions = np.flatnonzero(np.repeat(valid, lengths))
    index = np.full(int(offsets[-1]), -1, np.int64)
    index[positions] = np.arange(positions.size)
    return column.flatten().take(pa.array(index, mask=index < 0)).cast(type_)


def _groups(lists: RowReader, shard_queries: int) -> Iterator[np.ndarray]:
    """Yield the rows of the lists of `shard_queries` queries at a time, sorted by query."""
    query = lists.table().column("query").to_numpy()
    order = np.argsort(query, kind="stable")
    starts = np.flatnonzero(np.diff(query[order], prepend=-1))
    for i in range(0, len(starts), shard_queries):
        stop = starts[i + shard_queries] if i + shard_queries < len(starts) else len(order)
        yield order[starts[i] : stop]


Pairs = dict[str, np.ndarray]  # aligned columns, one entry per (query, passage)


def _merge(pairs: Pairs, totals: dict[str, int]) -> tuple[Candidates, np.ndarray]:
    """Make one shard of distinct pairs; returns its candidates and scores (NaN where missing), and adds to `totals`.

    The passages of a query: positives first, then in the order of the lists.
    """
    pairs = _rows(pairs, np.lexsort((pairs["place"], ~pairs["positive"], pairs["query"])))
    queries, codes, sizes = np.unique(pairs["query"], return_inverse=True, return_counts=True)
    positives = np.bincount(codes, weights=pairs["positive"], minlength=len(queries)).astype(np.int64)
    totals["queries_without_negatives"] += int((positives == sizes).sum())
    totals["queries_without_positives"] += int((positives == 0).sum())
    useful = (positives > 0) & (positives < sizes)  # one side alone teaches nothing
    pairs = _rows(pairs, useful[codes])
    offsets = np.concatenate([[0], np.cumsum(sizes[useful])]).astype(np.int64)
    candidates = Candidates(
        queries[useful], offsets, pairs["passage"], pairs["positive"], pairs["source"], pairs["rank"], SOURCES
    )
    return candidates, pairs["score"]


def _pairs(lists: pa.RecordBatch, judgements: Judgements) -> Pairs:
    """The pairs of the lists, then the judged positives of their queries, which have no score.

    `rank` counts from 1 inside a list and is 0 for a judgement; `place` counts all pairs.
    """
    lengths = lists.column("passages").value_lengths().to_numpy()
    query = np.repeat(lists.column("query").to_numpy(), lengths)
    within = np.arange(len(query)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    known = [(q, p) for q in np.unique(query) for p in judgements.positives(int(q))]
    judged = np.array(known, np.int64).reshape(-1, 2)
    return {
        "query": np.concatenate([query, judged[:, 0]]),
        "passage": np.concatenate([lists.column("passages").flatten().to_numpy(), judged[:, 1]]),
        "positive": np.concatenate(
            [
                lists.column("positive").flatten().fill_null(False).to_numpy(zero_copy_only=False),
                np.ones(len(judged), bool),
            ]
        ),
        "score": np.concatenate(
            [lists.column("scores").flatten().fill_null(np.nan).to_numpy(), np.full(len(judged), np.nan, np.float32)]
        ).astype(np.float32),
        # whether the list itself says what the passage is
        "stated": np.concatenate(
            [
                lists.column("positive").flatten().is_valid().to_numpy(zero_copy_only=False),
                np.ones(len(judged), bool),
            ]
        ),
        "source": np.repeat(np.array([1, 0], np.uint8), [len(query), len(judged)]),
        "rank": np.concatenate([within + 1, np.zeros(len(judged), np.int64)]).astype(np.int32),
        "place": np.arange(len(query) + len(judged)),
    }


def _distinct(pairs: Pairs, totals: dict[str, int]) -> Pairs:
    """Keep one of equal pairs: the first with a score, at the first place, positive if any of them is.

    Adds to `totals` the negatives that are positives elsewhere, and the pairs with several scores.
    """
    pairs = _rows(pairs, np.lexsort((pairs["place"], np.isnan(pairs["score"]), pairs["passage"], pairs["query"])))
    if not len(pairs["query"]):
        return pairs
    is_new = np.ones(len(pairs["query"]), bool)
    is_new[1:] = (np.diff(pairs["query"]) != 0) | (np.diff(pairs["passage"]) != 0)
    first = np.flatnonzero(is_new)
    listed = pairs["source"] == 1
    totals["negatives_judged_positive"] += int(
        (
            np.logical_or.reduceat(pairs["positive"], first)
            & np.logical_or.reduceat(listed & ~pairs["positive"] & pairs["stated"], first)
        ).sum()
    )
    lowest, highest = (reduce.reduceat(pairs["score"], first) for reduce in (np.fmin, np.fmax))
    totals["pairs_with_several_scores"] += int((lowest < highest).sum())
    return {
        **_rows(pairs, first),
        "positive": np.logical_or.reduceat(pairs["positive"], first),
        "place": np.minimum.reduceat(pairs["place"], first),
    }


@dataclass(frozen=True)
class _NoNegatives:
    """What can be no negative of a query."""

    copies: Copies
    own: np.ndarray  # (query row, the passage that is the query itself), by query: int64 [n, 2]
    equal: dict[int, np.ndarray]  # query row -> the positives of all queries with its text
    empty: np.ndarray  # passages without a text, ascending: int64

    def taken_out(self, pairs: Pairs, totals: dict[str, int]) -> Pairs:
        """Leave out the pairs that are no negatives. Adds their numbers to `totals`, each under its first reason."""
        query, passage, negative = pairs["query"], pairs["passage"], ~pairs["positive"]
        originals = self.copies.originals(passage)
        elsewhere = [(q, p) for q in np.unique(query).tolist() for p in self.equal.get(q, ())]
        others = np.array(elsewhere, np.int64).reshape(-1, 2)
        others[:, 1] = self.copies.originals(others[:, 1])
        stride = max(int(part.max(initial=0)) for part in (passage, originals, others[:, 1])) + 1
        text_of_query = query * stride + originals
        place = np.searchsorted(self.own[:, 0], query)
        place[place == len(self.own)] = 0
        is_own = np.zeros(len(query), bool)
        if len(self.own):
            is_own = (self.own[place, 0] == query) & (self.own[place, 1] == passage)
        reasons = {
            "copies_of_positives": np.isin(text_of_query, text_of_query[pairs["positive"]]),
            "own_documents": is_own,
            "positives_of_equal_queries": np.isin(text_of_query, others[:, 0] * stride + others[:, 1]),
            "empty_negatives": np.isin(passage, self.empty),
        }
        kept = np.ones(len(query), bool)
        for name, out in reasons.items():
            out = out & negative & kept
            if out.any():
                totals[name] = totals.get(name, 0) + int(out.sum())
            kept &= ~out
        return _rows(pairs, np.flatnonzero(kept))


def _rows(pairs: Pairs, index: np.ndarray) -> Pairs:
    return {name: values[index] for name, values in pairs.items()}
