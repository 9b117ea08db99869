"""A SPLADE teacher's vectors themselves, for losses that learn them: those that its training scores were made of.

Scoring leaves them on disk, encoded once a text, by Ray's workers where there are some. So nothing is encoded a second
time, and labels and vectors are of one model. Chunks that were removed since are made again.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill import config
from distill.data.candidates import only_batch
from distill.data.files import locked
from distill.data.fingerprint import fingerprint
from distill.data.layout import RunFolder
from distill.data.manifest import require_manifest
from distill.errors import StorageError, TeacherError
from distill.progress import progress
from teachers.base import open_teacher, prepare
from teachers.identity import identity
from teachers.vectors import Chunk, ChunkPlan, VectorTeacher, open_chunk, planned_for

SPLIT = "train"


class StoredVectors:
    """Vectors by row, memory-mapped. A chunk is checked when it is first read from."""

    def __init__(self, name: str, folder: RunFolder):
        self._plan = ChunkPlan(name, folder)
        self._chunks: dict[Chunk, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def take(self, store: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors of some of the store's rows ("queries" or "passages"), in the order given, repeats allowed, as CSR:
        offsets int64 [n + 1], terms int32, ascending in each text, and weights float32."""
        distinct, back = np.unique(rows, return_inverse=True)
        found: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(distinct)
        for chunk, here, inside in self._plan.places(SPLIT, store, distinct):
            offsets, terms, weights = self._open(chunk)
            starts, ends = offsets[inside].tolist(), offsets[inside + 1].tolist()
            for i, start, end in zip(here.tolist(), starts, ends, strict=True):
                found[i] = terms[start:end], weights[start:end]
        assert None not in found, "a text that was never scored"
        texts = [found[i] for i in back.tolist()]
        offsets = np.cumsum([0, *(len(terms) for terms, _ in texts)])
        return offsets, np.concatenate([terms for terms, _ in texts]), np.concatenate([weights for _, weights in texts])

    def _open(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if chunk not in self._chunks:
            path = self._plan.path(chunk)
            try:
                batch = only_batch(open_chunk(path))
            except StorageError as error:
                raise StorageError(
                    f"{error} (of a teacher's vectors, which are trained on). Remove the file if it is "
                    "there, and start the same command again: it is made anew"
                ) from None
            terms = batch.column("terms")
            self._chunks[chunk] = (
                terms.offsets.to_numpy(),
                terms.values.to_numpy(),
                batch.column("values").values.to_numpy(),
            )
        return self._chunks[chunk]


def complete_vectors(name: str, cfg: config.Teacher, folder: RunFolder) -> None:
    """Encode those vectors of the teacher's finished scores that are not there. Idempotent, and resumed chunk by chunk.

    Raises `TeacherError` where some are missing, and model or candidates are not those of the scores.
    """
    scored = require_manifest(folder.scores(name, SPLIT), "score").fields
    with locked(folder.scores(name, "vectors.complete")):  # one process works, the others find it done
        as_scored = planned_for(name, folder, SPLIT, scored["teacher"], scored["candidates"])
        plan = ChunkPlan(name, folder)
        if as_scored and not _missing(plan):
            return
        model, candidates = identity(name, cfg, folder), require_manifest(folder.candidates(SPLIT), "mine").fingerprint
        if (model, candidates) != (scored["teacher"], scored["candidates"]):
            raise TeacherError(
                f"teacher {name!r}: vectors that its scores were made of are gone from "
                f"{folder.scores(name, 'vectors')}, and cannot be made again: the "
                f"{'candidates are others' if model == scored['teacher'] else 'model is another'} by "
                "now; run `distill score` again"
            )
        prepare(name, cfg, folder, [SPLIT])
        _encode(name, cfg, folder, model, _missing(plan))


def _missing(plan: ChunkPlan) -> list[Chunk]:
    chunks = {plan.path(chunk): chunk for chunk in plan.of(SPLIT)}
    there = {path for home in {path.parent for path in chunks} for path in home.iterdir()}  # not a look at each
    return [chunk for path, chunk in chunks.items() if path not in there]


def _encode(name: str, cfg: config.Teacher, folder: RunFolder, model: dict[str, Any], chunks: Sequence[Chunk]) -> None:
    """With the execution that the scores were made under, as far as this machine has it."""
    import torch

    from teachers.execution import frozen_execution

    threads = torch.get_num_threads()
    execution = frozen_execution(folder.scores(name, "execution.json"), cfg, None, threads, fingerprint(model))
    teacher = open_teacher(name, cfg, folder, execution)
    assert isinstance(teacher, VectorTeacher)
    with progress(f"encode, {name}", len(chunks), "chunks") as advance:
        for chunk in chunks:
            teacher.encode_chunk(*chunk, even_if_busy=True)
            advance()
    torch.set_num_threads(threads)
    del teacher
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
