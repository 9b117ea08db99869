"""A source's own negatives and scores -> candidate and score shards, in row numbers.

Rows about the same query are merged; judged positives that a list lacks are added. The scores belong to the recipe's
teacher of kind `imported`.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.config import Recipe
from distill.data.arrow import RowReader
from distill.data.candidates import Candidates, shard_name, write_candidates
from distill.data.fingerprint import check_same, fingerprint
from distill.data.import_stores import in_bulk, refuse_unknown
from distill.data.judgements import Judgements
from distill.data.layout import RunFolder
from distill.data.manifest import FORMAT, Manifest, read_manifest, write_manifest
from distill.data.readers.base import Batches
from distill.data.scores import write_scores
from distill.data.spool import Spool
from distill.data.texts import TextStore
from distill.errors import RecipeError

log = logging.getLogger(__name__)

SOURCES = ("judgement", "imported")
_LOOKUP_LISTS = 16_384  # lists resolved at once, with a hundred passages each
_RESOLVED = pa.schema(
    [
        ("query", pa.int64()),
        ("passages", pa.large_list(pa.int64())),
        ("positive", pa.large_list(pa.bool_())),
        ("scores", pa.large_list(pa.float32())),
    ]
)


def imported_teacher(recipe: Recipe) -> str | None:
    """The teacher that takes the source's scores; `RecipeError` if there are two."""
    names = [name for name, teacher in recipe.teachers.items() if teacher.kind == "imported"]
    if len(names) > 1:
        raise RecipeError(f"teachers {' and '.join(names)} are both of kind imported; a source has one set of scores")
    return names[0] if names else None


def list_fields(recipe: Recipe, data_fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What imported candidates, and the scores beside them, depend on: the hashed parts of their manifests."""
    fields = {
        "stage": "import",
        "format": FORMAT,
        "split": "train",
        "data": fingerprint(data_fields),
        "shard_queries": recipe.mine.shard_queries,
    }
    return fields, {**fields, "teacher": imported_teacher(recipe), "candidates": fingerprint(fields)}


def import_lists(
    recipe: Recipe,
    batches: Batches,
    queries: TextStore,
    final: np.ndarray,
    passages: TextStore,
    judgements: Judgements,
    data_fields: dict[str, Any],
    staged: RunFolder,
    spool: Path,
) -> dict[str, int]:
    """Write the candidates (and scores) of the training split below `staged`; returns counts.

    `queries` and `final`: the source's queries, and int64 the row each got in the training store (-1: left out).
    Writes nothing where no list has a negative.
    """
    path = spool / "lists.arrow"
    unknown, has_scores = _resolve(batches, queries, final, passages, path)
    teacher = imported_teacher(recipe)
    counts = {"lists.unknown_queries": unknown} if unknown else {}
    if teacher is not None and not has_scores:
        raise RecipeError(f"teacher {teacher!r} is of kind imported, but the source brings no scores")
    if has_scores and teacher is None:
        log.warning("the source's scores are not used: the recipe has no teacher of kind imported")
    lists = RowReader(path)
    order = np.argsort(lists.table().column("query").to_numpy(), kind="stable")
    fields, score_fields = list_fields(recipe, data_fields)
    key = fingerprint(fields)
    shards, score_shards = [], []
    totals = {
        "queries": 0,
        "positives": 0,
        "negatives": 0,
        "queries_without_negatives": 0,
        "queries_without_positives": 0,
        "scores_missing": 0,
    }
    candidates_folder = staged.candidates("train")
    for group in _groups(lists, order, recipe.mine.shard_queries):
        candidates, scores = _merge(lists.take(group), judgements, totals)
        if not len(candidates):
            continue
        name = shard_name(len(shards))
        shards.append(write_candidates(candidates_folder / name, candidates, key))
        if teacher is not None:
            totals["scores_missing"] += int(np.isnan(scores).sum())
            score_shards.append(
                write_scores(
                    staged.scores(teacher, "train") / name,
                    candidates,
                    scores,
                    fingerprint=fingerprint(score_fields),
                    teacher=teacher,
                    missing=True,
                )
            )
        positives = int(candidates.positive.sum())
        totals["queries"] += len(candidates)
        totals["positives"] += positives
        totals["negatives"] += candidates.pairs - positives
    if not shards:
        return counts
    write_manifest(candidates_folder, Manifest(fields, tuple(shards), totals))
    if teacher is not None:
        write_manifest(staged.scores(teacher, "train"), Manifest(score_fields, tuple(score_shards), totals))
    return {**counts, **{f"lists.{name}": value for name, value in totals.items() if value}}


def publish(staged: RunFolder, folder: RunFolder) -> None:
    """Move the staged shards to their places, a folder at a time; those of another import are not overwritten."""
    found = sorted(path.parent for path in staged.root.glob("scores/*/train/manifest.json"))
    # candidates last: whoever sees them finds the scores
    for source in [*found, staged.candidates("train")]:
        target = folder.root / source.relative_to(staged.root)
        new, old = read_manifest(source), read_manifest(target)
        if old is not None and (new is not None or old.fields.get("stage") == "import"):
            check_same(target, old.fields, new.fields if new is not None else {})
            continue
        if new is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)  # left by an import that was interrupted: it has no manifest
            os.rename(source, target)


def _resolve(
    batches: Batches, queries: TextStore, final: np.ndarray, passages: TextStore, path: Path
) -> tuple[int, bool]:
    """Spool the lists of kept queries in row numbers; returns the lists about unknown queries, and if any has scores.

    Score files often cover more queries than a split; a list about a query that isn't there is only counted.
    """
    unknown, has_scores = 0, False
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
            ids = lists.flatten()
            parents = pc.list_parent_indices(lists).to_numpy()
            found = passages.rows_of(ids)
            missing = np.flatnonzero(found < 0)[:1]
            if missing.size:
                row = pa.Table.from_batches([batch.slice(int(parents[missing[0]]), 1)])
                refuse_unknown(row, found[missing], ids.slice(int(missing[0]), 1), "passage_id")
            offsets = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())]).astype(np.int64)
            positive = _aligned(batch.column("positive"), offsets, pa.bool_())
            scores = _aligned(batch.column("scores"), offsets, pa.float32())
            has_scores = has_scores or scores.null_count < len(scores)
            columns = [
                pa.LargeListArray.from_arrays(pa.array(offsets), values)
                for values in (pa.array(found), positive, scores)
            ]
            spool.write_batch(pa.RecordBatch.from_arrays([pa.array(rows[rows >= 0]), *columns], schema=_RESOLVED))
    return unknown, has_scores


def _aligned(column: pa.Array, offsets: np.ndarray, type_: pa.DataType) -> pa.Array:
    """Flat values of a list column as long as the passages': nulls where a whole list is null."""
    if not column.null_count:
        return column.flatten()
    lengths = np.diff(offsets)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    positions = np.flatnonzero(np.repeat(valid, lengths))
    index = np.full(int(offsets[-1]), -1, np.int64)
    index[positions] = np.arange(positions.size)
    return column.flatten().take(pa.array(index, mask=index < 0)).cast(type_)


def _groups(lists: RowReader, order: np.ndarray, shard_queries: int) -> Iterator[np.ndarray]:
    """Rows of the spooled lists, those of `shard_queries` queries at a time, by query."""
    query = lists.table().column("query").to_numpy()[order]
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    for i in range(0, len(starts), shard_queries):
        stop = starts[i + shard_queries] if i + shard_queries < len(starts) else len(order)
        yield order[starts[i] : stop]


def _merge(lists: pa.RecordBatch, judgements: Judgements, totals: dict[str, int]) -> tuple[Candidates, np.ndarray]:
    """One shard: per query each passage once, positives first, then in the lists' order; scores NaN where missing."""
    lengths = lists.column("passages").value_lengths().to_numpy()
    query = np.repeat(lists.column("query").to_numpy(), lengths)
    within = np.arange(len(query)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    passage = lists.column("passages").flatten().to_numpy()
    marked = lists.column("positive").flatten().fill_null(False).to_numpy(zero_copy_only=False)
    scores = lists.column("scores").flatten().fill_null(np.nan).to_numpy()
    # append what is judged positive, with no score and after all lists
    asked = np.unique(query)
    known = [(q, p) for q in asked for p in judgements.positives(int(q))]
    judged_query, judged_passage = (
        np.array(column, np.int64) for column in (zip(*known, strict=True) if known else ((), ()))
    )
    columns = {
        "query": np.concatenate([query, judged_query]),
        "passage": np.concatenate([passage, judged_passage]),
        "positive": np.concatenate([marked, np.ones(len(judged_query), bool)]),
        "score": np.concatenate([scores, np.full(len(judged_query), np.nan, np.float32)]).astype(np.float32),
        "source": np.concatenate([np.ones(len(query), np.uint8), np.zeros(len(judged_query), np.uint8)]),
        "rank": np.concatenate([within + 1, np.zeros(len(judged_query), np.int64)]).astype(np.int32),
        "place": np.arange(len(query) + len(judged_query)),
    }
    # equal pairs stand together, those with a score first; one row is kept of each, positive if any of them is
    order = np.lexsort((columns["place"], np.isnan(columns["score"]), columns["passage"], columns["query"]))
    columns = {name: values[order] for name, values in columns.items()}
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(columns["query"]) != 0) | (np.diff(columns["passage"]) != 0)
    first = np.flatnonzero(new)
    columns["positive"] = np.logical_or.reduceat(columns["positive"], first) if len(first) else columns["positive"]
    columns["place"] = np.minimum.reduceat(columns["place"], first) if len(first) else columns["place"]
    columns = {name: values if name in ("positive", "place") else values[first] for name, values in columns.items()}
    # by query; positives first, then as the lists have them
    order = np.lexsort((columns["place"], ~columns["positive"], columns["query"]))
    columns = {name: values[order] for name, values in columns.items()}
    # a list that has no negative, or no positive, teaches nothing
    codes = np.searchsorted(asked, columns["query"])
    sizes = np.bincount(codes, minlength=len(asked))
    positives = np.bincount(codes, weights=columns["positive"], minlength=len(asked)).astype(np.int64)
    useful = (positives > 0) & (positives < sizes)
    totals["queries_without_negatives"] += int((positives == sizes).sum())
    totals["queries_without_positives"] += int((positives == 0).sum())
    keep = useful[codes]
    columns = {name: values[keep] for name, values in columns.items()}
    offsets = np.concatenate([[0], np.cumsum(sizes[useful])]).astype(np.int64)
    candidates = Candidates(
        asked[useful], offsets, columns["passage"], columns["positive"], columns["source"], columns["rank"], SOURCES
    )
    return candidates, columns["score"]
