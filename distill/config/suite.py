"""A suite: judged collections that checkpoints are measured on by `distill benchmark`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from distill.config.base import FilePath, Fraction, Name, Positive, Section, Split
from distill.config.data import Source


class Part(Section):
    """Where one judged collection comes from."""

    name: Name
    """Name of the collection, and of its folder below `--data` unless `folder` says otherwise."""
    folder: str | None = None
    """Folder below `--data`, in BEIR's or MS MARCO's layout, or a copy of a hub dataset."""
    path: FilePath | None = None
    """Folder of one's own, in one of these layouts; relative to the suite's file."""
    source: Source | None = None
    """Any source that recipes have in `data.source`; its test split counts."""
    split: str = "test"
    """Name of the split's file in qrels/, without .tsv."""
    ir_datasets: str | None = None
    """Id in the catalogue of ir_datasets, for `--download`."""
    hub: str | None = None
    """Dataset on the hub with configurations corpus, queries and judgements, for `--download` without ir_datasets."""
    hub_split: Split = "test"
    """Split of the hub dataset's judgements."""

    @model_validator(mode="after")
    def _one_place(self) -> Part:
        if self.path is not None and self.source is not None:
            raise ValueError("`path` and `source` are two places for one collection; leave one out")
        return self


class SuiteCollection(Part):
    """A row of the table: one collection, or several parts whose mean counts."""

    parts: tuple[Part, ...] = ()
    """Collections that are searched one by one; the row is their mean, as CQADupStack's of its forums."""
    own_document: Literal["auto", "same-id", "keep"] = "auto"
    """What of a passage under a query's own id, see `data.own_document`. BEIR leaves it out (`same-id`)."""
    excluded_grade: int | None = None
    """Passages judged with this grade or a lower one are left out of the query's rankings, as BRIGHT's rule demands."""
    language: str = "auto"
    """Of BM25, see `data.language`."""
    queries: Positive | None = None
    """Number of judged queries that published figures are for, of all parts together; another one is told."""
    published: dict[str, Fraction] = {}
    """System -> published value of the suite's first metric."""
    archive: str | None = None
    """Where to get the collection, told if it is missing."""
    note: str | None = None
    """What a reader of the table should know, such as the version of the judgements."""


class Suite(Section):
    """Collections and what is measured on them."""

    metrics: tuple[str, ...] = ("nDCG@10", "R@100")
    """Measures of ir-measures; the first one is the table's."""
    collections: tuple[SuiteCollection, ...] = ()
    """The rows of the table."""
    includes: tuple[str, ...] = ()
    """Shipped suites whose collections come first."""
    sources: dict[str, str] = {}
    """Published system -> where its figures are from."""

    @model_validator(mode="after")
    def _is_complete(self) -> Suite:
        if not self.metrics:
            raise ValueError("metrics: name at least one")
        if not (self.collections or self.includes):
            raise ValueError("collections: name at least one")
        names = [collection.name for collection in self.collections]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"collections: {repeated[0]!r} is there twice")
        for collection in self.collections:
            if unknown := sorted(set(collection.published) - set(self.sources)):
                raise ValueError(
                    f"{collection.name}: published figures of {unknown[0]!r} need their source in `sources`"
                )
        return self
