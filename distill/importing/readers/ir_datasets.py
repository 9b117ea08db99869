"""Collections of the ir_datasets catalogue (optional extra `ir-datasets`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from distill import config
from distill.errors import DataError
from distill.importing.readers.base import (
    JUDGEMENTS,
    PASSAGES,
    QUERIES,
    Batches,
    Collection,
    Unread,
    batches_of,
    without_ids,
)


def read_ir_datasets(source: config.IrDatasets) -> Collection:
    datasets = _load(source)
    first, unread = next(iter(datasets.values())), Unread()
    return Collection(
        passages=batches_of(_passages(first, unread), PASSAGES),
        queries={split: batches_of(_queries(dataset), QUERIES) for split, dataset in datasets.items()},
        judgements={split: batches_of(_judgements(dataset), JUDGEMENTS) for split, dataset in datasets.items()},
        unread=unread,
    )


def unjudged_queries(source: config.IrDatasets) -> Batches:
    """The queries of the training split that no split judges. Raises `DataError` if the recipe names none."""
    if "train" not in source.splits:
        raise DataError(
            "no training split, whose queries without judgements would be the log; name a file in data.query_log.path",
            field="data.source.splits",
        )
    loaded = _load(source)
    judged = pa.array({row[0] for dataset in loaded.values() for row in _judgements(dataset)}, pa.large_string())
    for batch in batches_of(_queries(loaded["train"]), QUERIES):
        yield without_ids(batch, judged)


def _load(source: config.IrDatasets) -> dict[str, Any]:
    """Open the dataset of every split. Raises `DataError` for an unknown or incomplete one, or different corpora."""
    try:
        import ir_datasets
    except ImportError:
        raise DataError("the package ir_datasets is not installed: pip install 'splade-distill[ir-datasets]'") from None
    datasets: dict[str, Any] = {}
    for split, name in source.splits.items():
        try:
            datasets[split] = ir_datasets.load(name)
        except KeyError:
            raise DataError(f"ir_datasets has no dataset {name!r}", field=f"data.source.splits.{split}") from None
        for part in ("docs", "queries", "qrels"):
            if not getattr(datasets[split], f"has_{part}")():
                raise DataError(f"the dataset {name!r} has no {part}", field=f"data.source.splits.{split}")
    corpora = {split: ir_datasets.docs_parent_id(name) for split, name in source.splits.items()}
    if len(set(corpora.values())) > 1:
        raise DataError(f"the splits do not share one corpus: {corpora}", field="data.source.splits")
    return datasets


def _passages(dataset: Any, unread: Unread) -> Iterator[tuple]:
    for number, doc in enumerate(dataset.docs_iter(), start=1):
        title = getattr(doc, "title", None) or ""
        body = getattr(doc, "text", None)
        if body is not None:
            for name in getattr(doc, "_fields", ()):
                if name not in ("doc_id", "title", "text") and getattr(doc, name):
                    unread.add("field of documents", name)
        yield doc.doc_id, title, body if body is not None else doc.default_text(), number


def _queries(dataset: Any) -> Iterator[tuple]:
    for number, query in enumerate(dataset.queries_iter(), start=1):
        yield query.query_id, query.default_text(), number


def _judgements(dataset: Any) -> Iterator[tuple]:
    for number, qrel in enumerate(dataset.qrels_iter(), start=1):
        yield qrel.query_id, qrel.doc_id, qrel.relevance, number
