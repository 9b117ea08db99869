"""Texts to sparse vectors with a SPLADE student: length-sorted batches under a token budget, kept as CSR.

Only active terms are kept, so what is held is 8 bytes a term and never [texts, vocabulary].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from scipy import sparse

from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.data.token_batches import token_batches
from distill.data.tokens import TokenStore, build_token_store, token_key
from distill.progress import progress
from distill.student.base import Side, Student

Precision = Literal["float32", "bfloat16", "float16"]
_SLAB = 65_536  # texts sorted by length together
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


def encode_store(student: Student, tokens: TokenStore, rows: np.ndarray, side: Side, description: str = "",
                 batch_tokens: int | None = None, precision: Precision = "float32") -> sparse.csr_matrix:
    """Vectors of the given rows of a token store: float32 [len(rows), vocabulary].

    Lengths and top-k cap are the student's own for its `side`; the prompt is the token store's. Progress is shown
    under `description`. `batch_tokens` bounds a batch's padded tokens (None: what suits the device); `precision` is
    that of the encoder's products (autocast), not of the vectors. The student is in evaluation mode meanwhile, and
    stays on the device where it is.
    """
    rows = np.asarray(rows, dtype=np.int64)
    lengths = np.asarray(tokens.lengths)[rows]
    return _encode(student, lambda at: tokens.take(rows[at]), lengths, side, description, batch_tokens, precision)


def encode_texts(student: Student, texts: Sequence[str], side: Side, description: str = "",
                 batch_tokens: int | None = None, precision: Precision = "float32") -> sparse.csr_matrix:
    """Vectors of texts at hand, prompt included: float32 [len(texts), vocabulary]; else as `encode_store`."""
    prefix, max_length = _conventions(student, side)
    prompted = [prefix + text for text in texts]
    ids = student.tokenizer(prompted, add_special_tokens=False, verbose=False)["input_ids"] if prompted else []
    arrays = [np.asarray(text[:max_length], dtype=np.int32) for text in ids]
    lengths = np.array([len(text) for text in arrays], dtype=np.int64)
    return _encode(student, lambda at: [arrays[i] for i in at], lengths, side, description, batch_tokens, precision)


def _encode(student: Student, take: Callable[[np.ndarray], list[np.ndarray]], lengths: np.ndarray,
            side: Side, description: str, batch_tokens: int | None, precision: Precision) -> sparse.csr_matrix:
    _, max_length = _conventions(student, side)
    device = next(student.parameters()).device
    batch_tokens = batch_tokens or (_CPU_BATCH_TOKENS if device.type == "cpu" else _GPU_BATCH_TOKENS)
    autocast = torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")
    padded = np.minimum(lengths.astype(np.int64) + student.special_tokens(side), max_length)
    slabs = []
    training = student.training
    student.eval()
    try:
        shown = progress(description, len(lengths), "texts") if description else nullcontext(lambda n: None)
        with torch.no_grad(), autocast, shown as advance:
            for first in range(0, len(lengths), _SLAB):
                batches = token_batches(padded[first : first + _SLAB], batch_tokens)
                parts = []
                for batch in batches:
                    input_ids, mask = student.assemble(take(first + batch), max_length, side)
                    reps = student(input_ids.to(device), mask.to(device), side=side)
                    reps = reps if student.top_k is None else reps.top_k(student.top_k)
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


def _conventions(student: Student, side: Side) -> tuple[str, int]:
    """The prompt put before texts of a side, and their greatest length in tokens."""
    return student.prompts.get("query" if side == "query" else "document", ""), student.max_length(side)
