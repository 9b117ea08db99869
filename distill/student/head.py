"""The exact SPLADE head: hidden states to sparse term weights, without a [batch, length, vocabulary] tensor.

Max pooling (SPLADE-max, arXiv 2109.10086): y_v = f(max_t(h_t · W_v + b_v)) with f = log1p∘relu, once or twice. f is
monotone, so the maximum comes first, and only the arg-max position of an active term carries gradient: with
c = dL/dy · f'(m) the backward is dh[t*] += c W_v, dW_v += c h[t*], db_v += c, two sparse products. The same products
serve the second pass of the cached step, which needs the arg-max positions and dL/dy, but no vocabulary product.
Sum pooling (arXiv 2107.05720) has no arg-max; its backward recomputes the logits, block by block.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.run.device import ran_out_of_memory, upload
from distill.sparse.reps import RepsGradient, SparseReps
from distill.student.kernels import blocked, cpu

logger = logging.getLogger(__name__)

Pooling = Literal["max", "sum"]
Activation = Literal["relu", "log1p_relu"]


class SpladeHead(nn.Module):
    """Replaces a masked language model's decoder (`weight` [V, H], `bias` [V]), and pools as it projects.

    It holds the decoder's own parameters under their own names, so that ties and state dicts stay as they are.
    `activation` as sentence-transformers names it: `relu` is log1p(relu(x)), `log1p_relu` is log1p(log1p(relu(x))).
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        pooling: Pooling = "max",
        activation: Activation = "relu",
    ):
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.vocab_size = weight.shape[0]  # stored: under ZeRO-3 a parameter has its shape only while gathered
        self.pooling = pooling
        self.activation = activation
        self._call: _Call | None = None

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> SparseReps | Tensor:
        """Run the head on hidden states [B, L, H], from a model's forward inside `called_with`, or directly.

        With `attention_mask` this is `encode`. A model's own forward passes `hidden` alone; inside `called_with` the
        head then returns one tensor, since DeepSpeed's ZeRO-3 hooks see only tensors: the surrogate, or the values
        [nnz], with the rest of the representations stored in the call.
        """
        if attention_mask is not None:
            return self.encode(hidden, attention_mask)
        call = self._call
        if call is None:
            raise RuntimeError("the SPLADE head has no attention mask; call the model through SpladeStudent")
        if call.cached is not None:
            reps, gradient = call.cached
            return self.surrogate(hidden, call.attention_mask, reps, gradient.values)
        call.reps = self.encode(hidden, call.attention_mask)
        return call.reps.values

    @contextmanager
    def called_with(self, attention_mask: Tensor, cached: tuple[SparseReps, RepsGradient] | None) -> Iterator[_Call]:
        """Give the head its inputs besides the hidden states, for the model's forward inside this block.

        `cached`: detached representations and their gradient, for the surrogate; None: encode.
        """
        self._call = _Call(attention_mask, cached)
        try:
            yield self._call
        finally:
            self._call = None

    def encode(self, hidden: Tensor, attention_mask: Tensor) -> SparseReps:
        """Encode hidden states [B, L, H] with mask [B, L] (0: padding) into representations; differentiable.

        A mask on the host spares a GPU's host the wait for the places of the real tokens.
        """
        mask, twice = attention_mask.bool(), self.activation == "log1p_relu"
        if self.pooling == "max":
            values, indptr, terms, argmax = _MaxPool.apply(hidden, self.weight, self.bias, mask, twice)
            return SparseReps(indptr, terms, values, argmax, self.vocab_size)
        sums = _SumPool.apply(hidden, self.weight, self.bias, mask, twice)  # [B, V]
        active = ~(sums.detach() <= 0)  # keeps NaN, so that a broken model shows in the loss
        indptr = F.pad(active.sum(1).cumsum(0), (1, 0))
        return SparseReps(indptr, active.nonzero()[:, 1], sums[active], None, self.vocab_size)

    def surrogate(self, hidden: Tensor, attention_mask: Tensor, reps: SparseReps, grad_values: Tensor) -> Tensor:
        """Return the scalar sum(grad_values · values), whose backward is that of a loss with dL/dvalues = grad_values.

        `hidden` [B, L, H] must equal the hidden states that `reps` were encoded from; `reps` are detached;
        `grad_values` float32 [nnz]. With max pooling there is no product over the vocabulary, forward or backward.
        """
        twice = self.activation == "log1p_relu"
        value = (grad_values * reps.values).sum()
        if self.pooling == "max":
            assert reps.argmax is not None
            rows = reps.row_ids * hidden.shape[1] + reps.argmax  # [nnz], of hidden.view(B * L, H)
            coefficients = grad_values * _slope(reps.values, twice)
            return _MaxSurrogate.apply(
                hidden, self.weight, self.bias, reps.indptr, rows, reps.terms, coefficients, value
            )
        d_sums = replace(reps, values=grad_values).to_dense()
        return _SumSurrogate.apply(hidden, self.weight, self.bias, attention_mask.bool(), twice, d_sums, value)


@dataclass
class _Call:
    """One forward of the model: inputs of the head besides the hidden states, and the representations it left."""

    attention_mask: Tensor
    cached: tuple[SparseReps, RepsGradient] | None
    reps: SparseReps | None = None


def _slope(values: Tensor, twice: bool) -> Tensor:
    """f'(m) as a function of y = f(m): exp(-y), or exp(1 - y - exp(y)) for the double log."""
    return torch.exp(1 - values - values.exp()) if twice else torch.exp(-values)


def _real_tokens(mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices [T] of the unpadded tokens among all B * L, and the offsets [B+1] of each text's tokens in them.

    The indices are on the device, the offsets on the mask's.
    """
    return upload(mask.reshape(-1).nonzero()[:, 0], device), F.pad(mask.sum(1).cumsum(0), (1, 0))


def _flat(hidden: Tensor, weight: Tensor) -> Tensor:
    """Hidden states in the dtype of the weights, one row per token."""
    return hidden.detach().reshape(-1, hidden.shape[-1]).to(weight.dtype)  # [B * L, H]


def _in_autocast(weight: Tensor) -> Tensor:
    """The weights in the dtype of an autocast around the model, if any: as a linear layer uses them."""
    kind = weight.device.type
    return weight.detach().to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else weight


def _table_dtype(weight: Tensor) -> torch.dtype:
    """In what a GPU reads hidden states and weights: as the layers around the head do; a CPU in their own dtype."""
    return _in_autocast(weight[:0]).dtype if weight.is_cuda else weight.dtype


class _MaxPool(torch.autograd.Function):
    """Hidden states to values, indptr, terms and arg-max; backward by the two sparse products."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, twice: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        factor = _in_autocast(weight)
        indptr, terms, maxima, rows = _max_kernels(hidden).max_forward(
            _flat(hidden, factor), *_real_tokens(mask, hidden.device), factor, bias
        )
        values = maxima.log1p().log1p() if twice else maxima.log1p()
        argmax = rows % hidden.shape[1]
        ctx.save_for_backward(hidden, weight, bias, indptr, rows, terms, values)
        ctx.twice, ctx.table = twice, _table_dtype(weight)
        ctx.mark_non_differentiable(indptr, terms, argmax)
        return values, indptr, terms, argmax

    @staticmethod
    def backward(ctx: Any, d_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, indptr, rows, terms, values = ctx.saved_tensors
        coefficients = d_values * _slope(values, ctx.twice)  # c = dL/dy · f'(m): [nnz]
        return *_max_gradients(ctx, hidden, weight, bias, indptr, rows, terms, coefficients), None, None


class _MaxSurrogate(torch.autograd.Function):
    """A scalar with the backward of `_MaxPool` for given coefficients: no vocabulary product in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        indptr: Tensor,
        rows: Tensor,
        terms: Tensor,
        coefficients: Tensor,
        value: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, indptr, rows, terms, coefficients)
        ctx.table = _table_dtype(weight)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, indptr, rows, terms, coefficients = ctx.saved_tensors
        gradients = _max_gradients(ctx, hidden, weight, bias, indptr, rows, terms, coefficients * scale)
        return *gradients, None, None, None, None, None


def _max_gradients(
    ctx: Any,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indptr: Tensor,
    rows: Tensor,
    terms: Tensor,
    coefficients: Tensor,
) -> tuple[Tensor | None, ...]:
    """dh, dW, db: dh[row] += c W[term], dW[term] += c h[row], db[term] += c."""
    table = weight.detach().to(ctx.table)
    gradients = _max_kernels(hidden).max_backward(
        indptr, rows, terms, coefficients, _flat(hidden, table), table, ctx.needs_input_grad[:3]
    )
    return _shaped_as(gradients, hidden, weight, bias)


class _SumPool(torch.autograd.Function):
    """Hidden states to dense sums [B, V]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, twice: bool) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, mask)
        ctx.twice, ctx.table = twice, _table_dtype(weight)
        table = weight.detach().to(ctx.table)
        return blocked.sum_forward(_flat(hidden, table), *_real_tokens(mask, hidden.device), table, bias, twice)

    @staticmethod
    def backward(ctx: Any, d_sums: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, mask = ctx.saved_tensors
        return *_sum_gradients(ctx, hidden, weight, bias, mask, d_sums), None, None


class _SumSurrogate(torch.autograd.Function):
    """A scalar with the backward of `_SumPool` for a given dL/dsums [B, V]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor,
        twice: bool,
        d_sums: Tensor,
        value: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, mask, d_sums)
        ctx.twice, ctx.table = twice, _table_dtype(weight)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, mask, d_sums = ctx.saved_tensors
        return *_sum_gradients(ctx, hidden, weight, bias, mask, d_sums * scale), None, None, None, None


def _sum_gradients(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, d_sums: Tensor
) -> tuple[Tensor | None, ...]:
    """dh, dW, db of the sums, with the logits recomputed block by block."""
    table = weight.detach().to(ctx.table)
    rows, offsets = _real_tokens(mask, hidden.device)
    gradients = blocked.sum_backward(
        d_sums, _flat(hidden, table), rows, offsets, table, bias, ctx.twice, ctx.needs_input_grad[:3]
    )
    return _shaped_as(gradients, hidden, weight, bias)


def _shaped_as(gradients: Sequence[Tensor | None], *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Each gradient in the dtype and shape of its tensor."""
    return tuple(
        None if gradient is None or tensor is None else gradient.to(tensor.dtype).view_as(tensor)
        for gradient, tensor in zip(gradients, tensors, strict=True)
    )


def _max_kernels(hidden: Tensor) -> ModuleType:
    """The max-pooling kernels of a device: modules with the interface of `blocked`."""
    if hidden.device.type == "cpu":
        return cpu
    return (_triton_kernels(hidden.device) if hidden.device.type == "cuda" else None) or blocked


@functools.cache
def _triton_kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, if they run on a device; None, with a warning, if they do not."""
    try:
        launch_kernels(device)
    except Exception as error:  # Triton's first launch compiles C, and may raise anything
        if ran_out_of_memory(error):
            raise
        logger.warning(
            "the SPLADE head's Triton kernels do not run on %s; plain torch is used, slower and with more memory: %s",
            device,
            error,
        )
        return None
    from distill.student.kernels import cuda

    return cuda


def launch_kernels(device: torch.device) -> None:
    """Run the Triton kernels once, on a text of one token. Raises whatever keeps them from running on a device."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:  # their products would be made without matrix units, and spill
        raise RuntimeError(f"they need compute capability 8.0, which this GPU ({major}.{minor}) does not have")
    from distill.student.kernels import cuda

    ones = torch.ones(1, 16, device=device)
    rows = torch.zeros(1, dtype=torch.int64, device=device)
    maxima = cuda.max_forward(ones, rows, torch.tensor([0, 1], device=device), ones, None)[2]
    cuda.max_backward(rows, rows, rows, maxima, ones, ones, (True, True, True))
    if maxima.tolist() != [16.0]:
        raise RuntimeError(f"the product of ones is {maxima.tolist()}, not 16")
