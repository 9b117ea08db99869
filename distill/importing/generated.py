"""Queries generated from a whole collection, in a temporary file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.config import GenerateQueries
from distill.importing.phrases import DocumentFrequencies
from distill.importing.querygen import generate, is_dev, why_none
from distill.importing.spool import Spool
from distill.progress import progress
from distill.store.arrow import BATCH_ROWS, RowReader
from distill.store.texts import PASSAGE_SCHEMA, TextStore

_ORDER = 3  # stream of random numbers; the splits have 0 to 2
_DRAWN_ROWS = 1024  # passages read at once where not all are needed

# a generated query with the variant of its passage; identified by its row until it gets a row in the final stores
_SCHEMA = pa.schema(
    [*((f"query_{name}", pa.large_string()) for name in ("id", "text")), *PASSAGE_SCHEMA, pa.field("dev", pa.bool_())]
)


@dataclass(frozen=True)
class Enough:
    """Numbers of queries that suffice: no stage would read more."""

    train: int
    dev: int


@dataclass(frozen=True)
class GeneratedQueries:
    """The queries generated from a collection, with their passage variants.

    `without`: reason -> number of the passages that gave no query (`querygen.why_none`), of those `examined`.
    """

    rows: RowReader
    examined: int
    without: dict[str, int]

    def of_split(self, split: str) -> np.ndarray:
        """Return the rows of the queries that belong to a split."""
        if split == "test":
            return np.empty(0, np.int64)
        dev = self.rows.table().column("dev").to_numpy().astype(bool)
        return np.flatnonzero(dev if split == "dev" else ~dev).astype(np.int64)


def generate_queries(
    passages: TextStore,
    options: GenerateQueries | None,
    seed: int,
    spool: Path,
    lengths: np.ndarray | None = None,
    enough: Enough | None = None,
) -> GeneratedQueries:
    """Generate queries from the collection into a temporary file; without options, none.

    `lengths`: see `querygen.generate`. With `enough`, and kinds that are drawn, the passages are read in random order
    until there are so many queries.
    """
    path, examined, without, made = spool / "generated.arrow", 0, Counter[str](), Counter[bool]()
    with Spool(path, _SCHEMA) as spooled:
        if options is not None:
            stop = enough if options.mixes else None
            frequencies = _frequencies(passages) if "phrases" in options.kinds else None
            with progress("generate queries", None, "passages") as advance:
                for numbers, texts in _texts(passages, None if stop is None else seed):
                    rows = []
                    for number, (identifier, title, text) in zip(numbers, texts, strict=True):
                        queries = list(generate(identifier, title, text, options, seed, frequencies, lengths))
                        if not queries:
                            without[why_none(title, text, options)] += 1
                        dev = is_dev(identifier, options.dev_share, seed)
                        made[dev] += len(queries)
                        for query in queries:
                            name = f"{identifier}#{query.suffix}"
                            rows.append((name, query.query, name, query.title, query.text, number, dev))
                    spooled.write(rows)
                    examined += len(numbers)
                    advance(len(numbers))
                    if stop is not None and made[False] >= stop.train and made[True] >= stop.dev:
                        break
    return GeneratedQueries(RowReader(path), examined, dict(without))


def _frequencies(passages: TextStore) -> DocumentFrequencies:
    """Count in how many passages words occur."""
    frequencies = DocumentFrequencies()
    with progress("count words", len(passages), "passages") as advance:
        for texts in passages.text_batches():
            frequencies.add(texts)
            advance(len(texts))
    return frequencies


def _texts(passages: TextStore, seed: int | None) -> Iterator[tuple[list[int], list[tuple[str, str, str]]]]:
    """Yield rows and (id, title, text) of all passages, many at a time, in order or in an order drawn with a seed."""
    reader, size = RowReader(passages.path), BATCH_ROWS if seed is None else _DRAWN_ROWS
    order = None if seed is None else np.random.default_rng([seed, _ORDER]).permutation(len(passages))
    for start in range(0, len(passages), size):
        rows = np.arange(start, min(start + size, len(passages)))
        rows = rows if order is None else order[rows]
        yield rows.tolist(), [tuple(row.values()) for row in reader.take(rows, ["id", "title", "text"]).to_pylist()]
