"""The row layout of each format, one function per format.

`triplet`, `n-tuple` and `labeled-list` are what sentence-transformers' `mine_hard_negatives` writes with its scores:
one row per positive, the scores in the order of the passages. Its trainer takes every other column for a text, so ids
are optional there. FlagEmbedding ignores columns that it does not know. A list without a positive has no row in these
four; `lists`, `naver` and `trec` hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from distill.export.scored_lists import ScoredList

ROW_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", "")  # "": a folder of Hugging Face `datasets`

_TEXT = pa.string()
_TEXTS = pa.list_(pa.string())
_SCORES = pa.list_(pa.float32())
_IDS = {"query_id": _TEXT, "passage_ids": _TEXTS}


@dataclass(frozen=True)
class Layout:
    """`rows`: a list's rows, none if the format cannot hold it; `endings`: the allowed file extensions."""

    rows: Callable[[ScoredList], Iterator[Any]]
    schema: pa.Schema | None = None
    endings: tuple[str, ...] = ROW_ENDINGS
    texts: bool = True


def lists() -> Layout:
    """One row per query, with everything that is known. `labels`: 1 for a positive."""

    def rows(scored: ScoredList) -> Iterator[dict[str, Any]]:
        labels = [int(i < scored.positives) for i in range(len(scored.scores))]
        yield {
            "query": scored.query,
            "passages": scored.passages,
            "labels": labels,
            "scores": scored.scores,
            **_ids(scored, range(len(labels))),
        }

    return Layout(
        rows, pa.schema({"query": _TEXT, "passages": _TEXTS, "labels": pa.list_(pa.int64()), "scores": _SCORES, **_IDS})
    )


def triplet(ids: bool) -> Layout:
    """One row per pair of a positive and a negative, with the scores of both."""

    def rows(scored: ScoredList) -> Iterator[dict[str, Any]]:
        for positive, negatives in _by_positive(scored):
            for negative in negatives:
                pair = (positive, negative)
                yield {
                    "query": scored.query,
                    "positive": scored.passages[positive],
                    "negative": scored.passages[negative],
                    "scores": [scored.scores[i] for i in pair],
                    **(_ids(scored, pair) if ids else {}),
                }

    columns = dict.fromkeys(("query", "positive", "negative"), _TEXT)
    return Layout(rows, pa.schema({**columns, "scores": _SCORES, **(_IDS if ids else {})}))


def n_tuple(negatives: int, ids: bool) -> Layout:
    """One row per positive, with one column per negative; missing negatives of a shorter list are null."""
    names = [f"negative_{i + 1}" for i in range(negatives)]

    def rows(scored: ScoredList) -> Iterator[dict[str, Any]]:
        for positive, others in _by_positive(scored):
            texts = [scored.passages[i] for i in others]
            columns = dict(zip(names, texts + [None] * (negatives - len(texts)), strict=True))
            positions = (positive, *others)
            yield {
                "query": scored.query,
                "positive": scored.passages[positive],
                **columns,
                "scores": [scored.scores[i] for i in positions],
                **(_ids(scored, positions) if ids else {}),
            }

    columns = dict.fromkeys(("query", "positive", *names), _TEXT)
    return Layout(rows, pa.schema({**columns, "scores": _SCORES, **(_IDS if ids else {})}))


def labeled_list(ids: bool) -> Layout:
    """One row per positive: the passages, the positive first, and their scores."""

    def rows(scored: ScoredList) -> Iterator[dict[str, Any]]:
        for positive, negatives in _by_positive(scored):
            positions = (positive, *negatives)
            yield {
                "query": scored.query,
                "passages": [scored.passages[i] for i in positions],
                "scores": [scored.scores[i] for i in positions],
                **(_ids(scored, positions) if ids else {}),
            }

    return Layout(rows, pa.schema({"query": _TEXT, "passages": _TEXTS, "scores": _SCORES, **(_IDS if ids else {})}))


def flagembedding() -> Layout:
    """One row per query, with separate lists of positives and negatives."""

    def rows(scored: ScoredList) -> Iterator[dict[str, Any]]:
        if scored.positives:
            sides = {"pos": slice(None, scored.positives), "neg": slice(scored.positives, None)}
            yield {
                "query": scored.query,
                **{side: scored.passages[part] for side, part in sides.items()},
                **{f"{side}_scores": scored.scores[part] for side, part in sides.items()},
                "query_id": scored.query_id,
                **{f"{side}_id": scored.passage_ids[part] for side, part in sides.items()},
            }

    return Layout(
        rows,
        pa.schema(
            {
                "query": _TEXT,
                "pos": _TEXTS,
                "neg": _TEXTS,
                "pos_scores": _SCORES,
                "neg_scores": _SCORES,
                "query_id": _TEXT,
                "pos_id": _TEXTS,
                "neg_id": _TEXTS,
            }
        ),
    )


def naver() -> Layout:
    """One entry per query: `qid: {did: score}`."""

    def rows(scored: ScoredList) -> Iterator[tuple[str, dict[str, float]]]:
        scores = {
            passage: score
            for passage, score in zip(scored.passage_ids, scored.scores, strict=True)
            if score is not None
        }
        if scores:
            yield scored.query_id, scores

    return Layout(rows, endings=(".json", ".json.gz"), texts=False)


def trec(tag: str) -> Layout:
    """One line per pair, sorted by score: `qid Q0 did rank score tag`."""

    def rows(scored: ScoredList) -> Iterator[str]:
        pairs = [
            (passage, score)
            for passage, score in zip(scored.passage_ids, scored.scores, strict=True)
            if score is not None
        ]
        pairs.sort(key=lambda pair: -pair[1])
        for rank, (passage, score) in enumerate(pairs, start=1):
            yield f"{scored.query_id} Q0 {passage} {rank} {score!r} {tag}"

    return Layout(rows, endings=(".run", ".run.gz", ".trec", ".trec.gz"), texts=False)


def _by_positive(scored: ScoredList) -> Iterator[tuple[int, range]]:
    """Position of each positive, with the positions of the negatives; nothing if the list lacks either."""
    negatives = range(scored.positives, len(scored.scores))
    for positive in range(scored.positives if negatives else 0):
        yield positive, negatives


def _ids(scored: ScoredList, positions: range | tuple[int, ...]) -> dict[str, Any]:
    return {"query_id": scored.query_id, "passage_ids": [scored.passage_ids[i] for i in positions]}
