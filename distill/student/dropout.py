"""Dropout of a model in training: how much, and on CPUs by a kernel that costs a tenth of torch's.

With dropout on the attention weights, torch's CPU attention takes a slow route in float32, with passes that look for
rows without any key; here it is two products, a softmax and the kernel, in the model's own precision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distill.student.kernels import dropout as kernel

ATTENTION = "distill"  # its name among transformers' attention implementations


def set_dropout(model: nn.Module, p: float) -> None:
    """Set every dropout probability of a model, those that attention layers keep as numbers included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, p)


def use_kernel(model: nn.Module) -> None:
    """Let a transformers model that trains on the CPU draw its dropout with the kernel."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if type(module) is nn.Dropout:
                setattr(parent, name, Dropout(module.p))
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)


class Dropout(nn.Dropout):
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
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention of [B, heads, L, d] to [B, L, heads, d], as transformers' interface has it.

    With dropout on a CPU written out; in any other case, and for what encoders don't do, torch's own.
    """
    usual = (
        kwargs.get("position_bias") is None
        and not kwargs.get("is_causal")
        and query.shape == key.shape
        and (attention_mask is not None or not getattr(module, "is_causal", False))
    )
    if dropout == 0 or query.device.type != "cpu" or not usual:
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


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
