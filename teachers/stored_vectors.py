"""The stored vectors of a SPLADE teacher, for losses that train on them.

Scoring leaves each text's vector on disk. Training reads those, so nothing is encoded twice, and labels and vectors
come from one model. Chunks that were removed since are encoded again.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np

from distill.errors import StorageError, TeacherError
from distill.progress import progress
from distill.run.files import locked
from distill.run.fingerprint import fingerprint
from distill.run.layout import RunFolder
from distill.run.manifest import require_manifest
from distill.store.candidates import only_batch
from teachers.base import open_teacher, prepare
from teachers.identity import identity
from teachers.spec import TeacherSpec
from teachers.vectors import Chunk, ChunkPlan, VectorTeacher, open_chunk, planned_for

SPLIT = "train"


class StoredVectors:
    """Vectors by row, memory-mapped. A chunk's checksum is verified at its first read."""

    def __init__(self, name: str, folder: RunFolder):
        self._plan = ChunkPlan(name, folder)
        self._chunks: dict[Chunk, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def take(self, store: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors of rows of a store ("queries" or "passages") as CSR, in the order given, repeats allowed: offsets
        int64 [n + 1], terms int32, ascending within each text, and weights float32."""
        distinct, inverse = np.unique(rows, return_inverse=True)
        vectors: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # terms and weights, by index into `distinct`
        for chunk, indices, inside in self._plan.places(SPLIT, store, distinct):
            offsets, terms, weights = self._open(chunk)
            starts, ends = offsets[inside].tolist(), offsets[inside + 1].tolist()
            for i, start, end in zip(indices.tolist(), starts, ends, strict=True):
                vectors[i] = terms[start:end], weights[start:end]
        assert len(vectors) == len(distinct), "a text that was never scored"
        texts = [vectors[i] for i in inverse.tolist()]
        offsets = np.cumsum([0, *(len(terms) for terms, _ in texts)])
        return offsets, np.concatenate([terms for terms, _ in texts]), np.concatenate([weights for _, weights in texts])

    def _open(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if chunk not in self._chunks:
            path = self._plan.path(chunk)
            try:
                batch = only_batch(open_chunk(path))
            except StorageError as error:
                raise StorageError(
                    f"{error} (a teacher's vectors, which training reads). Remove the file if it exists and run the "
                    "same command again, which encodes it anew"
                ) from None
            terms = batch.column("terms")
            self._chunks[chunk] = (
                terms.offsets.to_numpy(),
                terms.values.to_numpy(),
                batch.column("values").values.to_numpy(),
            )
        return self._chunks[chunk]


def complete_vectors(spec: TeacherSpec) -> None:
    """Encode the missing vectors behind the teacher's finished scores. Idempotent; resumes chunk by chunk.

    Raises `TeacherError` if some are missing and the model or the candidates have changed since scoring.
    """
    name, folder = spec.name, spec.folder
    scored = require_manifest(folder.scores(name, SPLIT), "score").fields
    with locked(folder.scores(name, "vectors.complete")):  # one process works while the others wait
        planned = planned_for(spec, SPLIT, scored["teacher"], scored["candidates"])
        plan = ChunkPlan(name, folder)
        if planned and not _missing(plan):
            return
        model, candidates = identity(spec), require_manifest(folder.candidates(SPLIT), "mine").fingerprint
        if (model, candidates) != (scored["teacher"], scored["candidates"]):
            raise TeacherError(
                f"teacher {name!r}: vectors behind its scores are missing from {folder.scores(name, 'vectors')} and "
                f"cannot be encoded again: the {'candidates' if model == scored['teacher'] else 'model'} changed since "
                "scoring; run `distill score` again"
            )
        prepare(spec, [SPLIT])
        _encode(spec, fingerprint(model), _missing(plan))


def _missing(plan: ChunkPlan) -> list[Chunk]:
    chunks = {plan.path(chunk): chunk for chunk in plan.of(SPLIT)}
    existing = {path for home in {path.parent for path in chunks} for path in home.iterdir()}  # one listing per folder
    return [chunk for path, chunk in chunks.items() if path not in existing]


def _encode(spec: TeacherSpec, model: str, chunks: Sequence[Chunk]) -> None:
    """Encode with the settings that the scores were made with, as far as this machine allows; `model`: fingerprint."""
    import torch

    from teachers.execution import frozen_execution

    threads = torch.get_num_threads()
    teacher = open_teacher(spec, frozen_execution(spec, model, None, threads))
    assert isinstance(teacher, VectorTeacher)
    with progress(f"encode, {spec.name}", len(chunks), "chunks") as advance:
        for chunk in chunks:
            teacher.encode_chunk(chunk, even_if_busy=True)
            advance()
    torch.set_num_threads(threads)
    del teacher
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
