"""The cached step: exact gradients of one large batch, in the memory of a chunk (GradCache, arXiv 2101.06983).

1. Encode all chunks, without autograd graphs except those within the activation budget; keep the sparse
   representations.
2. Compute the objective on the representations of the global batch, and its gradient with respect to their values.
3. Encode each chunk again, now with a graph, up to the hidden states only: the head's backward needs just the arg-max
   positions and gradients of phases 1 and 2, so the vocabulary product is not repeated.

The way of a gradient: `objective` -> values of the representations (`RepsGradient`, a chunk each) -> `Engine.surrogate`
-> `Student.surrogate`, which encodes up to the hidden states -> the head's `surrogate`, a scalar whose backward is the
product of `RepsGradient` with the head's Jacobian -> parameters, summed over processes once, after the last chunk.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distill.losses.objective import Objective
from distill.run.device import ran_out_of_memory, upload
from distill.sparse.reps import RepsGradient, SparseReps
from distill.store.token_batches import padded_tokens
from distill.student.base import Side
from distill.training.chunks import Chunk, cut, pad_chunks
from distill.training.engine import Engine
from distill.training.rng import rng_state, set_rng_state
from distill.training.world import World

SIDES: tuple[Side, Side] = ("query", "passage")


@dataclass(frozen=True)
class TokenBatch:
    """The texts of one side in a step on this process."""

    ids: list[np.ndarray]  # token ids of each text, without special tokens
    max_length: int  # tokens per text, special tokens included
    special: int  # number of special tokens added to each text

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per text as the model sees it: int64 [n]."""
        return np.minimum([len(text) + self.special for text in self.ids], self.max_length)


@dataclass(frozen=True)
class PlannedChunk:
    """A chunk of one side. `keep`: its graph from the first pass is kept for the backward."""

    side: int  # 0: queries, 1: passages
    chunk: Chunk
    keep: bool

    @property
    def name(self) -> Side:
        return SIDES[self.side]


@dataclass
class EncodedChunk:
    """A chunk after the first pass, with what the second pass needs."""

    plan: PlannedChunk
    inputs: tuple[Tensor, Tensor]  # input_ids, attention_mask: int64 [b, L]; on which devices: `Student.host_mask`
    rng: list[Tensor]  # state before the forward
    reps: SparseReps  # detached
    graph: SparseReps | None  # the same representations with their graph, if it is kept


@dataclass(frozen=True)
class StepResult:
    """The result of a cached step; the gradient itself is in the engine."""

    objective: Objective
    finite: bool  # whether the objective is; if not, there is no gradient
    sides: tuple[SparseReps, SparseReps]  # detached, in the order of the texts
    tokens: int  # without padding, each text once
    padded: int  # tokens with padding
    chunks: int
    kept: int  # chunks whose graphs were kept


def plan(
    sides: tuple[TokenBatch, TokenBatch], chunk_tokens: int, world: World, kept_tokens: float
) -> list[PlannedChunk]:
    """Cut both sides into chunks of at most `chunk_tokens` padded tokens, the same number on every rank.

    Ranks with fewer texts get idle chunks. Leading chunks keep their autograd graph until `kept_tokens` padded tokens
    are used up, the same number of chunks on every rank.
    """
    lengths = [texts.lengths for texts in sides]
    by_side = [cut(side, chunk_tokens) for side in lengths]
    counts = world.all_reduce_max([len(chunks) for chunks in by_side])
    by_side = [pad_chunks(chunks, count) for chunks, count in zip(by_side, counts, strict=True)]
    flat = [(side, chunk) for side in (0, 1) for chunk in by_side[side]]
    cumulative = np.cumsum([padded_tokens(lengths[side], chunk.rows) for side, chunk in flat])
    keep = world.min(int(np.searchsorted(cumulative, kept_tokens, side="right"))) if kept_tokens > 0 else 0
    return [PlannedChunk(side, chunk, i < keep) for i, (side, chunk) in enumerate(flat)]


def cached_step(
    engine: Engine,
    sides: tuple[TokenBatch, TokenBatch],
    chunks: list[PlannedChunk],
    objective: Callable[[SparseReps, SparseReps], Objective],
    between_chunks: Callable[[bool], None],
) -> StepResult:
    """Accumulate the gradient of `objective(queries, passages)` over the global batch in the engine.

    `between_chunks(out_of_memory)` is called after each chunk, the same number of times on every rank. Its argument is
    whether the chunk ran out of memory: then it must raise. It may also raise to abandon the step. Running out of
    memory in the objective is an error. If the objective is not finite, there is no backward, on any rank: its value is
    the same on all.
    """
    device = engine.world.device

    # 1. representations of all chunks
    encoded: list[EncodedChunk] = []
    for planned in chunks:
        texts = sides[planned.side]
        ids, mask = engine.student.assemble(
            [texts.ids[row] for row in planned.chunk.rows], texts.max_length, planned.name
        )
        inputs = (upload(ids, device), mask if engine.student.host_mask else upload(mask, device))
        rng = rng_state(device)
        with _Memory() as memory, torch.set_grad_enabled(planned.keep):
            reps = engine.encode(*inputs, side=planned.name)
            encoded.append(EncodedChunk(planned, inputs, rng, reps.detach(), reps if planned.keep else None))
            del reps
        between_chunks(memory.ran_out)

    # 2. objective, and its gradient with respect to the representations
    joined = [_in_text_order([piece for piece in encoded if piece.plan.side == side]) for side in (0, 1)]
    leaves = [_leaves(reps) for _, reps in joined]
    with torch.enable_grad():
        value = objective(*leaves)
    result = StepResult(
        replace(value, total=value.total.detach()),
        bool(torch.isfinite(value.total)),
        (leaves[0].detach(), leaves[1].detach()),
        tokens=sum(int(texts.lengths.sum()) for texts in sides),
        padded=sum(piece.inputs[0].numel() for piece in encoded),
        chunks=len(chunks),
        kept=sum(planned.keep for planned in chunks),
    )
    if not result.finite:
        return result
    value.total.backward()
    gradients: list[RepsGradient] = []  # one per chunk, in the order of `encoded`
    for side, (order, _) in enumerate(joined):
        gradients += _gradients([piece for piece in encoded if piece.plan.side == side], order, leaves[side])
    del joined, leaves, value

    # 3. backward through the encoder; chunks are popped, so that their memory is freed one by one
    after, share = rng_state(device), float(engine.world.size)  # the engine divides by the world size
    todo = deque(
        (piece, gradient.scaled(share))
        for piece, gradient in zip(encoded, gradients, strict=True)
        if engine.student.trains(piece.plan.name)
    )
    del encoded, gradients
    with engine.accumulating():
        kept = []
        while todo and todo[0][0].graph is not None:
            kept.append(todo.popleft())
        if kept:  # in one backward
            with _Memory() as memory:
                engine.backward(_joint_surrogate(kept))
            kept.clear()
            between_chunks(memory.ran_out)
        while todo:
            piece, gradient = todo.popleft()
            with _Memory() as memory:
                set_rng_state(piece.rng, device)
                engine.backward(engine.surrogate(*piece.inputs, piece.plan.name, piece.reps, gradient))
            del piece, gradient
            between_chunks(memory.ran_out)
    set_rng_state(after, device)
    return result


class _Memory:
    """Records that the block ran out of memory instead of raising: the ranks have to leave the step together."""

    ran_out = False

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        self.ran_out = error is not None and ran_out_of_memory(error)
        return self.ran_out


def _joint_surrogate(kept: list[tuple[EncodedChunk, RepsGradient]]) -> Tensor:
    """Add the surrogates of all kept graphs into one scalar."""
    surrogates = [piece.graph.surrogate(gradient) for piece, gradient in kept if piece.graph is not None]
    return functools.reduce(torch.add, surrogates)


def _leaves(reps: SparseReps) -> SparseReps:
    """Make values and vectors leaves that collect a gradient."""
    vectors = None if reps.vectors is None else reps.vectors.requires_grad_()
    return replace(reps, values=reps.values.requires_grad_(), vectors=vectors)


def _gradients(pieces: list[EncodedChunk], order: Tensor, whole: SparseReps) -> list[RepsGradient]:
    """Split the gradient of one side's representations into those of its chunks.

    `order` as `_in_text_order` returns it. Zeros for idle chunks, and for a side that the objective does not use.
    """
    values = torch.zeros_like(whole.values)
    if whole.values.grad is not None:
        values[order] = whole.values.grad
    sizes = [0 if piece.plan.chunk.idle else piece.reps.terms.numel() for piece in pieces]
    gradients = []
    for piece, part in zip(pieces, values.split(sizes), strict=True):
        vectors = None
        if whole.vectors is not None and piece.reps.vectors is not None:
            vectors = torch.zeros_like(piece.reps.vectors)
            if whole.vectors.grad is not None and not piece.plan.chunk.idle:
                vectors = whole.vectors.grad[torch.from_numpy(piece.plan.chunk.rows).to(order.device)]
        gradients.append(RepsGradient(torch.zeros_like(piece.reps.values) if piece.plan.chunk.idle else part, vectors))
    return gradients


def _in_text_order(pieces: list[EncodedChunk]) -> tuple[Tensor, SparseReps]:
    """One side's representations in the order of its texts, and each entry's index in the order of the chunks [nnz]."""
    pieces = [piece for piece in pieces if not piece.plan.chunk.idle]
    joined = SparseReps.cat([piece.reps for piece in pieces])
    rows = np.concatenate([piece.plan.chunk.rows for piece in pieces])
    # [n]: text -> its index in the order of the chunks
    back = upload(torch.from_numpy(np.argsort(rows, kind="stable")), joined.indptr.device)
    # the objective does not use the arg-max positions
    return joined.positions(back), replace(joined.take(back), argmax=None)
