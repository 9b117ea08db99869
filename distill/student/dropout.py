"""Dropout of a model in training: its probability, and a CPU kernel that costs a tenth of torch's.

With dropout on the attention weights, torch's CPU attention takes a slow path in float32, with extra passes that look
for rows without any key. Here attention is two products, a softmax and the kernel, in the model's own precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distill.student.kernels import dropout as kernel

ATTENTION = "distill"  # name under which `attention` is registered with transformers


def set_dropout(model: nn.Module, p: float) -> None:
    """Set every dropout probability of a model, including those that attention layers store as numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, p)


def use_kernel(model: PreTrainedModel) -> None:
    """Make a model that trains on the CPU use the dropout kernel, in its dropout layers and its attention.

    transformers finds attention by name in a process-wide registry, so `attention` is registered there, once a model
    needs it.
    """
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if type(module) is nn.Dropout:
                setattr(parent, name, Dropout(module.p))
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)


class Dropout(nn.Dropout):
    """`nn.Dropout` with the kernel's masks."""

    def forward(self, x: Tensor) -> Tensor:
        return kernel.dropout(x, self.p) if self.training else x


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention from [B, heads, L, d] to [B, L, heads, d], with the signature of transformers' interface.

    Written out for an encoder with dropout on a CPU; torch's own in every other case.
    """
    plain_encoder = (
        kwargs.get("position_bias") is None
        and not kwargs.get("is_causal")
        and query.shape == key.shape
        and (attention_mask is not None or not getattr(module, "is_causal", False))
    )
    if dropout == 0 or query.device.type != "cpu" or not plain_encoder:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            attention_mask = torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill_(
                ~attention_mask, torch.finfo(scores.dtype).min
            )
        scores += attention_mask
    weights = kernel.dropout(scores.softmax(-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None
