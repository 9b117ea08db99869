"""Cross-encoders without padding: the pairs of a batch laid end to end, attention within each pair.

The attention layers of BERT, RoBERTa, XLM-R, ELECTRA, CamemBERT, ... call a function that transformers looks up by
name. Ours finds where each pair starts among the keyword arguments (named as for transformers' flash attention) and
runs torch's variable-length attention; off CUDA and in float32, which that kernel lacks, one product a pair: the same
arithmetic, by which a model is tried out when it is loaded. The head then reads the first token of each pair, which
the last layer alone computes (`teachers.first_token`). Where this does not fit, batches stay padded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from teachers.execution import Execution
from teachers.first_token import trial_inputs

NAME = "unpadded"


def pack(inputs: dict[str, np.ndarray], first_position: int) -> dict[str, Any]:
    """Inputs [b, l], padded on either side, as one row [1, tokens], with what keeps the pairs apart."""
    inside = inputs["attention_mask"].astype(bool)  # [b, l]
    lengths = inside.sum(1)
    ends = np.concatenate([[0], np.cumsum(lengths)])  # [b + 1]
    packed: dict[str, Any] = {key: array[inside][None] for key, array in inputs.items() if key != "attention_mask"}
    packed["position_ids"] = (first_position + np.arange(ends[-1]) - np.repeat(ends[:-1], lengths))[None]
    packed["cu_seq_lens_q"] = packed["cu_seq_lens_k"] = ends.astype(np.int32)
    packed["max_length_q"] = packed["max_length_k"] = int(lengths.max(initial=0))
    return packed


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
) -> torch.Tensor:
    """Attention of the tokens of each sequence to each other: [tokens, heads, d] of the same; ends int32 [b + 1]."""
    if query.device.type == "cuda" and query.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(query, key, value, query_ends, key_ends, longest_query, longest_key, scale=scale)
    parts = [
        part.split(ends.diff().tolist()) for part, ends in ((query, query_ends), (key, key_ends), (value, key_ends))
    ]
    return torch.cat(
        [
            F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in one), scale=scale).transpose(0, 1)
            for one in zip(*parts, strict=True)
        ]
    )


@torch.inference_mode()
def kernel_serves(model: Any, execution: Execution) -> bool:
    """Whether torch's variable-length attention runs on this device, in this precision, with heads of this size."""
    if execution.device != "cuda" or execution.precision == "float32":
        return False
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    tokens = torch.zeros(4, config.num_attention_heads, size, device="cuda", dtype=getattr(torch, execution.precision))
    ends = torch.tensor([0, 1, 4], device="cuda", dtype=torch.int32)
    try:
        attend(tokens, tokens, tokens, ends, ends, 3, 3, 1.0)
    except (RuntimeError, ImportError, TypeError):  # TypeError: an older torch, whose function takes other arguments
        return False
    return True


@torch.inference_mode()
def drop_padding(model: Any) -> int | None:
    """Make a model, changed by `first_token_only`, take packed inputs; returns its first position id.

    None, and the model left as it was, if its logits would be others.
    """
    first = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", -1) + 1  # as RoBERTa counts, else 0
    inputs = trial_inputs(model)
    expected = model(**inputs).logits
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(NAME)
        packed = pack({key: tensor.cpu().numpy() for key, tensor in inputs.items()}, first)
        tensors = {
            key: torch.from_numpy(value).to(model.device) if isinstance(value, np.ndarray) else value
            for key, value in packed.items()
        }
        if torch.allclose(model(**tensors).logits, expected, rtol=1e-4, atol=1e-4):
            return first
    except (RuntimeError, IndexError, ValueError, TypeError):
        pass  # it reads its inputs in another way
    model.set_attn_implementation(before)
    return None


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: [1, heads, tokens, d] to [1, tokens, heads, d]."""
    flat = (part[0].transpose(0, 1) for part in (query, key, value))
    return attend(*flat, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, scaling)[None], None


AttentionInterface.register(NAME, _attention)
