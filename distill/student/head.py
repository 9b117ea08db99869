"""The exact SPLADE head: hidden states to sparse term weights, without a [batch, length, vocabulary] tensor.

Max pooling (SPLADE-max, arXiv 2109.10086): y_v = f(max_t(h_t · W_v + b_v)) with f = log1p∘relu, once or twice. f is
monotone, so the maximum comes first, and only the arg-max position of an active term carries gradient: with
c = dL/dy · f'(m) the backward is dh[t*] += c W_v, dW_v += c h[t*], db_v += c, two sparse products. The same products
serve the second pass of the cached step, which needs the arg-max positions and dL/dy, but no vocabulary product.
Sum pooling (arXiv 2107.05720) has no arg-max; its backward computes the logits again, block by block.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.student.kernels import blocked, cpu

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SparseReps:
    """Sparse representations of a batch of texts, in CSR form. Only `values` and `vectors` may carry gradient."""

    indptr: Tensor  # int64 [B+1]
    terms: Tensor  # int64 [nnz], ascending in each text
    values: Tensor  # float32 [nnz], above zero
    argmax: Tensor | None  # int64 [nnz]: position of the token that gave the value; None with sum pooling
    vocab_size: int
    vectors: Tensor | None = None  # float32 [B, E], of students with losses of their own on them; may carry gradient

    def __len__(self) -> int:
        return self.indptr.numel() - 1

    @property
    def active(self) -> Tensor:
        """Number of active terms of each text: int64 [B]."""
        return self.indptr.diff()

    @property
    def texts(self) -> Tensor:
        """The text that each entry belongs to: int64 [nnz]."""
        index = torch.arange(len(self), device=self.indptr.device)
        return torch.repeat_interleave(index, self.active, output_size=self.terms.numel())

    def to_dense(self) -> Tensor:
        """float32 [B, V]; gradient flows to `values`."""
        dense = self.values.new_zeros(len(self), self.vocab_size)
        return dense.index_put((self.texts, self.terms), self.values)

    def detach(self) -> SparseReps:
        vectors = None if self.vectors is None else self.vectors.detach()
        return replace(self, values=self.values.detach(), vectors=vectors)

    def surrogate(self, grad_values: Tensor, grad_vectors: Tensor | None = None) -> Tensor:
        """A scalar whose gradient with respect to values and vectors is the one given."""
        value = (self.values * grad_values).sum()
        return value if grad_vectors is None else value + (self.vectors * grad_vectors).sum()

    def rows(self, start: int, end: int) -> SparseReps:
        """Texts `start` to `end`; a view, through which gradient flows."""
        first, last = int(self.indptr[start]), int(self.indptr[end])
        argmax = None if self.argmax is None else self.argmax[first:last]
        return SparseReps(
            self.indptr[start : end + 1] - first,
            self.terms[first:last],
            self.values[first:last],
            argmax,
            self.vocab_size,
            None if self.vectors is None else self.vectors[start:end],
        )

    def positions(self, texts: Tensor) -> Tensor:
        """Where the entries of `texts` (int64 [n]), text by text, stand among all: int64 [nnz of these texts]."""
        active = self.active[texts]
        starts = F.pad(active.cumsum(0), (1, 0))[:-1]
        count = int(active.sum())
        shift = torch.repeat_interleave(self.indptr[:-1][texts] - starts, active, output_size=count)
        return torch.arange(count, device=shift.device) + shift

    def take(self, texts: Tensor) -> SparseReps:
        """These texts (int64 [n]) in this order; gradient flows."""
        at = self.positions(texts)
        argmax = None if self.argmax is None else self.argmax[at]
        return SparseReps(
            F.pad(self.active[texts].cumsum(0), (1, 0)),
            self.terms[at],
            self.values[at],
            argmax,
            self.vocab_size,
            None if self.vectors is None else self.vectors[texts],
        )

    def keep(self, entries: Tensor) -> SparseReps:
        """The entries marked in `entries` (bool [nnz]); gradient flows."""
        at = entries.nonzero()[:, 0]
        active = torch.bincount(self.texts[at], minlength=len(self))
        argmax = None if self.argmax is None else self.argmax[at]
        return SparseReps(
            F.pad(active.cumsum(0), (1, 0)), self.terms[at], self.values[at], argmax, self.vocab_size, self.vectors
        )

    @property
    def rank(self) -> Tensor:
        """Each entry's place in its text by value, 0 for the strongest, ties in order of terms: int64 [nnz]."""
        order = torch.argsort(self.values.detach(), descending=True, stable=True)
        order = order[torch.argsort(self.texts[order], stable=True)]  # text by text, the strongest first
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel(), device=order.device) - self.indptr[:-1][self.texts]
        return rank

    def top_k(self, k: int) -> SparseReps:
        """The k strongest terms of each text (as sentence-transformers' `max_active_dims`); gradient flows."""
        return self.keep(self.rank < k)

    @staticmethod
    def cat(parts: Sequence[SparseReps]) -> SparseReps:
        """All texts of `parts`, in order."""
        if len({part.vocab_size for part in parts}) != 1:
            raise ValueError("representations to concatenate must share one vocabulary, and be at least one")
        indptr = F.pad(torch.cat([part.active for part in parts]).cumsum(0), (1, 0))
        argmaxes = [part.argmax for part in parts]
        argmax = None if any(part is None for part in argmaxes) else torch.cat(argmaxes)  # type: ignore[arg-type]
        vectors = [part.vectors for part in parts]
        return SparseReps(
            indptr,
            torch.cat([part.terms for part in parts]),
            torch.cat([part.values for part in parts]),
            argmax,
            parts[0].vocab_size,
            None if any(part is None for part in vectors) else torch.cat(vectors),
        )


class SpladeHead(nn.Module):
    """Stands where a masked language model has its decoder (`weight` [V, H], `bias` [V]), and pools as it projects.

    It keeps the decoder's own parameters under their own names, so that ties and state dicts stay as they were.
    `activation` as sentence-transformers names it: `relu` is log1p(relu(x)), `log1p_relu` is log1p(log1p(relu(x))).
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        pooling: Literal["max", "sum"] = "max",
        activation: Literal["relu", "log1p_relu"] = "relu",
    ):
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.vocab_size = weight.shape[0]  # kept: ZeRO-3 leaves no shape on a parameter that is not gathered
        self.pooling = pooling
        self.activation = activation
        self._call: _Call | None = None

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> SparseReps | Tensor:
        """`head(hidden, attention_mask)` is `encode`. Called by a model's own forward, inside `called_with`, with
        `hidden` alone, it returns one tensor (DeepSpeed's ZeRO-3 hooks see tensors only): the values [nnz], the rest
        of the representation being left in the call, or the surrogate.
        """
        if attention_mask is not None:
            return self.encode(hidden, attention_mask)
        call = self._call
        if call is None:
            raise RuntimeError("the head needs an attention mask: call the model through SpladeStudent")
        if call.cached is not None:
            return self.surrogate(hidden, call.attention_mask, *call.cached)
        call.reps = self.encode(hidden, call.attention_mask)
        return call.reps.values

    @contextmanager
    def called_with(self, attention_mask: Tensor, cached: tuple[SparseReps, Tensor] | None) -> Iterator[_Call]:
        """What the model's forward inside this block passes to the head besides the hidden states."""
        self._call = _Call(attention_mask, cached)
        try:
            yield self._call
        finally:
            self._call = None

    def encode(self, hidden: Tensor, attention_mask: Tensor) -> SparseReps:
        """Hidden states [B, L, H] and mask [B, L] (0: padding) to representations, differentiable."""
        mask, twice = attention_mask.bool(), self.activation == "log1p_relu"
        if self.pooling == "max":
            values, indptr, terms, argmax = _MaxPool.apply(hidden, self.weight, self.bias, mask, twice)
            return SparseReps(indptr, terms, values, argmax, self.vocab_size)
        sums = _SumPool.apply(hidden, self.weight, self.bias, mask, twice)  # [B, V]
        active = ~(sums.detach() <= 0)
        indptr = F.pad(active.sum(1).cumsum(0), (1, 0))
        return SparseReps(indptr, active.nonzero()[:, 1], sums[active], None, self.vocab_size)

    def surrogate(self, hidden: Tensor, attention_mask: Tensor, reps: SparseReps, grad_values: Tensor) -> Tensor:
        """The scalar sum(grad_values · values), whose backward is that of a loss with dL/dvalues = `grad_values`.

        `hidden` [B, L, H] must equal what `reps` came from; `reps` are detached, `grad_values` float32 [nnz]. With
        max pooling no product over the vocabulary takes place, in forward or backward.
        """
        twice = self.activation == "log1p_relu"
        value = (grad_values * reps.values).sum()
        if self.pooling == "max":
            rows = reps.texts * hidden.shape[1] + reps.argmax  # of hidden.view(B * L, H)
            coefficients = grad_values * _slope(reps.values, twice)
            return _MaxSurrogate.apply(
                hidden, self.weight, self.bias, reps.indptr, rows, reps.terms, coefficients, value
            )
        d_sums = replace(reps, values=grad_values).to_dense()
        return _SumSurrogate.apply(hidden, self.weight, self.bias, attention_mask.bool(), twice, d_sums, value)


@dataclass
class _Call:
    attention_mask: Tensor
    cached: tuple[SparseReps, Tensor] | None
    reps: SparseReps | None = None


def _slope(values: Tensor, twice: bool) -> Tensor:
    """f'(m) by y = f(m): exp(-y), or for the double log exp(1 - y - exp(y))."""
    return torch.exp(1 - values - values.exp()) if twice else torch.exp(-values)


def _real_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [T] of the tokens that are no padding, of B * L, and the offsets [B+1] of the texts among them."""
    return mask.reshape(-1).nonzero()[:, 0], F.pad(mask.sum(1).cumsum(0), (1, 0))


def _flat(hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden.detach().reshape(-1, hidden.shape[-1]).to(weight.dtype)  # [B * L, H]


def _in_autocast(weight: Tensor) -> Tensor:
    """The weights in the dtype of an autocast around the model, if there is one: as a linear layer takes them."""
    kind = weight.device.type
    return weight.detach().to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else weight


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, mask, twice):
        factor = _in_autocast(weight)
        indptr, terms, maxima, rows = _max_kernels(hidden).max_forward(
            _flat(hidden, factor), *_real_tokens(mask), factor, bias
        )
        values = maxima.log1p().log1p() if twice else maxima.log1p()
        argmax = rows % hidden.shape[1]
        ctx.save_for_backward(hidden, weight, bias, indptr, rows, terms, values)
        ctx.twice = twice
        ctx.mark_non_differentiable(indptr, terms, argmax)
        return values, indptr, terms, argmax

    @staticmethod
    def backward(ctx, d_values, *_):
        *saved, values = ctx.saved_tensors
        return *_max_gradients(ctx, *saved, d_values * _slope(values, ctx.twice)), None, None


class _MaxSurrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, indptr, rows, terms, coefficients, value):
        ctx.save_for_backward(hidden, weight, bias, indptr, rows, terms, coefficients)
        return value.clone()

    @staticmethod
    def backward(ctx, scale):
        *saved, coefficients = ctx.saved_tensors
        return *_max_gradients(ctx, *saved, coefficients * scale), None, None, None, None, None


def _max_gradients(ctx, hidden, weight, bias, indptr, rows, terms, coefficients):
    gradients = _max_kernels(hidden).max_backward(
        indptr, rows, terms, coefficients, _flat(hidden, weight), weight, ctx.needs_input_grad[:3]
    )
    return _shaped_as(gradients, hidden, weight, bias)


class _SumPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, mask, twice):
        ctx.save_for_backward(hidden, weight, bias, mask)
        ctx.twice = twice
        return blocked.sum_forward(_flat(hidden, weight), *_real_tokens(mask), weight, bias, twice)

    @staticmethod
    def backward(ctx, d_sums):
        return *_sum_gradients(ctx, *ctx.saved_tensors, d_sums), None, None


class _SumSurrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, mask, twice, d_sums, value):
        ctx.save_for_backward(hidden, weight, bias, mask, d_sums)
        ctx.twice = twice
        return value.clone()

    @staticmethod
    def backward(ctx, scale):
        *inputs, d_sums = ctx.saved_tensors
        return *_sum_gradients(ctx, *inputs, d_sums * scale), None, None, None, None


def _sum_gradients(ctx, hidden, weight, bias, mask, d_sums):
    gradients = blocked.sum_backward(
        d_sums, _flat(hidden, weight), *_real_tokens(mask), weight, bias, ctx.twice, ctx.needs_input_grad[:3]
    )
    return _shaped_as(gradients, hidden, weight, bias)


def _shaped_as(gradients, *tensors):
    return tuple(
        None if gradient is None else gradient.to(tensor.dtype).view_as(tensor)
        for gradient, tensor in zip(gradients, tensors, strict=True)
    )


def _max_kernels(hidden: Tensor):
    if hidden.device.type == "cpu":
        return cpu
    return (_triton_kernels() if hidden.device.type == "cuda" else None) or blocked


@functools.cache
def _triton_kernels():
    try:
        from distill.student.kernels import cuda
    except ImportError:
        logger.warning("Triton is not installed: the head runs in plain torch on the GPU, slower and with more memory")
        return None
    return cuda
