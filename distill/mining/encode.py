"""Texts to sparse vectors with a SPLADE student: length-sorted batches under a token budget, kept as CSR.

Only active terms are kept, so what is held is 8 bytes a term and never [texts, vocabulary].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from scipy import sparse

from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.data.token_batches import token_batches
from distill.data.tokens import TokenStore, build_token_store, token_key
from distill.errors import StudentError
from distill.progress import progress
from distill.student.base import Side, Student

Precision = Literal["float32", "bfloat16", "float16"]
_SLAB = 65_536  # texts sorted by length together
_BLOCK_BYTES = 1 << 30  # of a block of `encode_blocks`, but for its last slab
_CPU_BATCH_TOKENS = 4096  # measured best: activations of a batch stay near the caches
_GPU_BATCH_TOKENS = 65_536


def token_store(student: Student, texts: TextStore, folder: RunFolder, name: str) -> TokenStore:
    """The run folder's token store of `texts` for this student, built where it is missing.

    `name`: "passages" or "queries.<split>", as in `RunFolder.tokens`; it also decides the prompt and the length.
    """
    side = "passage" if name == "passages" else "query"
    prefix, max_length = _conventions(student, side)
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
    """Vectors of the given rows of a token store: float32 [len(rows), vocabulary].

    Lengths and top-k cap are the student's own for its `side`; the prompt is the token store's. Progress is shown
    under `description`. `batch_tokens` bounds a batch's padded tokens (None: what suits the device); `precision` is
    that of the encoder's products (autocast), not of the vectors. The student is in evaluation mode meanwhile, and
    stays on the device where it is. Raises `StudentError` for values that are not finite.
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
    """As `encode_store`, one block of consecutive rows after the other, for collections that memory does not hold."""
    rows = np.asarray(rows, dtype=np.int64)
    lengths = np.asarray(tokens.lengths)[rows]
    slabs: list[sparse.csr_matrix] = []
    with _shown(description, len(rows)) as advance:
        for first in range(0, len(rows), _SLAB):
            at = rows[first : first + _SLAB]
            slabs.append(
                _encode(
                    student,
                    lambda batch, at=at: tokens.take(at[batch]),
                    lengths[first : first + _SLAB],
                    side,
                    batch_tokens,
                    precision,
                    advance,
                )
            )
            if sum(_bytes(slab) for slab in slabs) >= block_bytes:
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
    """Vectors of texts at hand, prompt included: float32 [len(texts), vocabulary]; else as `encode_store`."""
    prefix, max_length = _conventions(student, side)
    prompted = [prefix + text for text in texts]
    ids = student.tokenizer(prompted, add_special_tokens=False, verbose=False)["input_ids"] if prompted else []
    arrays = [np.asarray(text[:max_length], dtype=np.int32) for text in ids]
    lengths = np.array([len(text) for text in arrays], dtype=np.int64)
    with _shown(description, len(texts)) as advance:
        return _encode(
            student, lambda batch: [arrays[i] for i in batch], lengths, side, batch_tokens, precision, advance
        )


def _encode(
    student: Student,
    take: Callable[[np.ndarray], list[np.ndarray]],
    lengths: np.ndarray,
    side: Side,
    batch_tokens: int | None,
    precision: Precision,
    advance: Callable[[int], object],
) -> sparse.csr_matrix:
    """Texts sorted by length together; `take` gives the tokens of some of them, by number."""
    _, max_length = _conventions(student, side)
    device = next(student.parameters()).device
    batch_tokens = batch_tokens or (_CPU_BATCH_TOKENS if device.type == "cpu" else _GPU_BATCH_TOKENS)
    autocast = torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")
    batches = token_batches(
        np.minimum(lengths.astype(np.int64) + student.special_tokens(side), max_length), batch_tokens
    )
    parts = []
    training = student.training
    student.eval()
    try:
        with torch.no_grad(), autocast:
            for batch in batches:
                input_ids, mask = student.assemble(take(batch), max_length, side)
                reps = student(input_ids.to(device), mask.to(device), side=side)
                reps = reps if student.top_k is None else reps.top_k(student.top_k)
                parts.append(
                    sparse.csr_matrix(
                        (
                            reps.values.float().cpu().numpy(),
                            reps.terms.cpu().numpy().astype(np.int32),
                            reps.indptr.cpu().numpy(),
                        ),
                        shape=(len(batch), reps.vocab_size),
                    )
                )
                advance(len(batch))
    finally:
        student.train(training)
    stacked = _stack(parts, student)
    if not np.isfinite(stacked.data).all():  # or search would pass over them without a word
        raise StudentError(
            f"the {side} vectors have NaN or infinite values in {precision}: "
            + (
                "the model's weights are broken, or too large"
                if precision == "float32"
                else "set what they are encoded in (evaluate.precision, mine.precision, or a teacher's dtype) to bfloat16 or "
                "float32"
            )
        )
    return stacked[np.argsort(np.concatenate(batches))] if parts else stacked  # back from the order of lengths


def _shown(description: str, texts: int) -> AbstractContextManager[Callable[..., object]]:
    return progress(description, texts, "texts") if description else nullcontext(lambda n: None)


def _stack(parts: list[sparse.csr_matrix], student: Student) -> sparse.csr_matrix:
    if not parts:
        return sparse.csr_matrix((0, student.vocab_size), dtype=np.float32)
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


def _bytes(vectors: sparse.csr_matrix) -> int:
    return vectors.data.nbytes + vectors.indices.nbytes


def _conventions(student: Student, side: Side) -> tuple[str, int]:
    """The prompt put before texts of a side, and their greatest length in tokens."""
    return student.prompts.get("query" if side == "query" else "document", ""), student.max_length(side)
