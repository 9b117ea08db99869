"""What a row of each format holds, one function a format.

`triplet`, `n-tuple` and `labeled-list` are what sentence-transformers' `mine_hard_negatives` writes with its scores: a
row a positive, the scores in the order of the passages. Its trainer takes every other column for a text, so ids are
there only when asked for. FlagEmbedding leaves columns alone that it doesn't know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from distill.data.export.scored_lists import ScoredList
from distill.errors import DataError

ROW_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", "")  # "": a folder of Hugging Face `datasets`

_TEXT = pa.string()
_TEXTS = pa.list_(pa.string())
_SCORES = pa.list_(pa.float32())
_IDS = {"query_id": _TEXT, "passage_ids": _TEXTS}


@dataclass(frozen=True)
class Layout:
    """`rows`: what a list becomes, nothing where the format can't hold it; `endings`: of files that it fits in."""

    rows: Callable[[ScoredList], Iterator[Any]]
    schema: pa.Schema | None = None
    endings: tuple[str, ...] = ROW_ENDINGS
    texts: bool = True


def lists() -> Layout:
    """A row a query: everything that is known. `labels`: 1 for a positive."""

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
    """A row for each positive with each negative, and the scores of both."""

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
    """A row a positive, with a column for each of so many negatives; the last are null where a list has fewer."""
    names = [f"negative_{i + 1}" for i in range(negatives)]

    def rows(scored: ScoredList) -> Iterator[dict[str, Any]]:
        for positive, others in _by_positive(scored):
            texts = [scored.passages[i] for i in others]
            columns = dict(zip(names, texts + [None] * (negatives - len(texts)), strict=True))
            chosen = (positive, *others)
            yield {
                "query": scored.query,
                "positive": scored.passages[positive],
                **columns,
                "scores": [scored.scores[i] for i in chosen],
                **(_ids(scored, chosen) if ids else {}),
            }

    columns = dict.fromkeys(("query", "positive", *names), _TEXT)
    return Layout(rows, pa.schema({**columns, "scores": _SCORES, **(_IDS if ids else {})}))


def labeled_list(ids: bool) -> Layout:
    """A row a positive: the passages, of which the first is the positive, and their scores."""

    def rows(scored: ScoredList) -> Iterator[dict[str, Any]]:
        for positive, negatives in _by_positive(scored):
            chosen = (positive, *negatives)
            yield {
                "query": scored.query,
                "passages": [scored.passages[i] for i in chosen],
                "scores": [scored.scores[i] for i in chosen],
                **(_ids(scored, chosen) if ids else {}),
            }

    return Layout(rows, pa.schema({"query": _TEXT, "passages": _TEXTS, "scores": _SCORES, **(_IDS if ids else {})}))


def flagembedding() -> Layout:
    """A row a query, its positives and negatives apart."""

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
    """An entry a query: `qid: {did: score}`."""

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
    """A line a pair, by score: `qid Q0 did rank score tag`."""

    def rows(scored: ScoredList) -> Iterator[str]:
        for name in (scored.query_id, *scored.passage_ids):
            if len(name.split()) != 1:
                raise DataError(
                    f"the id {name!r} has blanks in it, which separate the columns of a TREC run; the "
                    "format naver has ids without texts, too"
                )
        pairs = [pair for pair in zip(scored.passage_ids, scored.scores, strict=True) if pair[1] is not None]
        pairs.sort(key=lambda pair: -pair[1])
        for rank, (passage, score) in enumerate(pairs, start=1):
            yield f"{scored.query_id} Q0 {passage} {rank} {score!r} {tag}"

    return Layout(rows, endings=(".run", ".run.gz", ".trec", ".trec.gz"), texts=False)


def _by_positive(scored: ScoredList) -> Iterator[tuple[int, range]]:
    """Positions of each positive, and of the negatives; nothing where there are none of either."""
    negatives = range(scored.positives, len(scored.scores))
    for positive in range(scored.positives if negatives else 0):
        yield positive, negatives


def _ids(scored: ScoredList, positions: range | tuple[int, ...]) -> dict[str, Any]:
    return {"query_id": scored.query_id, "passage_ids": [scored.passage_ids[i] for i in positions]}
