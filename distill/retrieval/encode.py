"""Encode texts as sparse vectors (CSR) with a SPLADE student, in length-sorted batches under a token budget.

Only active terms are stored, 8 bytes each, never [texts, vocabulary].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from scipy import sparse

from distill.errors import StudentError
from distill.progress import progress
from distill.run.ahead import ahead
from distill.run.device import until_it_fits, upload
from distill.run.layout import RunFolder
from distill.sparse.reps import SparseReps
from distill.store.texts import TextStore
from distill.store.token_batches import token_batches
from distill.store.tokens import TokenStore, build_token_store, token_key
from distill.student.base import Side, Student

Precision = Literal["float32", "bfloat16", "float16"]
_SLAB = 65_536  # texts sorted by length together
_BLOCK_BYTES = 1 << 30  # of a block of `encode_blocks`, not counting its last slab
_CPU_BATCH_TOKENS = 4096  # measured best: the activations of a batch fit the caches
_GPU_BATCH_TOKENS = 65_536


def token_store(student: Student, texts: TextStore, folder: RunFolder, name: str) -> TokenStore:
    """Open the run folder's token store of `texts` for this student; a missing one is built.

    `name`: "passages" or "queries.<split>", as in `RunFolder.tokens`; it also decides the prompt and maximum length.
    """
    prefix, max_length = _conventions(student, "passage" if name == "passages" else "query")
    path = folder.tokens(token_key(student.tokenizer, prefix), name)
    return build_token_store(texts, student.tokenizer, path, max_length, prefix)


def encode_store(
    student: Student,
    tokens: TokenStore,
    rows: np.ndarray,
    side: Side,
    description: str = "",
    batch_tokens: int | None = None,
    precision: Precision = "float32",
) -> sparse.csr_matrix:
    """Encode rows of a token store: float32 [len(rows), vocabulary].

    Maximum length and top-k cap are the student's own for its `side`; the prompt is in the token store. Progress is
    shown under `description`. `batch_tokens` limits the padded tokens of a batch (None: a good size for the device, and
    less if its memory does not suffice). `precision` is that of the encoder's products (autocast), not of the vectors.
    The student stays on its device and keeps its mode. Raises `StudentError` for values that are not finite.
    """
    slabs = list(encode_blocks(student, tokens, rows, side, description, batch_tokens, precision, block_bytes=0))
    return _stack(slabs, student)


def encode_blocks(
    student: Student,
    tokens: TokenStore,
    rows: np.ndarray,
    side: Side,
    description: str = "",
    batch_tokens: int | None = None,
    precision: Precision = "float32",
    block_bytes: int = _BLOCK_BYTES,
) -> Iterator[sparse.csr_matrix]:
    """As `encode_store`, in blocks of consecutive rows, for collections that do not fit into memory."""
    rows = np.asarray(rows, dtype=np.int64)
    lengths = np.asarray(tokens.lengths)[rows]
    encoding = _Encoding(student, side, batch_tokens, precision)
    slabs: list[sparse.csr_matrix] = []
    with _shown(description, len(rows)) as advance:
        for first in range(0, len(rows), _SLAB):
            slab = slice(first, first + _SLAB)
            slabs.append(encoding.encode(partial(_take, tokens, rows[slab]), lengths[slab], advance))
            if sum(_bytes(vectors) for vectors in slabs) >= block_bytes:
                yield _stack(slabs, student)
                slabs = []
    if slabs:
        yield _stack(slabs, student)


def encode_texts(
    student: Student,
    texts: Sequence[str],
    side: Side,
    description: str = "",
    batch_tokens: int | None = None,
    precision: Precision = "float32",
) -> sparse.csr_matrix:
    """Encode texts in memory, with the student's prompt: float32 [len(texts), vocabulary]; else as `encode_store`."""
    prefix, max_length = _conventions(student, side)
    prompted = [prefix + text for text in texts]
    ids = student.tokenizer(prompted, add_special_tokens=False, verbose=False)["input_ids"] if prompted else []
    arrays = [np.asarray(text[:max_length], dtype=np.int32) for text in ids]
    lengths = np.array([len(text) for text in arrays], dtype=np.int64)
    with _shown(description, len(texts)) as advance:
        encoding = _Encoding(student, side, batch_tokens, precision)
        return encoding.encode(lambda batch: [arrays[i] for i in batch], lengths, advance)


@dataclass(frozen=True)
class _Encoding:
    """A student with the options of an encoding."""

    student: Student
    side: Side
    batch_tokens: int | None
    precision: Precision

    def encode(
        self,
        take: Callable[[np.ndarray], list[np.ndarray]],
        lengths: np.ndarray,
        advance: Callable[[int], object],
    ) -> sparse.csr_matrix:
        """Encode texts sorted by length together; `take` returns the token ids of texts by number."""
        student = self.student
        device = next(student.parameters()).device
        batch_tokens = self.batch_tokens or (_CPU_BATCH_TOKENS if device.type == "cpu" else _GPU_BATCH_TOKENS)
        special, longest = student.special_tokens(self.side), student.max_length(self.side)
        padded = np.minimum(lengths.astype(np.int64) + special, longest)
        parts: list[sparse.csr_matrix] = []
        order: list[np.ndarray] = []
        was_training = student.training
        student.eval()
        try:
            autocast = torch.autocast(device.type, getattr(torch, self.precision), enabled=self.precision != "float32")
            with torch.no_grad(), autocast:
                for batch, ids in ahead(take, token_batches(padded, batch_tokens)):
                    encode = partial(self._cut, ids, padded[batch])
                    if self.batch_tokens is None:  # smaller batches, from this one on, where memory does not suffice
                        encoded, batch_tokens = until_it_fits(encode, batch_tokens)
                    else:
                        encoded = encode(batch_tokens)
                    for part, vectors in encoded:
                        order.append(batch[part])
                        parts.append(vectors)
                    advance(len(batch))
        finally:
            student.train(was_training)
        stacked = _stack(parts, student)
        self._check_finite(stacked)
        return stacked[np.argsort(np.concatenate(order))] if parts else stacked  # undo the sort by length

    def _cut(
        self, ids: list[np.ndarray], padded: np.ndarray, batch_tokens: int
    ) -> list[tuple[np.ndarray, sparse.csr_matrix]]:
        """Encode the texts of a batch in batches of at most `batch_tokens`; returns the indices and vectors of each."""
        return [(part, self._vectors([ids[i] for i in part])) for part in token_batches(padded, batch_tokens)]

    def _vectors(self, ids: list[np.ndarray]) -> sparse.csr_matrix:
        """Encode texts, given their token ids, in one batch."""
        student = self.student
        device = next(student.parameters()).device
        input_ids, mask = student.assemble(ids, student.max_length(self.side), self.side)
        reps = student(upload(input_ids, device), mask if student.host_mask else upload(mask, device), side=self.side)
        return _csr(reps if student.top_k is None else reps.top_k(student.top_k))

    def _check_finite(self, vectors: sparse.csr_matrix) -> None:
        """Refuse NaN and infinity, which search would silently skip."""
        if np.isfinite(vectors.data).all():
            return
        remedy = (
            "the model's weights are broken, or too large"
            if self.precision == "float32"
            else "set evaluate.precision, mine.precision or the teacher's dtype, whichever encodes them, to bfloat16 "
            "or float32"
        )
        raise StudentError(f"the {self.side} vectors have NaN or infinite values in {self.precision}: {remedy}")


def _take(tokens: TokenStore, rows: np.ndarray, batch: np.ndarray) -> list[np.ndarray]:
    return tokens.take(rows[batch])


def _csr(reps: SparseReps) -> sparse.csr_matrix:
    arrays = (
        reps.values.float().cpu().numpy(),
        reps.terms.cpu().numpy().astype(np.int32),
        reps.indptr.cpu().numpy(),
    )
    return sparse.csr_matrix(arrays, shape=(len(arrays[2]) - 1, reps.vocab_size))


def _shown(description: str, texts: int) -> AbstractContextManager[Callable[..., object]]:
    return progress(description, texts, "texts") if description else nullcontext(lambda n: None)


def _stack(parts: list[sparse.csr_matrix], student: Student) -> sparse.csr_matrix:
    if not parts:
        return sparse.csr_matrix((0, student.vocab_size), dtype=np.float32)
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


def _bytes(vectors: sparse.csr_matrix) -> int:
    return vectors.data.nbytes + vectors.indices.nbytes


def _conventions(student: Student, side: Side) -> tuple[str, int]:
    """The prompt of a side's texts, and their maximum length in tokens."""
    return student.prompts.get("query" if side == "query" else "document", ""), student.max_length(side)
