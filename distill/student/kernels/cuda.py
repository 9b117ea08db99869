"""The max-pooling head on CUDA, in Triton: a tile of logits is reduced before it leaves the chip.

Same idea as Sparton (arXiv 2603.25011): maximum and arg-max are taken in registers as tiles of the vocabulary product
are computed, so that only [B, V] is written. The backward's two sparse products are one gather-scale-add kernel over
sorted entries: no atomics, the same result every time. The fallback without Triton is `blocked`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F


def max_forward(
    hidden: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `blocked.max_forward`."""
    hidden, weight = hidden.contiguous(), weight.detach().contiguous()
    texts, (vocabulary, width) = offsets.numel() - 1, weight.shape
    maxima = torch.empty((texts, vocabulary), device=hidden.device)
    tokens = torch.empty((texts, vocabulary), dtype=torch.int32, device=hidden.device)
    if texts:
        half = hidden.dtype != torch.float32
        longest = int(offsets.diff().max())
        tile = min(128, max(16, triton.next_power_of_2(longest)))
        terms = 128 if half else 64
        _max_forward[(texts, triton.cdiv(vocabulary, terms))](
            hidden,
            rows,
            offsets,
            weight,
            weight if bias is None else bias.detach(),
            maxima,
            tokens,
            vocabulary,
            width,
            HAS_BIAS=bias is not None,
            TOKENS=tile,
            TERMS=terms,
            DEPTH=64 if half else 32,
            num_warps=8 if tile == 128 and half else 4,
            num_stages=3,
        )
    active = ~(maxima <= 0)  # keeps NaN
    indptr = F.pad(active.sum(1).cumsum(0), (1, 0))
    return indptr, active.nonzero()[:, 1], maxima[active], rows[tokens[active].long()]


def max_backward(
    indptr: Tensor,
    rows: Tensor,
    terms: Tensor,
    coefficients: Tensor,
    hidden: Tensor,
    weight: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `blocked.max_backward`."""
    d_hidden = d_weight = d_bias = None
    coefficients = coefficients.float().contiguous()
    if needs[0]:
        d_hidden = _gather_sum(rows, terms, coefficients, weight.detach(), hidden.shape[0])
    if needs[1]:
        d_weight = _gather_sum(terms, rows, coefficients, hidden, weight.shape[0])
    if needs[2]:
        d_bias = coefficients.new_zeros(weight.shape[0]).index_add_(0, terms, coefficients)
    return d_hidden, d_weight, d_bias


def _gather_sum(into: Tensor, source: Tensor, coefficients: Tensor, table: Tensor, size: int) -> Tensor:
    """out[i] = sum of coefficients[k] * table[source[k]] over all k with into[k] == i; float32 [size, H]."""
    order = torch.sort(into, stable=True)
    starts = torch.searchsorted(order.values, torch.arange(size + 1, device=into.device))
    out = torch.empty((size, table.shape[1]), device=table.device)
    columns = min(1024, triton.next_power_of_2(table.shape[1]))
    if size:
        _gather_sum_kernel[(size, triton.cdiv(table.shape[1], columns))](
            source[order.indices],
            coefficients[order.indices],
            starts,
            table.contiguous(),
            out,
            table.shape[1],
            COLUMNS=columns,
            num_warps=4,
        )
    return out


@triton.jit
def _max_forward(
    hidden,
    rows,
    offsets,
    weight,
    bias,
    maxima,
    tokens,
    vocabulary,
    width,
    HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    TERMS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # one program: one text, TERMS terms; texts vary fastest, so that neighbours share the weights in the L2 cache.
    # maxima float32, tokens int32: [B, V], written where a term is inside the vocabulary
    text = tl.program_id(0)
    term = tl.program_id(1) * TERMS + tl.arange(0, TERMS)
    inside = term < vocabulary
    first = tl.load(offsets + text)
    last = tl.load(offsets + text + 1)
    best = tl.full([TERMS], -float("inf"), tl.float32)
    best_at = tl.zeros([TERMS], tl.int32)
    broken = tl.zeros([TERMS], tl.int32)
    depth = tl.arange(0, DEPTH)
    start = first
    while start < last:
        token = start + tl.arange(0, TOKENS)
        real = token < last
        row = tl.load(rows + token, mask=real, other=0).to(tl.int64)
        logits = tl.zeros([TOKENS, TERMS], tl.float32)
        for k in range(0, width, DEPTH):
            deep = k + depth < width
            h = tl.load(
                hidden + row[:, None] * width + (k + depth)[None, :], mask=real[:, None] & deep[None, :], other=0.0
            )
            w = tl.load(
                weight + term.to(tl.int64)[None, :] * width + (k + depth)[:, None],
                mask=inside[None, :] & deep[:, None],
                other=0.0,
            )
            logits = tl.dot(h, w, logits, input_precision="ieee")
        if HAS_BIAS:
            logits += tl.load(bias + term, mask=inside, other=0.0).to(tl.float32)[None, :]
        broken = tl.maximum(broken, tl.max(((logits != logits) & real[:, None]).to(tl.int32), axis=0))
        logits = tl.where(real[:, None], logits, -float("inf"))
        top, at = tl.max(logits, axis=0, return_indices=True, return_indices_tie_break_left=True)
        better = top > best
        best = tl.where(better, top, best)
        best_at = tl.where(better, (start + at).to(tl.int32), best_at)
        start += TOKENS
    best = tl.where(broken > 0, float("nan"), best)
    best_at = tl.where(broken > 0, first.to(tl.int32), best_at)
    place = text.to(tl.int64) * vocabulary + term
    tl.store(maxima + place, best, mask=inside)
    tl.store(tokens + place, best_at, mask=inside)


@triton.jit
def _gather_sum_kernel(source, coefficients, starts, table, out, width, COLUMNS: tl.constexpr):
    # one program: COLUMNS columns of out[target], the sum over entries starts[target]..starts[target + 1] - 1
    target = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    total = tl.zeros([COLUMNS], tl.float32)
    entry = tl.load(starts + target)
    last = tl.load(starts + target + 1)
    while entry < last:
        row = tl.load(source + entry)
        total += tl.load(coefficients + entry) * tl.load(table + row * width + column, mask=inside, other=0.0).to(
            tl.float32
        )
        entry += 1
    tl.store(out + target * width + column, total, mask=inside)
