"""Export a run's scores or labels, joined with texts and the source's own ids, in the layouts that other tools read.

The format defines a row (`layouts`), the output's file extension the kind of file (`files`). The import reads every
format back to the same scores, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.errors import DataError, RecipeError
from distill.export import layouts
from distill.export.files import check_output, write_rows
from distill.export.layouts import Layout
from distill.export.scored_lists import ScoredList, Source, Tally, negatives_range, scored_lists, source_of
from distill.run.run import Run

log = logging.getLogger(__name__)


def export_scores(
    run: Run,
    output: Path,
    *,
    format: str = "lists",
    teacher: str | None = None,
    split: str = "train",
    negatives: int | None = None,
    ids: bool = False,
    force: bool = False,
) -> str:
    """Write a teacher's scores of a split, or the labels if `teacher` is None, to `output`; returns a summary line.

    `negatives`: export only the first N of each query, and leave out queries with fewer. `ids`: add columns of ids to
    the sentence-transformers layouts, which otherwise hold only what is trained on. An existing output is refused
    unless `force`; the new one appears whole or not at all. Raises `RecipeError` (no such format or teacher),
    `DataError` (the output's name), `StorageError` (not scored yet), `FingerprintError` (labels of other scores).
    """
    output, source = Path(output), source_of(run, teacher, split)
    layout = _layout(format, source, negatives, ids)
    check_output(output, layout.endings, force)
    tally = Tally()
    pages = _pages(scored_lists(source, negatives, layout.texts, tally), layout, tally, output)
    write_rows(output, layout.schema, pages)
    for number, message in (
        (tally.short, f"queries have fewer than {negatives} negatives and are left out"),
        (
            tally.unusable,
            f"queries have nothing that the format {format} can hold and are left out",
        ),
        (tally.unscored, f"pairs have no score: {'null' if layout.texts else 'left out'} in the output"),
        (
            tally.variants if not layout.texts else 0,
            "pairs have variants of passages, whose ids only this run knows; use a format with texts to keep them",
        ),
    ):
        if number:
            log.warning("%d %s", number, message)
    what = f"scores of teacher {teacher!r}" if teacher is not None else "labels"
    return f"{output}: {what}, {tally.queries:,} queries, {tally.pairs:,} pairs"


def _layout(format: str, source: Source, negatives: int | None, ids: bool) -> Layout:
    makers = {
        "lists": layouts.lists,
        "triplet": lambda: layouts.triplet(ids),
        "n-tuple": lambda: layouts.n_tuple(negatives or _most_negatives(source), ids),
        "labeled-list": lambda: layouts.labeled_list(ids),
        "flagembedding": layouts.flagembedding,
        "naver": layouts.naver,
        "trec": lambda: layouts.trec(source.teacher or "labels"),
    }
    if format not in makers:
        raise RecipeError(f"--format {format!r} is not known; choose one of {', '.join(makers)}")
    return makers[format]()


def _most_negatives(source: Source) -> int:
    fewest, most = negatives_range(source)
    if fewest < most:
        log.warning(
            "the lists have %d to %d negatives; shorter lists end with null columns, which sentence-transformers "
            "cannot train on: use --negatives %d",
            fewest,
            most,
            fewest,
        )
    return most


def _pages(lists: Iterable[ScoredList], layout: Layout, tally: Tally, output: Path) -> Iterator[list[Any]]:
    """The rows of each query that has any. Raises `DataError` if no query has."""
    for scored in lists:
        page = list(layout.rows(scored))
        if not page:
            tally.unusable += 1
            continue
        tally.queries += 1
        tally.pairs += len(scored.scores)
        tally.unscored += scored.scores.count(None)
        yield page
    if not tally.queries:
        raise DataError("nothing to export: no query has a list that this format can hold", path=output)
