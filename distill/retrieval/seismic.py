"""Approximate top-k search over sparse vectors by Seismic (pyseismic-lsr): for collections too large for exact search.

The index names terms by their number in the vocabulary. Seismic stores weights in 16 bits and prunes posting lists to
the strongest passages, so its scores differ from exact ones in the third digit, and it misses a few passages
(Bruch et al., SIGIR 2024).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seismic
from scipy import sparse

from distill.config import Seismic
from distill.run.files import remove_leftovers, write_atomic
from distill.run.seals import sealed

_SLAB = 65_536  # passages added at once: the library copies them with 64-bit term numbers
_TEMPORARY = ".seismic-"  # start of the names of temporary folders
_SMALL_VOCABULARY = 65_536  # the greatest that the plain index, with 16-bit terms, can hold


def build_seismic(passages: sparse.csr_matrix, cfg: Seismic, threads: int = 0) -> Any:
    """Build an index over `passages` [N, vocabulary]. `threads` 0: all."""
    slabs = (passages[first : first + _SLAB] for first in range(0, passages.shape[0], _SLAB))
    return build_from_blocks(slabs, passages.shape[1], cfg, threads)


def build_from_blocks(blocks: Iterable[sparse.spmatrix], vocabulary: int, cfg: Seismic, threads: int = 0) -> Any:
    """As `build_seismic`, over consecutive passages that come in blocks [at most 65,536, vocabulary].

    The library holds all vectors in memory; of the blocks, one is held at a time.
    """
    dataset = (seismic.SeismicDataset if vocabulary <= _SMALL_VOCABULARY else seismic.SeismicDatasetLV)(vocabulary)
    first = 0
    for block in blocks:
        slab = block.tocsr()
        slab = slab if slab.has_sorted_indices else slab.sorted_indices()
        dataset.add_documents_by_id(
            [str(first + i) for i in range(slab.shape[0])],
            slab.indices.astype(np.int64),
            slab.data,
            slab.indptr.astype(np.int64),
        )
        first += slab.shape[0]
    with _without_stdout():
        return _index_type(vocabulary).build_from_dataset(dataset, **build_settings(cfg), num_threads=threads)


def build_settings(cfg: Seismic) -> dict[str, Any]:
    """The settings that decide the index; the others are of a search."""
    return cfg.model_dump(include={"n_postings", "centroid_fraction", "min_cluster_size", "summary_energy"})


def save_seismic(index: Any, path: Path) -> None:
    """Write an index to a file, atomically, and its seal. One process writes a file at a time."""
    remove_leftovers(path.parent, f"{_TEMPORARY}*")
    with sealed(path), write_atomic(path) as temporary, _saved(index, path.parent) as file:
        file.replace(temporary)


def load_seismic(path: Path, vocabulary: int) -> Any:
    """Load an index over `vocabulary` terms into memory."""
    with _without_stdout():
        return _index_type(vocabulary).load(str(path))


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
    with _saved(index, folder) as file:
        return file.stat().st_size


def _index_type(vocabulary: int) -> Any:
    return seismic.SeismicIndex if vocabulary <= _SMALL_VOCABULARY else seismic.SeismicIndexLV


@contextlib.contextmanager
def _saved(index: Any, folder: Path) -> Iterator[Path]:
    """A file in a temporary folder below `folder`: the library chooses the end of its name."""
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
        with _without_stdout():
            index.save(str(Path(temporary) / "index"))
        yield next(Path(temporary).iterdir())


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
