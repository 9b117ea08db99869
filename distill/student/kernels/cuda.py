"""The max-pooling head on CUDA, in Triton: a tile of logits is reduced before it leaves the chip.

Same idea as Sparton (arXiv 2603.25011): maximum and arg-max are taken in registers as tiles of the vocabulary product
are computed. Tiles run over the tokens of all texts, one after the other, so that none is half empty, and terms lie on
the matrix' rows, so that a maximum over tokens stays within a warp. A text's maximum and its first token are one
integer, merged between tiles by an integer maximum, which has the same result in any order.

The backward's two sparse products are one gather-scale-add kernel over sorted entries: no atomics. The fallback, on
devices without matrix units for half precision, too, is `blocked`.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from distill.run.device import on_device, upload

_KEY_BYTES = 512 << 20  # of the maxima [texts, V] of one launch
PIECE = 512  # entries that one program of the backward adds up


def max_forward(
    hidden: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `blocked.max_forward`."""
    hidden, weight = hidden.contiguous(), weight.detach().contiguous()
    bias = None if bias is None else bias.detach()
    texts, at_once = offsets.numel() - 1, max(1, _KEY_BYTES // (8 * weight.shape[0]))
    if texts <= at_once:
        return _slice_forward(hidden, rows, offsets, weight, bias)
    starts = [*range(0, texts, at_once), texts]
    bounds = offsets[starts].tolist()
    parts = [
        _slice_forward(hidden, rows[bounds[i] : bounds[i + 1]], offsets[first : last + 1] - bounds[i], weight, bias)
        for i, (first, last) in enumerate(itertools.pairwise(starts))
    ]
    indptrs, *others = zip(*parts, strict=True)
    counts = torch.cat([indptr.diff() for indptr in indptrs])
    terms, maxima, tokens = map(torch.cat, others)
    return F.pad(counts.cumsum(0), (1, 0)), terms, maxima, tokens


def _slice_forward(
    hidden: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`max_forward` with keys of all texts in memory at once. One synchronisation: the number of active terms."""
    texts, tokens, (vocabulary, width) = offsets.numel() - 1, rows.numel(), weight.shape
    keys = torch.zeros((texts, vocabulary), dtype=torch.int64, device=hidden.device)
    if tokens:
        tiles = forward_tiles(hidden.dtype)
        text = torch.arange(texts, dtype=torch.int32, device=offsets.device)
        text = upload(torch.repeat_interleave(text, offsets.diff(), output_size=tokens), rows.device)
        programs = triton.cdiv(tokens, tiles["TOKENS"]) * triton.cdiv(vocabulary, tiles["TERMS"])
        with on_device(hidden.device):
            max_tiles[(programs,)](
                hidden,
                rows,
                text,
                weight,
                weight if bias is None else bias,
                keys,
                tokens,
                vocabulary,
                width,
                HAS_BIAS=bias is not None,
                **tiles,
            )
    flat = keys.view(-1)
    active = flat.nonzero()[:, 0]
    found = flat[active]
    indptr = torch.searchsorted(active, torch.arange(texts + 1, device=active.device) * vocabulary)
    maxima = (found >> 32).to(torch.int32).view(torch.float32)
    return indptr, active % vocabulary, maxima, rows[0x7FFFFFFF - (found & 0xFFFFFFFF)]


def forward_tiles(dtype: torch.dtype) -> dict[str, int]:
    """Sizes of the tiles of `max_tiles` and launch options, by the dtype of the operands."""
    if dtype == torch.float32:  # no matrix units in full precision
        return {"TERMS": 64, "TOKENS": 64, "DEPTH": 32, "GROUP": 16, "num_warps": 4, "num_stages": 3}
    # registers for two programs on a multiprocessor, so that one reduces while the other multiplies
    return {"TERMS": 128, "TOKENS": 64, "DEPTH": 64, "GROUP": 32, "num_warps": 4, "num_stages": 3}


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
        d_hidden, _ = _gather_sum(rows, terms, coefficients, weight.detach(), hidden.shape[0])
    if needs[1]:
        d_weight, d_bias = _gather_sum(terms, rows, coefficients, hidden, weight.shape[0])
    elif needs[2]:
        _, d_bias = _gather_sum(terms, rows, coefficients, hidden[:, :1], weight.shape[0])
    return d_hidden, d_weight, d_bias if needs[2] else None


def _gather_sum(into: Tensor, source: Tensor, coefficients: Tensor, table: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """out[i] = sum of coefficients[k] * table[source[k]] over all k with into[k] == i; float32 [size, H].

    Also returns the sums of the coefficients alone: float32 [size]. A row with many entries, as that of a token that
    wins most of the vocabulary, is added up in pieces by several programs, and the pieces in a second launch.
    """
    table = table.contiguous()
    order = torch.sort(into.to(torch.int32), stable=True)  # half the passes of int64
    source, coefficients = source[order.indices], coefficients[order.indices]
    targets = torch.arange(size + 1, dtype=torch.int32, device=into.device)
    starts = torch.searchsorted(order.values, targets)
    out = torch.empty((size, table.shape[1]), device=table.device)
    sums = torch.empty(size, device=table.device)
    if not size:
        return out, sums
    # piece p of all pieces belongs to target[p]; bounds on their numbers spare the host the wait for the exact ones
    pieces = ((starts.diff() + PIECE - 1) // PIECE).clamp(min=1)
    first = F.pad(pieces.cumsum(0), (1, 0))  # [size + 1]: first piece of each target
    bound = size + into.numel() // PIECE
    piece = torch.arange(bound, device=into.device)
    target = torch.searchsorted(first, piece, right=True) - 1  # `size` for those beyond the last
    many = into.numel() // (PIECE + 1)  # targets with several pieces, at most
    spare_first = F.pad(torch.where(pieces > 1, pieces, 0).cumsum(0), (1, 0))  # [size + 1]: place of their pieces
    spare = torch.empty((2 * into.numel() // PIECE if many else 0, table.shape[1]), device=table.device)
    spare_sums = torch.empty(len(spare), device=table.device)
    columns = min(512, triton.next_power_of_2(table.shape[1]))
    blocks = triton.cdiv(table.shape[1], columns)
    with on_device(table.device):
        sum_pieces[(bound, blocks)](
            source,
            coefficients,
            starts,
            first,
            target,
            table,
            out,
            sums,
            spare_first,
            spare,
            spare_sums,
            size,
            table.shape[1],
            COLUMNS=columns,
            ENTRIES=8,
            LENGTH=PIECE,
            num_warps=4,
        )
        if many:
            split = torch.topk(pieces, min(many, size)).indices
            join_pieces[(len(split), blocks)](
                split, spare_first, spare, spare_sums, out, sums, table.shape[1], COLUMNS=columns, num_warps=4
            )
    return out, sums


@triton.jit
def max_tiles(
    hidden,
    rows,
    text,
    weight,
    bias,
    keys,
    tokens,
    vocabulary,
    width,
    HAS_BIAS: tl.constexpr,
    TERMS: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    # one program: the logits of TERMS terms for TOKENS tokens, hidden[rows], of the texts `text` (ascending).
    # keys int64 [texts, vocabulary], zero before: the largest (bits of a positive logit, or of NaN) << 32 | ~token.
    # The programs of GROUP token tiles come together, so that their hidden states stay in the L2 cache
    program = tl.program_id(0)
    term_tiles = tl.cdiv(vocabulary, TERMS)
    first_tile = program // (GROUP * term_tiles) * GROUP
    tiles = min(tl.cdiv(tokens, TOKENS) - first_tile, GROUP)
    place = program % (GROUP * term_tiles)
    first_token = (first_tile + place % tiles) * TOKENS
    term = place // tiles * TERMS + tl.arange(0, TERMS)
    known = term < vocabulary
    token = first_token + tl.arange(0, TOKENS)
    real = token < tokens
    depth = tl.arange(0, DEPTH)
    row = tl.load(rows + token, mask=real, other=0).to(tl.int64)
    hidden_at = hidden + row[None, :] * width + depth[:, None]
    weight_at = weight + term.to(tl.int64)[:, None] * width + depth[None, :]
    logits = tl.zeros([TERMS, TOKENS], tl.float32)
    for k in range(0, width, DEPTH):
        deep = depth < width - k
        w = tl.load(weight_at, mask=known[:, None] & deep[None, :], other=0.0)
        h = tl.load(hidden_at, mask=real[None, :] & deep[:, None], other=0.0)
        logits = tl.dot(w, h, logits, input_precision="ieee")
        weight_at += DEPTH
        hidden_at += DEPTH
    if HAS_BIAS:
        logits += tl.load(bias + term, mask=known, other=0.0).to(tl.float32)[:, None]
    # positive floats are ordered as their bits are, NaN (in CUDA's arithmetic 0x7FFFFFFF) above infinity; negative ones
    # have negative bits
    bits = logits.to(tl.int32, bitcast=True)
    own = tl.load(text + token, mask=real, other=-1)
    this = tl.load(text + first_token)
    last = tl.load(text + min(first_token + TOKENS, tokens) - 1)
    while this <= last:
        of_text = tl.where((own == this)[None, :], bits, -1)
        best = tl.max(of_text, axis=1)
        at = tl.min(tl.where(of_text == best[:, None], token[None, :], 0x7FFFFFFF), axis=1)
        key = (best.to(tl.int64) << 32) | (0x7FFFFFFF - at).to(tl.int64)
        tl.atomic_max(keys + this.to(tl.int64) * vocabulary + term, key, mask=known & (best > 0), sem="relaxed")
        this += 1


@triton.jit
def sum_pieces(
    source,
    coefficients,
    starts,
    first,
    target,
    table,
    out,
    sums,
    spare_first,
    spare,
    spare_sums,
    size,
    width,
    COLUMNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    LENGTH: tl.constexpr,
):
    # one program: COLUMNS columns of a piece, up to LENGTH of the entries starts[i]..starts[i + 1] - 1 of a target i,
    # ENTRIES at a time. Goes to out[i] if it is the only piece of the target, else to its place in `spare`
    piece = tl.program_id(0)
    this = tl.load(target + piece)
    if this < size:
        number = piece - tl.load(first + this)
        alone = tl.load(first + this + 1) - tl.load(first + this) == 1
        begin = tl.load(starts + this) + number * LENGTH
        end = min(begin + LENGTH, tl.load(starts + this + 1))
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < width
        total = tl.zeros([COLUMNS], tl.float32)
        weights = tl.zeros([ENTRIES], tl.float32)
        for entry in range(begin, end, ENTRIES):
            each = entry + tl.arange(0, ENTRIES)
            there = each < end
            row = tl.load(source + each, mask=there, other=0)
            weight = tl.load(coefficients + each, mask=there, other=0.0)
            values = tl.load(
                table + row[:, None] * width + column[None, :], mask=there[:, None] & inside[None, :], other=0.0
            )
            total += tl.sum(weight[:, None] * values.to(tl.float32), axis=0)
            weights += weight
        place = tl.load(spare_first + this) + number
        if alone:
            tl.store(out + this * width + column, total, mask=inside)
        else:
            tl.store(spare + place * width + column, total, mask=inside)
        if tl.program_id(1) == 0:
            if alone:
                tl.store(sums + this, tl.sum(weights, axis=0))
            else:
                tl.store(spare_sums + place, tl.sum(weights, axis=0))


@triton.jit
def join_pieces(split, spare_first, spare, spare_sums, out, sums, width, COLUMNS: tl.constexpr):
    # one program: COLUMNS columns of out[i], the sum of the pieces of a target i that has several
    this = tl.load(split + tl.program_id(0))
    piece = tl.load(spare_first + this)
    last = tl.load(spare_first + this + 1)
    if last > piece:
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < width
        total = tl.zeros([COLUMNS], tl.float32)
        weights = 0.0
        while piece < last:
            total += tl.load(spare + piece * width + column, mask=inside, other=0.0)
            weights += tl.load(spare_sums + piece)
            piece += 1
        tl.store(out + this * width + column, total, mask=inside)
        if tl.program_id(1) == 0:
            tl.store(sums + this, weights)
