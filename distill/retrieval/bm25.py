"""BM25 over the searchable collection, by Lucene's formula; one index per run, on which all that use BM25 rely.

The passages' terms are counted once, into a temporary file; then, with the collection's statistics known, weighted and
written as posting lists (Kamphuis et al., ECIR 2020, "Lucene (accurate)"). Texts outside the index, such as training
variants of passages, are scored with the collection's statistics. A saved index is memory-mapped, so that processes
share it; memory for building it grows with the vocabulary alone.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from scipy import sparse

from distill.errors import StorageError
from distill.progress import progress
from distill.retrieval.analysis import Analyser, TermNumbers
from distill.retrieval.bm25_settings import Bm25Settings
from distill.retrieval.inverted import InvertedIndex
from distill.retrieval.postings import FORMAT as POSTINGS_FORMAT
from distill.retrieval.postings import Postings
from distill.retrieval.term_counts import count_blocks
from distill.run.files import locked, new_folder, read_object, remove_leftovers, storage_errors, write_json, xxh128_file
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.run.seals import seal
from distill.store.arrow import RowReader, write_ipc
from distill.store.texts import TextStore

log = logging.getLogger(__name__)

FORMAT = 2  # version of a saved index
_PAIRS = 200_000  # scored at once
_RUN = 64  # blocks of passages whose postings are made, and kept in memory, together
ENGLISH = Bm25Settings()  # the defaults
_POSTINGS, _TERMS, _IDF, _RECORD = "postings.arrow", "terms.txt", "idf.npy", "index.json"  # names in a saved index


@dataclass(frozen=True)
class Statistics:
    """What weights depend on besides a text: made of a collection of passages."""

    settings: Bm25Settings
    terms: dict[str, int]  # term -> its number
    idf: np.ndarray  # float32 [terms]
    mean_length: float  # terms per passage

    @property
    def analyser(self) -> Analyser:
        return Analyser(self.settings.language, self.settings.stemming)

    def weigh(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """idf · tf / (tf + k1 (1 - b + b · length / mean length)), on the non-zeros of `counts` [n, terms]."""
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        k1, b = self.settings.k1, self.settings.b
        norm = k1 * (1 - b + b * lengths / max(self.mean_length, 1e-9))
        tf = counts.data
        data = self.idf[counts.indices] * (tf / (tf + np.repeat(norm, np.diff(counts.indptr))))
        return sparse.csr_matrix((data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


@dataclass(frozen=True)
class Bm25Index:
    """The BM25 weights of a collection's passages, made by `build_index`, `open_index` or `run_index`."""

    store: TextStore
    statistics: Statistics
    postings: InvertedIndex

    @property
    def terms(self) -> dict[str, int]:
        """Term -> its number."""
        return self.statistics.terms

    @property
    def idf(self) -> np.ndarray:
        """float32 [terms]"""
        return self.statistics.idf

    @cached_property
    def _numbers(self) -> TermNumbers:
        return TermNumbers(self.statistics.analyser, self.terms)

    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the best `k` passages of each query: rows int64 [n, min(k, N)] and scores float32.

        Only passages that share a term with the query are ranked; the rest of a row is -1, with score 0.
        """
        return self.postings.search(self.query_vectors(queries), k, threads)

    def score_pairs(self, queries: Sequence[str], passages: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Score `queries[i]` against the rows `passages[i]`, int64 [m_i], of the store.

        Training variants (rows from `collection_size`) are weighted by their own words with the collection's idf and
        mean length. Returns one float32 [m_i] per query.
        """
        counts = np.array([len(rows) for rows in passages], dtype=np.int64)
        vectors = self.query_vectors(queries)
        query_of = np.repeat(np.arange(len(queries)), counts)  # [pairs]
        rows = np.concatenate([np.empty(0, np.int64), *passages]).astype(np.int64)  # [pairs]
        scores = np.empty(len(rows), dtype=np.float32)
        indexed = rows < self.store.collection_size
        scores[indexed] = self.postings.score(vectors, query_of[indexed], rows[indexed])
        variants = np.flatnonzero(~indexed)
        for start in range(0, len(variants), _PAIRS):
            pairs = variants[start : start + _PAIRS]
            distinct, at = np.unique(rows[pairs], return_inverse=True)
            weights = self.passage_vectors(distinct)
            scores[pairs] = np.asarray(vectors[query_of[pairs]].multiply(weights[at]).sum(axis=1)).ravel()
        return np.split(scores, np.cumsum(counts)[:-1]) if len(counts) else []

    def query_vectors(self, queries: Sequence[str]) -> sparse.csr_matrix:
        """Count each indexed term in each query: float32 [n, terms]."""
        return self._numbers.count(queries)

    def passage_vectors(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return the BM25 weights of any rows of the store, indexed or not: float32 [len(rows), terms]."""
        return self.text_vectors(self.store.texts(rows))

    def text_vectors(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return the BM25 weights that texts would have as passages of the collection: float32 [n, terms]."""
        return self.statistics.weigh(self.query_vectors(texts))


def run_index(run: Run, verify: bool = False) -> Bm25Index:
    """Open the BM25 index of a run; it is built before, once, if there is none or another one."""
    return shared_index(run.folder, Bm25Settings.of(run), verify)


def shared_index(folder: RunFolder, settings: Bm25Settings, verify: bool = False) -> Bm25Index:
    """As `run_index`, by the run's folder and its settings. With `verify`, a damaged index is built again, too.

    The processes of a run wait for the one that builds.
    """
    passages, home = TextStore.open(folder.passages), folder.index("bm25")
    if (index := open_index(passages, home, settings, verify)) is not None:
        return index
    with locked(home):
        if (index := open_index(passages, home, settings, verify)) is None:
            remove_leftovers(home.parent, f".{home.name}.*.tmp", older_than=0)  # of a killed process: we have the lock
            save_index(passages, home, settings)
            index = open_index(passages, home, settings)
    if index is None:
        raise StorageError(f"{home}: BM25's index cannot be read back; check the disk, then run the command again")
    return index


def build_index(store: TextStore, settings: Bm25Settings = ENGLISH, workers: int | None = None) -> Bm25Index:
    """Index the searchable passages, rows [0, collection_size) of `store`, in memory.

    `workers`: number of processes, see `count_blocks`.
    """
    with tempfile.TemporaryFile() as spool:
        statistics, blocks = _count(store, settings, spool, workers)
        return Bm25Index(store, statistics, InvertedIndex(list(_runs(statistics, spool, blocks))))


def save_index(store: TextStore, home: Path, settings: Bm25Settings = ENGLISH, workers: int | None = None) -> None:
    """Build the index of `store` in the folder `home`, for `open_index`; one that is there is replaced at the end.

    `workers`: number of processes, see `count_blocks`; the files do not depend on it.
    """
    with new_folder(home) as folder, storage_errors(home):
        with tempfile.TemporaryFile(dir=folder) as spool:
            statistics, blocks = _count(store, settings, spool, workers)
            batches = (run.batch() for run in _runs(statistics, spool, blocks))
            first = next(batches)
            write_ipc(folder / _POSTINGS, first.schema, itertools.chain([first], batches))
        np.save(folder / _IDF, statistics.idf)
        (folder / _TERMS).write_text("\n".join(statistics.terms), encoding="utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        checksums = {str(path.relative_to(folder)): xxh128_file(path) for path in files}
        write_json(
            folder / _RECORD,
            {
                "made_of": _made_of(store, settings),
                "terms": len(statistics.terms),
                "mean_length": statistics.mean_length,
                "checksums": checksums,
            },
        )
        for name, checksum in {**checksums, _RECORD: xxh128_file(folder / _RECORD)}.items():
            seal(folder / name, checksum)


def open_index(
    store: TextStore, home: Path, settings: Bm25Settings = ENGLISH, verify: bool = False
) -> Bm25Index | None:
    """Open the index of `store` saved in `home`, memory-mapped; it equals a newly built one.

    None if there is no index, it has other texts or settings, or it cannot be opened; with `verify`, also if a file is
    damaged.
    """
    try:
        saved = read_object(home / _RECORD)
        if saved["made_of"] != _made_of(store, settings):
            return None
        if verify:
            for name, checksum in saved["checksums"].items():
                if xxh128_file(home / name) != checksum:
                    raise StorageError(f"the content of {name} differs from its checksum")
        terms = (home / _TERMS).read_text(encoding="utf-8").split("\n") if saved["terms"] else []
        idf = np.load(home / _IDF, mmap_mode="r")
        if not len(terms) == len(idf) == saved["terms"]:
            raise StorageError(f"{saved['terms']} terms expected, found {len(terms)} and {len(idf)} idf")
        numbered = {term: number for number, term in enumerate(terms)}
        statistics = Statistics(settings, numbered, idf, float(saved["mean_length"]))
        runs = [Postings.of_batch(batch) for batch in RowReader(home / _POSTINGS).batches]
        return Bm25Index(store, statistics, InvertedIndex(runs))
    except FileNotFoundError:
        return None
    except (StorageError, AttributeError, EOFError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: a damaged index of BM25 (%s); it is built again", home, error)
        return None


def _made_of(store: TextStore, settings: Bm25Settings) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "postings": POSTINGS_FORMAT,
        "texts": store.fingerprint,
        "passages": store.collection_size,
        **asdict(settings),
    }


def _count(store: TextStore, settings: Bm25Settings, spool: IO[bytes], workers: int | None) -> tuple[Statistics, int]:
    """Count the terms of the passages into `spool`; returns the collection's statistics and the number of blocks."""
    terms: dict[str, int] = {}
    frequency = np.zeros(0, np.int64)  # passages with the term
    blocks = tokens = 0
    analyser = Analyser(settings.language, settings.stemming)
    counting = contextlib.closing(count_blocks(store, analyser, workers))
    with progress("BM25 index", store.collection_size, "passages") as advance, counting as counted:
        for block in counted:
            counts = block.counts
            numbers = np.array([terms.setdefault(term, len(terms)) for term in block.terms], np.int32)
            if len(terms) > len(frequency):  # doubled, as lists are
                frequency = np.concatenate([frequency, np.zeros(len(terms), np.int64)])
            frequency[numbers] += np.bincount(counts.indices, minlength=len(numbers))
            tokens += int(counts.data.sum(dtype=np.float64))
            largest = counts.data.max(initial=0)
            for array in (
                counts.indptr.astype(np.int32),
                numbers[counts.indices],
                counts.data.astype(np.uint8 if largest < 256 else np.uint32),
            ):
                np.save(spool, array)
            blocks += 1
            advance(counts.shape[0])
    n, frequency = store.collection_size, frequency[: len(terms)]
    idf = np.log1p((n - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
    return Statistics(settings, terms, idf, tokens / max(n, 1)), blocks


def _runs(statistics: Statistics, spool: IO[bytes], blocks: int) -> Iterator[Postings]:
    """Yield the posting lists of the weights of what `_count` has written; at least one run, which may be empty."""
    spool.seek(0)
    for start in range(0, max(blocks, 1), _RUN):
        empty = sparse.csr_matrix((0, len(statistics.terms)), dtype=np.float32)
        weights = [_weighed(statistics, spool) for _ in range(start, min(start + _RUN, blocks))]
        yield Postings.of(sparse.vstack([empty, *weights], format="csr"))


def _weighed(statistics: Statistics, spool: IO[bytes]) -> sparse.csr_matrix:
    """Weigh the next block in `spool`: float32 [block, terms]."""
    indptr, indices, counts = (np.load(spool) for _ in range(3))
    shape = (len(indptr) - 1, len(statistics.terms))
    return statistics.weigh(sparse.csr_matrix((counts.astype(np.float32), indices, indptr), shape=shape))
