"""Cross-encoders without padding: the pairs of a batch laid end to end, attention within each pair.

The attention layers of BERT, RoBERTa, XLM-R, ELECTRA, CamemBERT, ... call a function that transformers looks up by
name. Ours takes the start of each pair from the keyword arguments (named as for transformers' flash attention) and
runs torch's variable-length attention. Outside CUDA and in float32, which that kernel lacks, it runs one product per
pair: the same arithmetic, used to check each model when it is loaded. The head then reads the first token of each
pair, the only one that the last layer computes (`teachers.first_token`). If a model does not fit, batches stay padded.
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


def packed(ids: np.ndarray, type_ids: np.ndarray | None, lengths: np.ndarray, first_position: int) -> dict[str, Any]:
    """Model inputs of sequences laid end to end: one row [1, tokens], with the sequences' boundaries."""
    ends = np.concatenate([[0], np.cumsum(lengths)])  # [b + 1]
    inputs: dict[str, Any] = {"input_ids": ids[None]}
    if type_ids is not None:
        inputs["token_type_ids"] = type_ids[None]
    inputs["position_ids"] = (first_position + np.arange(ends[-1]) - np.repeat(ends[:-1], lengths))[None]
    inputs["cu_seq_lens_q"] = inputs["cu_seq_lens_k"] = ends.astype(np.int32)
    inputs["max_length_q"] = inputs["max_length_k"] = int(lengths.max(initial=0))
    return inputs


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
    """Attention within each sequence: [tokens, heads, d] in and out; `query_ends`, `key_ends`: int32 [b + 1]."""
    if query.device.type == "cuda" and query.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        output = varlen_attn(query, key, value, query_ends, key_ends, longest_query, longest_key, scale=scale)
        assert isinstance(output, torch.Tensor)  # a tuple only where further outputs are asked for
        return output
    queries, keys, values = (
        [part.transpose(0, 1) for part in packed.split(ends.diff().tolist())]  # [heads, l, d] each
        for packed, ends in ((query, query_ends), (key, key_ends), (value, key_ends))
    )
    return torch.cat(
        [
            F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1)
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
    )


@torch.inference_mode()
def kernel_serves(model: Any, execution: Execution) -> bool:
    """Whether torch's variable-length attention runs on this device, in this precision, with heads of this size."""
    if execution.device != "cuda" or execution.precision == "float32":
        return False
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    tokens = torch.zeros(4, config.num_attention_heads, size, device="cuda", dtype=execution.dtype)
    ends = torch.tensor([0, 1, 4], device="cuda", dtype=torch.int32)
    try:
        attend(tokens, tokens, tokens, ends, ends, 3, 3, 1.0)
    except (RuntimeError, ImportError, TypeError):  # TypeError: a torch whose function takes other arguments
        return False
    return True


@torch.inference_mode()
def drop_padding(model: Any) -> int | None:
    """Make a model that `first_token_only` has changed take packed inputs; returns its first position id.

    Returns None, and leaves the model as it was, if its logits would change.
    """
    first = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", -1) + 1  # as in RoBERTa, else 0
    inputs = trial_inputs(model)
    expected = model(**inputs).logits
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(NAME)
        ids, inside = inputs["input_ids"].cpu().numpy(), inputs["attention_mask"].cpu().numpy().astype(bool)
        tensors = {
            key: torch.from_numpy(value).to(model.device) if isinstance(value, np.ndarray) else value
            for key, value in packed(ids[inside], None, inside.sum(1), first).items()
        }
        if torch.allclose(model(**tensors).logits, expected, rtol=1e-4, atol=1e-4):
            return first
    except (RuntimeError, IndexError, ValueError, TypeError):
        pass  # the model reads its inputs differently
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
    """An attention function as transformers calls it: [1, heads, tokens, d] to [1, tokens, heads, d]."""
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    return attend(q, k, v, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, scaling)[None], None


AttentionInterface.register(NAME, _attention)
