"""The cached step: exact gradients of one large batch, in the memory of a chunk (GradCache, arXiv 2101.06983).

1. Encode all chunks, without graphs but for those that the activation budget holds; keep sparse representations.
2. The objective on the representations of the global batch, and its gradient with respect to their values.
3. Encode each chunk again with a graph, up to the hidden states only: the head's backward needs the arg-max
   positions and the gradients that are there already, so the vocabulary product is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distill.data.token_batches import padded_tokens
from distill.losses.objective import Objective
from distill.student.base import Side
from distill.student.head import SparseReps
from distill.training.chunks import Chunk, cut, stretch
from distill.training.engine import Engine
from distill.training.rng import rng_state, set_rng_state
from distill.training.world import World

SIDES: tuple[Side, Side] = ("query", "passage")


@dataclass(frozen=True)
class Texts:
    """One side's texts of a step on this process: token ids without special tokens, and how to make a model input."""

    ids: list[np.ndarray]
    max_length: int
    special: int  # tokens that the tokenizer adds

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens of each text as the model sees it."""
        return np.minimum([len(text) + self.special for text in self.ids], self.max_length)


@dataclass(frozen=True)
class Planned:
    """A chunk of one side. `keep`: its graph stays from the first pass."""

    side: int  # 0: queries, 1: passages
    chunk: Chunk
    keep: bool


@dataclass
class Encoded:
    plan: Planned
    inputs: tuple[Tensor, Tensor]  # input_ids, attention_mask [b, L]
    rng: list[Tensor]  # before the forward
    reps: SparseReps  # detached
    graph: SparseReps | None  # the same with the graph, where it was kept


@dataclass(frozen=True)
class Step:
    """A finished backward: the objective, whether it was finite (else no gradient was made), and what was encoded."""

    objective: Objective
    finite: bool
    sides: tuple[SparseReps, SparseReps]  # detached, in the order of the texts
    tokens: int  # without padding, each text once
    padded: int
    chunks: int
    kept: int


def plan(sides: tuple[Texts, Texts], chunk_tokens: int, world: World, kept_tokens: float) -> list[Planned]:
    """Chunks of queries and passages, as many on every rank, and the first of them that together hold at most
    `kept_tokens` padded tokens marked to keep their graphs, as many on every rank."""
    lengths = [texts.lengths for texts in sides]
    pieces = [cut(side, chunk_tokens) for side in lengths]
    counts = world.maximum([len(side) for side in pieces])
    pieces = [stretch(side, count) for side, count in zip(pieces, counts, strict=True)]
    flat = [(side, chunk) for side in (0, 1) for chunk in pieces[side]]
    filled = np.cumsum([padded_tokens(lengths[side], chunk.rows) for side, chunk in flat])
    keep = world.minimum(int(np.searchsorted(filled, kept_tokens, side="right"))) if kept_tokens > 0 else 0
    return [Planned(side, chunk, i < keep) for i, (side, chunk) in enumerate(flat)]


def cached_step(
    engine: Engine,
    sides: tuple[Texts, Texts],
    plans: list[Planned],
    objective: Callable[[SparseReps, SparseReps], Objective],
    between_chunks: Callable[[bool], None],
) -> Step:
    """Leave the gradient of `objective(queries, passages)` over the global batch in the engine.

    `between_chunks` is called after each chunk, as often on every rank, and told whether this one ran out of memory;
    what it raises abandons the step.
    Where the objective is not finite, no backward is made (on any rank: its value is the same on all).
    Chunks that run out of memory are told to `between_chunks`; the objective itself is not guarded.
    """
    device = engine.world.device

    # 1. representations
    encoded = []
    for planned in plans:
        texts = sides[planned.side]
        side = SIDES[planned.side]
        inputs = engine.student.assemble([texts.ids[row] for row in planned.chunk.rows], texts.max_length, side)
        inputs = (inputs[0].to(device), inputs[1].to(device))
        rng = rng_state(device)
        with _Memory() as memory, torch.set_grad_enabled(planned.keep):
            reps = engine.encode(*inputs, side=side)
            encoded.append(Encoded(planned, inputs, rng, reps.detach(), reps if planned.keep else None))
            del reps
        between_chunks(memory.ran_out)

    # 2. objective, and its gradient with respect to the values
    places = [_entries_in_text_order([piece for piece in encoded if piece.plan.side == side]) for side in (0, 1)]
    gathered = [_leaves(reps) for _, reps in places]
    with torch.enable_grad():
        value = objective(*gathered)
    step = Step(
        replace(value, total=value.total.detach()),
        bool(torch.isfinite(value.total)),
        (gathered[0].detach(), gathered[1].detach()),
        tokens=sum(int(texts.lengths.sum()) for texts in sides),
        padded=sum(piece.inputs[0].numel() for piece in encoded),
        chunks=len(plans),
        kept=sum(planned.keep for planned in plans),
    )
    if not step.finite:
        return step
    value.total.backward()
    gradients: list[tuple[Tensor, ...] | None] = []  # of each chunk, in the order of `encoded`
    for side, (order, _) in enumerate(places):
        gradients += _gradients([piece for piece in encoded if piece.plan.side == side], order, gathered[side])
    share = engine.world.size  # the engine divides by it
    del places, gathered, value

    # 3. back through the encoder
    after = rng_state(device)
    for i, piece in enumerate(encoded):
        if not engine.student.trains(SIDES[piece.plan.side]):
            gradients[i] = encoded[i] = None  # type: ignore[call-overload]
        else:
            gradients[i] = tuple(part * share for part in gradients[i])
    with engine.accumulating():
        kept = [i for i, piece in enumerate(encoded) if piece is not None and piece.graph is not None]
        if kept:  # all at once
            with _Memory() as memory:
                engine.backward(sum(encoded[i].graph.surrogate(*gradients[i]) for i in kept))
            for i in kept:
                gradients[i] = encoded[i] = None  # type: ignore[call-overload]
            between_chunks(memory.ran_out)
        for i, piece in enumerate(encoded):
            if piece is None:
                continue
            with _Memory() as memory:
                set_rng_state(piece.rng, device)
                engine.backward(engine.encode(*piece.inputs, (piece.reps, *gradients[i]), SIDES[piece.plan.side]))
            gradients[i] = encoded[i] = None  # type: ignore[call-overload]
            del piece
            between_chunks(memory.ran_out)
    set_rng_state(after, device)
    return step


def ran_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(
        error
    )  # torch's wording on CPUs


class _Memory:
    """Notes that the block ran out of memory instead of raising: the ranks have to leave the step together."""

    ran_out = False

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, kind, error, _) -> bool:
        self.ran_out = error is not None and ran_out_of_memory(error)
        return self.ran_out


def _leaves(reps: SparseReps) -> SparseReps:
    """The same, from which a gradient can be asked."""
    vectors = None if reps.vectors is None else reps.vectors.requires_grad_()
    return replace(reps, values=reps.values.requires_grad_(), vectors=vectors)


def _gradients(pieces: list[Encoded], order: Tensor, whole: SparseReps) -> list[tuple[Tensor, ...]]:
    """The gradient of one side's values, and of its vectors if it has any, cut into that of each chunk.

    `order` as `_entries_in_text_order` gives it; zeros where nothing looks at the side, and for idle chunks.
    """
    values = torch.zeros_like(whole.values)
    if whole.values.grad is not None:
        values[order] = whole.values.grad
    sizes = [0 if piece.plan.chunk.idle else piece.reps.terms.numel() for piece in pieces]
    parts = []
    for piece, part in zip(pieces, values.split(sizes), strict=True):
        idle, vectors = piece.plan.chunk.idle, ()
        if whole.vectors is not None:
            rows = torch.from_numpy(piece.plan.chunk.rows).to(order.device)
            unused = idle or whole.vectors.grad is None
            vectors = (torch.zeros_like(piece.reps.vectors) if unused else whole.vectors.grad[rows],)
        parts.append((torch.zeros_like(piece.reps.values) if idle else part, *vectors))
    return parts


def _entries_in_text_order(pieces: list[Encoded]) -> tuple[Tensor, SparseReps]:
    """One side's representations in the order of its texts, and where each entry stands in the chunks' order [nnz]."""
    pieces = [piece for piece in pieces if not piece.plan.chunk.idle]
    joined = SparseReps.cat([piece.reps for piece in pieces])
    rows = torch.from_numpy(np.concatenate([piece.plan.chunk.rows for piece in pieces])).to(joined.indptr.device)
    back = torch.argsort(rows)  # [n]: text -> its place in the chunks' order
    # the objective has no use for positions of tokens
    return joined.positions(back), replace(joined.take(back), argmax=None)
