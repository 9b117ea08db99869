"""The saving in the last layer: a ranker reads only its first token, so only that one needs to be computed there.

The last layer needs keys and values of all tokens, but query, attention output and feed-forward of the first alone:
about 14 % of a six-layer model's products, and exact. It fits every encoder built of BERT's layer (BERT, RoBERTa,
XLM-R, ELECTRA, CamemBERT, ...); whether a model gives the same logits with it is tried out when it is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

_PARTS = ("query", "key", "value", "num_attention_heads", "attention_head_size", "scaling")


@torch.inference_mode()
def first_token_only(model: Any) -> bool:
    """Change the model's last layer in place; False, and nothing changed, where the model does not allow it."""
    body = getattr(model, model.base_model_prefix, None)
    layers = getattr(getattr(body, "encoder", None), "layer", None)
    attention = getattr(getattr(layers[-1], "attention", None), "self", None) if layers else None
    output = getattr(getattr(layers[-1], "attention", None), "output", None) if layers else None
    if output is None or model.config._attn_implementation != "sdpa" or not all(hasattr(attention, p) for p in _PARTS):
        return False
    inputs = _trial(model)
    expected = model(**inputs).logits
    plain = attention.forward
    attention.forward = lambda hidden_states, attention_mask=None, **kwargs: (
        _attend(attention, hidden_states, attention_mask), None)
    hook = output.register_forward_pre_hook(lambda module, args: (args[0], args[1][:, :1]))  # the residual: [b, 1, h]
    try:
        if torch.allclose(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4):
            return True
    except (RuntimeError, IndexError):
        pass  # the model does read the other tokens: it is put back as it was
    attention.forward = plain
    hook.remove()
    return False


def _attend(attention: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Self-attention's output for the first token: [b, 1, h] of hidden [b, l, h]."""
    b, length, _ = hidden.shape
    heads = (attention.num_attention_heads, attention.attention_head_size)
    query = attention.query(hidden[:, :1]).view(b, 1, *heads).transpose(1, 2)  # [b, heads, 1, d]
    key, value = (part(hidden).view(b, length, *heads).transpose(1, 2) for part in (attention.key, attention.value))
    mask = None if mask is None else mask[:, :, :1]  # [b, 1, 1, l]
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scaling)
    return context.transpose(1, 2).reshape(b, 1, -1)


def _trial(model: Any) -> dict[str, torch.Tensor]:
    """Two short texts, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (2, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids[1, 5:] = model.config.pad_token_id or 0
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
