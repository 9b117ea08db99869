"""Count the terms of a collection's passages, block by block, in this process or in several.

A block's counts hold the terms as strings, in the order of their first appearance, so that they do not depend on which
process counted it. Worker processes read the passages from the mapped store; they end with this process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np
from scipy import sparse

from distill.errors import LimitError
from distill.retrieval.analysis import Analyser, TermNumbers, counted
from distill.store.texts import TextStore

BLOCK = 8192  # passages
_IN_PARALLEL_FROM = 50_000  # passages; below, starting processes takes longer than counting
_MOST_WORKERS = 8  # which keep the merging process busy
_MOST_WORDS = 500_000  # remembered by a process, 150 MB with their stems


@dataclass(frozen=True)
class BlockCounts:
    """Counts of a block's terms: float32 [passages, len(terms)]."""

    terms: list[str]
    counts: sparse.csr_matrix


class BlockCounter:
    """Counts blocks, and remembers the words of earlier ones."""

    def __init__(self, store: TextStore, analyser: Analyser):
        self._store, self._analyser = store, analyser
        self._numbers = TermNumbers(analyser, {}, grows=True)

    def count(self, start: int) -> BlockCounts:
        """Count the terms of the passages from row `start`."""
        if len(self._numbers) > _MOST_WORDS:
            self._numbers = TermNumbers(self._analyser, {}, grows=True)
        rows = np.arange(start, min(start + BLOCK, self._store.collection_size))
        numbers, offsets = self._numbers.of(self._store.texts(rows))
        terms = list(self._numbers.terms)
        # the place of each term's first appearance: the last one written, from the end
        first = np.empty(len(terms), np.int64)
        places = np.arange(len(numbers))
        first[numbers[::-1]] = places[::-1]
        distinct = numbers[first[numbers] == places]  # in order of appearance
        local = np.empty(len(terms), np.int32)
        local[distinct] = np.arange(len(distinct), dtype=np.int32)
        return BlockCounts([terms[number] for number in distinct], counted(local[numbers], offsets, len(distinct)))


def count_blocks(store: TextStore, analyser: Analyser, workers: int | None = None) -> Generator[BlockCounts]:
    """Yield the counts of consecutive blocks of the searchable passages, in order.

    `workers`: number of processes; None: what suits this machine and the collection. Raises `LimitError` if a worker
    is killed.
    """
    starts = range(0, store.collection_size, BLOCK)
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(cores, _MOST_WORKERS) if store.collection_size >= _IN_PARALLEL_FROM else 1
    if workers == 1:
        counter = BlockCounter(store, analyser)
        yield from map(counter.count, starts)
        return
    with contextlib.ExitStack() as stack:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        for _ in range(workers):  # are ended before the pool waits for its threads
            idle.put(stack.enter_context(_worker(store.path, analyser)))

        def count(start: int) -> BlockCounts:
            worker = idle.get()
            try:
                return worker.count(start)
            finally:
                idle.put(worker)

        pending: deque[Future[BlockCounts]] = deque()
        stack.callback(lambda: [future.cancel() for future in pending])
        for start in starts:
            pending.append(pool.submit(count, start))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]

    def count(self, start: int) -> BlockCounts:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            send(self.process.stdin, start)
            reply = pickle.load(self.process.stdout)
        except (OSError, EOFError):
            raise LimitError(
                f"a process that counts words for BM25's index ended (status {self.process.wait()}); the machine may "
                "have too little memory. Start the same command again, with fewer processors (taskset) if it recurs"
            ) from None
        if isinstance(reply, BaseException):
            raise reply
        return reply


@contextlib.contextmanager
def _worker(path: Path, analyser: Analyser) -> Iterator[_Worker]:
    command = [sys.executable, "-m", "distill.retrieval.count_worker"]
    # in a session of its own: a terminal's Ctrl-C is for this process, which ends the worker
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # told by the first count
            send(process.stdin, (path, analyser))
        yield _Worker(process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def send(stream: IO[bytes], value: object) -> None:
    """Write a value to the pipe between a worker and the process that started it."""
    pickle.dump(value, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()
