"""Find the passages that are copies of each other, and the queries that are passages themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.importing.stores import slices
from distill.run.manifest import Shard
from distill.store.arrow import RowReader, write_ipc
from distill.store.identity import COPY_SCHEMA, OWN_SCHEMA, text_digests
from distill.store.judgements import Judgements
from distill.store.texts import TextStore, passage_text

_LOOKUP_QUERIES = 1 << 20  # looked up at once: each look-up scans the ids of the passages


def write_copies(passages: TextStore, path: Path, fingerprint: str) -> Shard:
    """Write the passages of the collection whose text, blanks around it aside, an earlier passage has.

    Needs 8 bytes of memory per passage.
    """
    digests = text_digests(passages)
    order = np.argsort(digests, kind="stable")
    is_new = np.diff(digests[order], prepend=digests[order[:1]] - np.uint64(1)) != 0
    first = order[np.flatnonzero(is_new)[np.cumsum(is_new) - 1]] if len(order) else order
    rows, first = order[~is_new], first[~is_new]
    equal = [
        [a.strip() == b.strip() for a, b in zip(passages.texts(rows[some]), passages.texts(first[some]), strict=True)]
        for some in slices(np.arange(len(rows)))
    ]
    same = np.array([value for part in equal for value in part], bool)  # equal digests of two texts are no copies
    rows, first = rows[same], first[same]
    by_row = np.argsort(rows)
    return _write(path, COPY_SCHEMA, (rows[by_row], first[by_row]), fingerprint)


def write_own_documents(
    passages: TextStore,
    queries: TextStore,
    judgements: Judgements,
    rule: Literal["auto", "same-id", "keep"],
    path: Path,
    fingerprint: str,
) -> Shard:
    """Write the passages that are a query themselves: under its id and, unless the rule is `same-id`, with its text.

    A passage that is judged relevant to the query is kept.
    """
    found: list[tuple[int, int]] = []
    if rule != "keep":
        for start in range(0, len(queries), _LOOKUP_QUERIES):
            rows = np.arange(start, min(start + _LOOKUP_QUERIES, len(queries)))
            own = passages.rows_of(queries.ids(rows))
            with_own = np.flatnonzero(own >= 0)
            same = np.ones(len(with_own), bool)
            if rule == "auto" and len(with_own):
                same = _same_texts(passages, own[with_own], queries.texts(rows[with_own]))
            pairs = zip(rows[with_own[same]].tolist(), own[with_own[same]].tolist(), strict=True)
            found += [pair for pair in pairs if pair[1] not in judgements.positives(pair[0])]
    query, passage = np.array(found, np.int64).reshape(-1, 2).T
    return _write(path, OWN_SCHEMA, (query, passage), fingerprint)


def _same_texts(passages: TextStore, rows: np.ndarray, queries: list[str]) -> np.ndarray:
    """Whether each query is the passage's text, with its title or without: bool [n]."""
    batch = RowReader(passages.path).take(rows, ["title", "text"])
    texts = (batch.column("text"), passage_text(batch.column("title"), batch.column("text")))
    wanted = pc.utf8_trim_whitespace(pa.array(queries, pa.large_string()))
    equal = [pc.equal(pc.utf8_trim_whitespace(column), wanted) for column in texts]
    return pc.or_(*equal).to_numpy(zero_copy_only=False)


def _write(path: Path, schema: pa.Schema, columns: tuple[np.ndarray, ...], fingerprint: str) -> Shard:
    batch = pa.RecordBatch.from_arrays([pa.array(column, pa.int64()) for column in columns], schema=schema)
    shard = write_ipc(path, schema, [batch], {"fingerprint": fingerprint})
    assert shard is not None  # only exclusive writes give None
    return shard
