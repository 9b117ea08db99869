"""A shortcut in the last layer: a ranker reads only its first token, so only that one is computed there.

The last layer needs keys and values of all tokens, but query, attention output and feed-forward only of the first.
That saves about 14 % of a six-layer model's products, and is exact. It works for every encoder built from BERT's layer
(BERT, RoBERTa, XLM-R, ELECTRA, CamemBERT, ...); each model is checked to give the same logits when it is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PARTS = ("query", "key", "value", "num_attention_heads", "attention_head_size", "scaling")


@torch.inference_mode()
def first_token_only(model: Any) -> bool:
    """Change the model's last layer in place. Returns False, and changes nothing, if the model does not allow it."""
    body = getattr(model, model.base_model_prefix, None)
    layers = getattr(getattr(body, "encoder", None), "layer", None)
    block = getattr(layers[-1], "attention", None) if layers else None
    attention, output = getattr(block, "self", None), getattr(block, "output", None)
    if block is None or output is None:
        return False
    if model.config._attn_implementation != "sdpa" or not all(hasattr(attention, p) for p in _PARTS):
        return False
    inputs = trial_inputs(model)
    expected = model(**inputs).logits
    plain = block.forward

    def forward(
        hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        packed = kwargs.get("cu_seq_lens_q")  # see teachers.unpadded
        first = hidden_states[:, :1] if packed is None else hidden_states[0, packed[:-1].long()][:, None]  # [b, 1, h]
        attend = _attend_padded if packed is None else _attend_packed
        return output(attend(attention, first, hidden_states, attention_mask, **kwargs), first), None

    block.forward = forward
    try:
        if torch.allclose(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4):
            return True
    except (RuntimeError, IndexError):
        pass  # the model reads other tokens as well: restore it below
    block.forward = plain
    return False


def _attend_padded(
    attention: Any, first: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
) -> torch.Tensor:
    """Self-attention output of the first tokens, [b, 1, h], from hidden [b, l, h]."""
    b, length, _ = hidden.shape
    heads = (attention.num_attention_heads, attention.attention_head_size)
    query = attention.query(first).view(b, 1, *heads).transpose(1, 2)  # [b, heads, 1, d]
    key, value = (part(hidden).view(b, length, *heads).transpose(1, 2) for part in (attention.key, attention.value))
    mask = None if mask is None else mask[:, :, :1]  # [b, 1, 1, l]
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scaling)
    return context.transpose(1, 2).reshape(b, 1, -1)


def _attend_packed(
    attention: Any, first: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
) -> torch.Tensor:
    """The same from packed hidden [1, tokens, h], with the attention function that the model was given."""
    b = len(first)
    heads = (attention.num_attention_heads, attention.attention_head_size)
    query = attention.query(first).view(1, b, *heads).transpose(1, 2)  # [1, heads, b, d]
    key, value = (part(hidden).view(1, -1, *heads).transpose(1, 2) for part in (attention.key, attention.value))
    first_only = {"cu_seq_lens_q": torch.arange(b + 1, dtype=torch.int32, device=hidden.device), "max_length_q": 1}
    context, _ = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation](
        attention, query, key, value, mask, scaling=attention.scaling, **{**kwargs, **first_only}
    )
    return context.reshape(b, 1, -1)


def trial_inputs(model: Any) -> dict[str, torch.Tensor]:
    """Inputs of two short texts, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (2, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids[1, 5:] = model.config.pad_token_id or 0
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
