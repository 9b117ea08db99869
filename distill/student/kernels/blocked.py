"""The head's products in plain torch, one block of the vocabulary at a time, on any device.

This is the reference for the faster kernels, and the fallback where they cannot run. Hidden states come as [R, H],
with `rows` [T] of the unpadded ones and `offsets` [B+1], on the host or the device: text i is
rows[offsets[i]:offsets[i+1]]. Logits are float32 whatever the dtype of the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.run.device import upload

TILE_BYTES = 64 << 20  # size of one block of float32 logits


def max_forward(
    hidden: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maximum over each text's tokens of `hidden[rows] @ weight.T + bias`, where it is above zero (or NaN).

    Returns `indptr` int64 [B+1], `terms` int64 [nnz] ascending in each text, `maxima` float32 [nnz], and int64 [nnz]
    the first row of `hidden` that attains each maximum.
    """
    tokens = hidden[rows]
    texts, vocabulary = offsets.numel() - 1, weight.shape[0]
    maxima = torch.full((texts, vocabulary), -torch.inf, device=tokens.device)  # [B, V]
    arguments = torch.zeros((texts, vocabulary), dtype=torch.int64, device=tokens.device)
    bounds = offsets.tolist()
    for block, logits in _logit_blocks(tokens, weight, bias):
        for text, (start, end) in enumerate(itertools.pairwise(bounds)):
            if end > start:
                best = logits[start:end].max(dim=0)
                maxima[text, block], arguments[text, block] = best.values, best.indices + start
    active = ~(maxima <= 0)  # keeps NaN, so that a broken model shows in the loss
    indptr = F.pad(active.sum(1).cumsum(0), (1, 0))
    entries = active.view(-1).nonzero()[:, 0]
    return indptr, entries % vocabulary, maxima.view(-1)[entries], rows[arguments.view(-1)[entries]]


def max_backward(
    indptr: Tensor,
    rows: Tensor,
    terms: Tensor,
    coefficients: Tensor,
    hidden: Tensor,
    weight: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The two sparse-dense products: dh[row] += c W[term], dW[term] += c h[row], db[term] += c; float32.

    `indptr` [B+1], with the rows of the texts in order in `hidden` [R, H]; `rows`, `terms`, `coefficients` [nnz];
    `needs`: which of dh [R, H], dW [V, H], db [V] to compute.
    """
    d_hidden = d_weight = d_bias = None
    if needs[0]:
        d_hidden = _gather_sum(rows, terms, coefficients, weight, hidden.shape[0])
    if needs[1]:
        d_weight = _gather_sum(terms, rows, coefficients, hidden, weight.shape[0])
    if needs[2]:
        one = coefficients.new_ones(1, 1)
        d_bias = _gather_sum(terms, torch.zeros_like(rows), coefficients, one, weight.shape[0])[:, 0]
    return d_hidden, d_weight, d_bias


def sum_forward(
    hidden: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None, twice: bool
) -> Tensor:
    """Sum over each text's tokens of f(hidden[rows] @ weight.T + bias): dense float32 [B, V]."""
    tokens = hidden[rows]
    sums = torch.empty((offsets.numel() - 1, weight.shape[0]), device=tokens.device)
    for block, logits in _logit_blocks(tokens, weight, bias):
        activated = logits.relu_().log1p_()
        if twice:
            activated = activated.log1p_()
        sums[:, block] = _sum_by_text(activated, offsets)
    return sums


def sum_backward(
    d_sums: Tensor,
    hidden: Tensor,
    rows: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    twice: bool,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `sum_forward` for `d_sums` [B, V]: dh [R, H], dW [V, H], db [V], as `needs` says; float32.

    The logits are recomputed, block by block.
    """
    tokens = hidden[rows]
    text = upload(_text_of_row(offsets, tokens.shape[0]), tokens.device)
    d_tokens = torch.zeros(tokens.shape, device=tokens.device) if needs[0] else None
    d_weight = torch.empty(weight.shape, device=tokens.device) if needs[1] else None
    d_bias = torch.empty(weight.shape[0], device=tokens.device) if needs[2] else None
    for block, logits in _logit_blocks(tokens, weight, bias):
        positive = logits > 0
        slope = 1 / (1 + logits)
        if twice:
            slope = slope / (1 + logits.log1p())
        d_logits = torch.where(positive, slope * d_sums[:, block][text], 0.0)  # [T, block]
        if d_tokens is not None:
            d_tokens += _product(d_logits.to(weight.dtype), weight[block].T)
        if d_weight is not None:
            d_weight[block] = _product(d_logits.T.to(tokens.dtype), tokens.T)
        if d_bias is not None:
            d_bias[block] = d_logits.sum(0)
    d_hidden = None
    if d_tokens is not None:
        d_hidden = torch.zeros(hidden.shape, device=hidden.device).index_copy_(0, rows, d_tokens)
    return d_hidden, d_weight, d_bias


def _logit_blocks(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of the vocabulary with their logits [T, block]."""
    width = max(64, TILE_BYTES // (4 * max(1, tokens.shape[0])))
    for start in range(0, weight.shape[0], width):
        block = slice(start, min(start + width, weight.shape[0]))
        logits = _product(tokens, weight[block])  # [T, block]
        yield block, logits if bias is None else logits.add_(bias[block].float())


def _product(tokens: Tensor, weight: Tensor) -> Tensor:
    """tokens @ weight.T in float32, never rounded to the operands' dtype or that of an autocast."""
    if tokens.dtype != torch.float32 and tokens.is_cuda:
        return torch.mm(tokens, weight.T, out_dtype=torch.float32)
    with torch.autocast(tokens.device.type, enabled=False):
        return tokens.float() @ weight.float().T


def _gather_sum(into: Tensor, source: Tensor, coefficients: Tensor, table: Tensor, size: int) -> Tensor:
    """out[i] = sum of coefficients[k] * table[source[k]] over all k with into[k] == i; float32 [size, H]."""
    order = torch.sort(into, stable=True)
    starts = torch.searchsorted(order.values, torch.arange(size, device=into.device))
    return F.embedding_bag(
        source[order.indices], table.float(), starts, mode="sum", per_sample_weights=coefficients[order.indices]
    )


def _sum_by_text(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each text's rows of `values` [T, block], in their order: float32 [B, block]."""
    if values.is_cuda:  # where index_add_ adds in any order
        return torch.segment_reduce(values, "sum", offsets=upload(offsets, values.device), initial=0.0)
    sums = torch.zeros((offsets.numel() - 1, values.shape[1]))
    return sums.index_add_(0, _text_of_row(offsets, values.shape[0]), values)


def _text_of_row(offsets: Tensor, rows: int) -> Tensor:
    """Index of each row's text: int64 [T]."""
    return torch.repeat_interleave(
        torch.arange(offsets.numel() - 1, device=offsets.device), offsets.diff(), output_size=rows
    )
