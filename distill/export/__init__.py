"""Export: a run's scores or labels, joined with texts and the source's own ids, in the layouts that others read.

The format says what a row is (`layouts`), the ending of the output's name what the rows lie in (`files`). What is
written here, the import reads back to the same scores, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.config import Recipe
from distill.data.export import layouts
from distill.data.export.files import check_output, write_rows
from distill.data.export.layouts import Layout
from distill.data.export.scored_lists import ScoredList, Source, Tally, negatives_range, scored_lists, source_of
from distill.data.layout import RunFolder
from distill.errors import DataError, RecipeError

log = logging.getLogger(__name__)


def export_scores(
    recipe: Recipe,
    output: Path,
    *,
    format: str = "lists",
    teacher: str | None = None,
    split: str = "train",
    negatives: int | None = None,
    ids: bool = False,
    force: bool = False,
) -> str:
    """Write a teacher's scores of a split, or without a teacher the labels, to `output`; returns a line that says what.

    `negatives`: only the first so many of each query, and no query with fewer. `ids`: columns of ids in the layouts of
    sentence-transformers, too, which otherwise hold nothing but what is trained on. An output that exists is refused
    unless `force`; it appears whole or not at all. Raises `RecipeError` (no such format or teacher), `DataError` (the
    output's name), `StorageError` (nothing scored yet), `FingerprintError` (labels of other scores).
    """
    output, source = Path(output), source_of(recipe, RunFolder.of(recipe), teacher, split)
    layout = _layout(format, source, negatives, ids)
    check_output(output, layout.endings, force)
    tally = Tally()
    pages = _pages(scored_lists(source, negatives, layout.texts, tally), layout, tally, output)
    write_rows(output, layout.schema, pages)
    for number, message in (
        (tally.short, f"queries have fewer than {negatives} negatives and are left out"),
        (tally.unusable, f"queries have nothing that the format {format} could hold and are left out"),
        (tally.unscored, f"pairs have no score: {'null' if layout.texts else 'left out'} in the output"),
        (
            tally.variants if not layout.texts else 0,
            "pairs are with variants of passages, whose ids only this run knows; a format with texts takes them along",
        ),
    ):
        if number:
            log.warning("%d %s", number, message)
    what = f"scores of teacher {teacher!r}" if teacher is not None else "labels"
    return f"{output}: {what}, {tally.queries:,} queries, {tally.pairs:,} pairs"


def _layout(format: str, source: Source, negatives: int | None, ids: bool) -> Layout:
    made = {
        "lists": layouts.lists,
        "triplet": lambda: layouts.triplet(ids),
        "n-tuple": lambda: layouts.n_tuple(negatives or _most_negatives(source), ids),
        "labeled-list": lambda: layouts.labeled_list(ids),
        "flagembedding": layouts.flagembedding,
        "naver": layouts.naver,
        "trec": lambda: layouts.trec(source.teacher or "labels"),
    }
    if format not in made:
        raise RecipeError(f"--format {format!r}: there are {', '.join(made)}")
    return made[format]()


def _most_negatives(source: Source) -> int:
    fewest, most = negatives_range(source)
    if fewest < most:
        log.warning(
            "the lists have %d to %d negatives; the last columns of a shorter one are null, which "
            "sentence-transformers can't train on: --negatives %d makes them equal",
            fewest,
            most,
            fewest,
        )
    return most


def _pages(found: Iterable[ScoredList], layout: Layout, tally: Tally, output: Path) -> Iterator[list[Any]]:
    """The rows of each query, where it has any; an error where none has."""
    for scored in found:
        page = list(layout.rows(scored))
        if not page:
            tally.unusable += 1
            continue
        tally.queries += 1
        tally.pairs += len(scored.scores)
        tally.unscored += scored.scores.count(None)
        yield page
    if not tally.queries:
        raise DataError("nothing to export: no query has a list that this format could hold", path=output)
