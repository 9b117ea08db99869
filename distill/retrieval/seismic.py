"""Approximate top-k search over sparse vectors by Seismic (pyseismic-lsr): for collections too large for exact search.

The index names terms by their number in the vocabulary. Seismic stores weights in 16 bits and prunes posting lists to
the strongest passages, so its scores differ from exact ones in the third digit, and it misses a few passages
(Bruch et al., SIGIR 2024).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seismic
from scipy import sparse

from distill.config import Seismic

_SLAB = 65_536  # passages added at once: the library copies them with 64-bit term numbers
_SMALL_VOCABULARY = 65_536  # the greatest that the plain index, with 16-bit terms, can hold


def build_seismic(passages: sparse.csr_matrix, cfg: Seismic, threads: int = 0) -> Any:
    """Build an index over `passages` [N, vocabulary]. `threads` 0: all."""
    small = passages.shape[1] <= _SMALL_VOCABULARY
    passages = passages if passages.has_sorted_indices else passages.sorted_indices()
    dataset = (seismic.SeismicDataset if small else seismic.SeismicDatasetLV)(passages.shape[1])
    for first in range(0, passages.shape[0], _SLAB):
        slab = passages[first : first + _SLAB]
        dataset.add_documents_by_id(
            [str(first + i) for i in range(slab.shape[0])],
            slab.indices.astype(np.int64),
            slab.data,
            slab.indptr.astype(np.int64),
        )
    build = cfg.model_dump(include={"n_postings", "centroid_fraction", "min_cluster_size", "summary_energy"})
    with _without_stdout():
        return (seismic.SeismicIndex if small else seismic.SeismicIndexLV).build_from_dataset(
            dataset, **build, num_threads=threads
        )


def search_seismic(
    index: Any, queries: sparse.csr_matrix, k: int, cfg: Seismic, threads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """As `distill.retrieval.exact.search_sparse`, approximately, and with Seismic's rounded scores."""
    width = min(k, index.len)
    rows = np.full((queries.shape[0], width), -1, dtype=np.int64)
    scores = np.zeros((queries.shape[0], width), dtype=np.float32)
    if width == 0 or queries.shape[0] == 0:
        return rows, scores
    components, values = query_terms(queries)
    names = np.arange(queries.shape[0]).astype(seismic.get_seismic_string())
    results = index.batch_search(names, components, values, width, cfg.query_cut, cfg.heap_factor, num_threads=threads)
    for hits in results:  # in any order: each hit carries the name of its query
        if hits:
            i = int(hits[0][0])
            passages = np.array([int(passage) for _, _, passage in hits])
            weights = np.array([score for _, score, _ in hits], dtype=np.float32)
            order = np.lexsort((passages, -weights))
            rows[i, : len(hits)], scores[i, : len(hits)] = passages[order], weights[order]
    return rows, scores


def query_terms(queries: sparse.csr_matrix) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return each query's terms, as the strings that Seismic expects, and their weights."""
    names = queries.indices.astype(seismic.get_seismic_string())
    spans: Sequence[slice] = [slice(*queries.indptr[i : i + 2]) for i in range(queries.shape[0])]
    return [names[span] for span in spans], [queries.data[span].astype(np.float32) for span in spans]


def seismic_bytes(index: Any, folder: Path) -> int:
    """Measure the size of a saved index by saving it temporarily in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        with _without_stdout():
            index.save(str(Path(temporary) / "index"))
        return sum(file.stat().st_size for file in Path(temporary).iterdir())


@contextlib.contextmanager
def _without_stdout() -> Iterator[None]:
    """Suppress the progress that the library prints to file descriptor 1, bypassing `sys.stdout`."""
    stdout, devnull = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(devnull)
