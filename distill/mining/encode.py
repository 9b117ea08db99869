"""Texts to sparse vectors with a SPLADE student: length-sorted batches under a token budget, kept as CSR.

Only active terms are kept, so what is held is 8 bytes a term and never [texts, vocabulary].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from scipy import sparse

from distill.data.tokens import TokenStore
from distill.progress import progress
from distill.student.model import SpladeStudent

_SLAB = 65_536  # texts sorted by length together


def encode_store(student: SpladeStudent, tokens: TokenStore, rows: np.ndarray, *, max_length: int,
                 batch_tokens: int = 16384, top_k: int | None = None, description: str = "") -> sparse.csr_matrix:
    """Vectors of the given rows of a token store: float32 [len(rows), vocabulary].

    `max_length` counts special tokens; `batch_tokens` bounds a batch's padded tokens; `top_k` keeps only a text's
    strongest terms; progress is shown under `description`. The student is in evaluation mode meanwhile, and stays on
    the device where it is.
    """
    rows = np.asarray(rows, dtype=np.int64)
    lengths = np.asarray(tokens.lengths)[rows]
    return _encode(student, lambda at: tokens.take(rows[at]), lengths, max_length, batch_tokens, top_k, description)


def encode_texts(student: SpladeStudent, texts: Sequence[str], *, max_length: int, batch_tokens: int = 16384,
                 top_k: int | None = None, description: str = "") -> sparse.csr_matrix:
    """Vectors of texts at hand: float32 [len(texts), vocabulary]; as `encode_store`, without a token store."""
    ids = student.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if len(texts) else []
    arrays = [np.asarray(text[:max_length], dtype=np.int32) for text in ids]
    lengths = np.array([len(text) for text in arrays], dtype=np.int64)
    return _encode(student, lambda at: [arrays[i] for i in at], lengths, max_length, batch_tokens, top_k, description)


def token_batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Positions of texts, longest first, in batches whose padded size (texts × longest) is at most `batch_tokens`.

    A text longer than the budget makes a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // max(int(lengths[order[start]]), 1))
        yield order[start : start + count]
        start += count


def _encode(student: SpladeStudent, take: Callable[[np.ndarray], list[np.ndarray]], lengths: np.ndarray,
            max_length: int, batch_tokens: int, top_k: int | None, description: str) -> sparse.csr_matrix:
    device = next(student.parameters()).device
    special = student.assemble([np.empty(0, np.int32)], max_length)[0].shape[1]
    padded = np.minimum(lengths.astype(np.int64) + special, max_length)
    slabs = []
    training = student.training
    student.eval()
    try:
        shown = progress(description, len(lengths), "texts") if description else nullcontext(lambda n: None)
        with torch.no_grad(), shown as advance:
            for first in range(0, len(lengths), _SLAB):
                batches = list(token_batches(padded[first : first + _SLAB], batch_tokens))
                parts = []
                for batch in batches:
                    input_ids, mask = student.assemble(take(first + batch), max_length)
                    reps = student(input_ids.to(device), mask.to(device))
                    reps = reps if top_k is None else reps.top_k(top_k)
                    parts.append(sparse.csr_matrix(
                        (reps.values.float().cpu().numpy(), reps.terms.cpu().numpy().astype(np.int32),
                         reps.indptr.cpu().numpy()), shape=(len(batch), reps.vocab_size)))
                    advance(len(batch))
                back = np.argsort(np.concatenate(batches))  # from the order of lengths to the order of rows
                slabs.append(sparse.vstack(parts, format="csr")[back])
    finally:
        student.train(training)
    if not slabs:
        return sparse.csr_matrix((0, student.vocab_size), dtype=np.float32)
    return slabs[0] if len(slabs) == 1 else sparse.vstack(slabs, format="csr")
