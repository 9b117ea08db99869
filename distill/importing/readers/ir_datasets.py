"""Collections of the ir_datasets catalogue (optional extra `ir-datasets`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distill import config
from distill.data.readers.base import JUDGEMENTS, PASSAGES, QUERIES, Collection, batches_of
from distill.errors import DataError


def read_ir_datasets(source: config.IrDatasets) -> Collection:
    datasets = _load(source)
    first = next(iter(datasets.values()))
    return Collection(
        passages=batches_of(_passages(first), PASSAGES),
        queries={split: batches_of(_queries(dataset), QUERIES) for split, dataset in datasets.items()},
        judgements={split: batches_of(_judgements(dataset), JUDGEMENTS) for split, dataset in datasets.items()},
    )


def _load(source: config.IrDatasets) -> dict[str, Any]:
    try:
        import ir_datasets
    except ImportError:
        raise DataError("the package ir_datasets is not installed: pip install 'splade-distill[ir-datasets]'") from None
    loaded: dict[str, Any] = {}
    for split, name in source.splits.items():
        try:
            loaded[split] = ir_datasets.load(name)
        except KeyError:
            raise DataError(f"ir_datasets has no dataset {name!r}", field=f"data.source.splits.{split}") from None
        for part in ("docs", "queries", "qrels"):
            if not getattr(loaded[split], f"has_{part}")():
                raise DataError(f"the dataset {name!r} has no {part}", field=f"data.source.splits.{split}")
    corpora = {split: ir_datasets.docs_parent_id(name) for split, name in source.splits.items()}
    if len(set(corpora.values())) > 1:
        raise DataError(f"the splits do not share one corpus: {corpora}", field="data.source.splits")
    return loaded


def _passages(dataset: Any) -> Iterator[tuple]:
    for number, doc in enumerate(dataset.docs_iter(), start=1):
        title = getattr(doc, "title", None) or ""
        body = getattr(doc, "text", None)
        yield doc.doc_id, title, body if body is not None else doc.default_text(), number


def _queries(dataset: Any) -> Iterator[tuple]:
    for number, query in enumerate(dataset.queries_iter(), start=1):
        yield query.query_id, query.default_text(), number


def _judgements(dataset: Any) -> Iterator[tuple]:
    for number, qrel in enumerate(dataset.qrels_iter(), start=1):
        yield qrel.query_id, qrel.doc_id, qrel.relevance, number
