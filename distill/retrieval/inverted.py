"""Exact top-k search over posting lists: on a GPU, in C++ where it can be compiled, or with SciPy, with the same bits.

Rankings are by score, best first; ties go to the lower row. A score is the float32 sum of the products in the order of
the query's terms, so that rankings do not depend on blocks, threads or the machine.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from distill.native import native
from distill.retrieval.postings import Postings
from distill.retrieval.top_k import best_of
from distill.run.device import if_it_fits, lost_device, ran_out_of_memory

if TYPE_CHECKING:
    from distill.retrieval.cuda_search import DeviceIndex

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("search.cpp")
_THREADS = 8  # at most, unless told
_QUERIES = 1000  # searched together without a compiler
_ARRAYS = ("entries", "entry", "first", "place", "weight")  # of `Segment` in search.cpp


@dataclass(frozen=True)
class InvertedIndex:
    """The posting lists of a collection, in runs of consecutive passages over one vocabulary.

    `device`: that searches. On a GPU without memory for the lists, or that cannot run the kernel, processor cores do.
    """

    runs: Sequence[Postings]
    device: str = "cpu"

    @classmethod
    def of(cls, passages: sparse.csr_matrix, device: str = "cpu") -> InvertedIndex:
        """Index vectors float32 [N, vocabulary]."""
        return cls([Postings.of(passages)], device)

    @property
    def passages(self) -> int:
        return sum(run.passages for run in self.runs)

    @property
    def postings(self) -> int:
        return sum(len(run.place) for run in self.runs)

    @property
    def frequencies(self) -> np.ndarray:
        """The number of passages with each term: int64 [vocabulary]."""
        return np.stack([run.frequencies for run in self.runs]).sum(axis=0)

    def search(
        self, queries: sparse.csr_matrix, k: int, threads: int | None = None, least: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` passages with the largest positive dot product for each query.

        `queries`: float32 [n, vocabulary]. `threads`: None for as many as the machine has processors, 8 at most.
        `least`: float32 [n], scores that a passage must exceed. Returns rows int64 [n, min(k, N)] and scores float32 of
        the same shape; if fewer passages have a positive score, the rest has row -1 and score 0.
        """
        n, width = queries.shape[0], min(k, self.passages)
        rows = np.full((n, width), -1, dtype=np.int64)
        scores = np.zeros((n, width), dtype=np.float32)
        least = np.zeros(n, np.float32) if least is None else np.maximum(least, 0).astype(np.float32)
        if not rows.size:
            return rows, scores
        if (index := self._on_device) is not None:
            there = if_it_fits(lambda: index.search(queries, width, least), self.device, "the search of posting lists")
            if there is not None:
                return there
        threads = threads or min(os.cpu_count() or 1, _THREADS)
        library = _library()
        if library is None or queries.data.min(initial=0) < 0 or self._has_negative_weights:
            self._search_plainly(queries, least, rows, scores)
        else:
            found = map(_pointer, (rows, scores))
            _succeed(library.search(*self._segments, _Queries.of(queries), _pointer(least), width, threads, *found))
        return rows, scores

    def score(
        self, queries: sparse.csr_matrix, query_of: np.ndarray, rows: np.ndarray, threads: int | None = None
    ) -> np.ndarray:
        """Score pairs: the queries `query_of`, int64 [m], with the passages `rows`, int64 [m]; returns float32 [m]."""
        query_of, rows = np.ascontiguousarray(query_of, np.int64), np.ascontiguousarray(rows, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.passages:
            raise IndexError(f"rows {rows.min()}..{rows.max()} of an index of {self.passages} passages")
        scores = np.zeros(len(rows), dtype=np.float32)
        library = _library()
        if library is None:
            self._score_plainly(queries, query_of, rows, scores)
        elif len(rows):
            threads = threads or min(os.cpu_count() or 1, _THREADS)
            pairs = map(_pointer, (query_of, rows))
            _succeed(library.score(*self._segments, _Queries.of(queries), len(rows), *pairs, threads, _pointer(scores)))
        return scores

    @functools.cached_property
    def _on_device(self) -> DeviceIndex | None:
        """The posting lists on the GPU that searches, if one does."""
        kernels = None if self.device == "cpu" else _device_index(self.device)
        return (
            None
            if kernels is None
            else if_it_fits(lambda: kernels.of(self.runs, self.device), self.device, "posting lists")
        )

    @functools.cached_property
    def _segments(self) -> tuple[ctypes.Array, int]:
        return (_Segment * len(self.runs))(*map(_Segment.of, self.runs)), len(self.runs)

    @functools.cached_property
    def _has_negative_weights(self) -> bool:
        """Whether the bounds of `search.cpp`, which hold for positive products, do not hold."""
        return any(run.smallest < 0 for run in self.runs)

    def _search_plainly(
        self, queries: sparse.csr_matrix, least: np.ndarray, rows: np.ndarray, scores: np.ndarray
    ) -> None:
        """Fill `rows` and `scores` as `search.cpp` does, with SciPy's product of some queries and one block."""
        for start in range(0, queries.shape[0], _QUERIES):
            span = slice(start, start + _QUERIES)
            best = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(rows[span])
            for first, block in self._blocks():
                product = queries[span] @ block
                for i, (best_rows, best_scores) in enumerate(best):
                    hits = slice(*product.indptr[i : i + 2])
                    above = product.data[hits] > least[start + i]
                    best[i] = best_of(
                        np.concatenate([best_rows, product.indices[hits][above] + first]),
                        np.concatenate([best_scores, product.data[hits][above]]),
                        rows.shape[1],
                    )
            for i, (best_rows, best_scores) in enumerate(best, start):
                rows[i, : len(best_rows)], scores[i, : len(best_rows)] = best_rows, best_scores

    def _score_plainly(
        self, queries: sparse.csr_matrix, query_of: np.ndarray, rows: np.ndarray, scores: np.ndarray
    ) -> None:
        """Fill `scores` as `search.cpp` does."""
        for first, block in self._blocks():
            own = np.flatnonzero((rows >= first) & (rows < first + block.shape[1]))
            for query in np.unique(query_of[own]):
                pairs = own[query_of[own] == query]
                scores[pairs] = (queries[query] @ block).toarray()[0, rows[pairs] - first]

    def _blocks(self) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """The first row and the posting lists, [vocabulary, passages], of each block."""
        first = 0
        for run in self.runs:
            for block in run.blocks():
                yield first, block.T.tocsr()
                first += block.shape[0]


class _Segment(ctypes.Structure):
    """`Segment` of search.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("passages", "width")),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    )

    @classmethod
    def of(cls, run: Postings) -> _Segment:
        return cls(run.passages, run.width, *(getattr(run, name).ctypes.data for name in _ARRAYS))


class _Queries(ctypes.Structure):
    """`Queries` of search.cpp."""

    _fields_ = (("count", ctypes.c_int64), *((name, ctypes.c_void_p) for name in ("indptr", "term", "weight")))

    @classmethod
    def of(cls, queries: sparse.csr_matrix) -> _Queries:
        arrays = (
            np.ascontiguousarray(queries.indptr, np.int64),
            np.ascontiguousarray(queries.indices, np.int32),
            np.ascontiguousarray(queries.data, np.float32),
        )
        view = cls(queries.shape[0], *(array.ctypes.data for array in arrays))
        view.arrays = arrays  # kept alive
        return view


@functools.cache
def _device_index(device: str) -> type[DeviceIndex] | None:
    """The index in Triton, if its kernel runs on a device; None, with a warning, if it does not."""
    try:
        from distill.retrieval import cuda_search  # Triton is not installed everywhere

        cuda_search.launch_kernels(device)
    except Exception as error:  # Triton's first launch compiles C, and may raise anything
        if ran_out_of_memory(error) or lost_device(error):
            raise
        log.warning("the search's Triton kernel does not run on %s; processor cores search: %s", device, error)
        return None
    return cuda_search.DeviceIndex


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native(SOURCE, "-ffp-contract=off")  # SciPy's products are rounded, too
    return library and declared(library)


def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the argument types of `search.cpp`'s functions; returns the library."""
    size, address = ctypes.c_int64, ctypes.c_void_p
    index: tuple[Any, ...] = (ctypes.POINTER(_Segment), size, ctypes.POINTER(_Queries))
    library.search.argtypes = [*index, address, size, ctypes.c_int, address, address]
    library.score.argtypes = [*index, size, address, address, ctypes.c_int, address]
    return library


def _succeed(status: int) -> None:
    if not status:
        raise MemoryError("out of memory in the search of posting lists")
