"""Query tables: one weight per term, looked up for the distinct tokens of a query, without a model.

Binary (SPLADE-doc, arXiv 2109.10086), IDF (OpenSearch, arXiv 2411.04403) or learned (Li-LSR, arXiv 2505.01452).
Multiplied with the model's own weights, a binary table removes their expansion (SPLADE-lexical, arXiv 2403.06789).
Equals sentence-transformers' `SparseStaticEmbedding`: a token counts once however often it occurs, padding never.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import StudentError
from distill.run.model_ref import WEIGHTS_FILE, find_file


class QueryTable(nn.Module):
    """Weights [V].

    A `learned` table is a parameter without an activation: a weight that reaches zero or below gets no gradient and
    stays inactive. A frozen table is a buffer, invisible to the optimizer and ZeRO.
    """

    def __init__(self, weight: Tensor, learned: bool = False):
        super().__init__()
        weight = weight.detach().float().clone()
        self.learned = learned
        self.vocab_size = weight.numel()  # stored: under ZeRO-3 a parameter has its shape only while gathered
        if learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def forward(self, terms: Tensor) -> Tensor:
        """Look up the weights of terms, int64 [n] to float32 [n]; gradient flows if the table is learned."""
        return self.weight[terms]


def own_terms(input_ids: Tensor, attention_mask: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Find the distinct tokens of each text: offsets int64 [B+1], terms int64 [n], ascending in each text."""
    texts = torch.arange(len(input_ids), device=input_ids.device)[:, None]
    keys = torch.unique((texts * vocab_size + input_ids)[attention_mask.bool()])
    counts = torch.bincount(keys // vocab_size, minlength=len(input_ids))
    return F.pad(counts.cumsum(0), (1, 0)), keys % vocab_size


def binary_weights(tokenizer: Any, vocab_size: int) -> Tensor:
    """Return 1 for every term and 0 for special tokens: [V]."""
    return _without_special(torch.ones(vocab_size), tokenizer)


def idf_weights(texts_with: np.ndarray, texts: int, tokenizer: Any) -> Tensor:
    """ln(1 + (N − n_v + ½) / (n_v + ½)) [V], with N texts of which n_v (`texts_with`, int64 [V]) have term v.

    Lucene's form of BM25's IDF: positive for every term. Special tokens get 0.
    """
    n = torch.from_numpy(texts_with).double()
    return _without_special(torch.log1p((texts - n + 0.5) / (n + 0.5)).float(), tokenizer)


def weights_from_file(file: str, tokenizer: Any) -> Tensor:
    """Read the weights [V] of an OpenSearch `idf.json` ({token: weight}; other terms get 0).

    `file`: its path, or a model on the hub that has one.
    """
    try:
        return SparseStaticEmbedding.from_json(str(find_file(file, WEIGHTS_FILE)), tokenizer).weight.detach()
    except (OSError, ValueError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise StudentError(
            f"student.query.file: {file!r} cannot be read as a JSON object {{token: weight}}: {error}"
        ) from None


def _without_special(weights: Tensor, tokenizer: Any) -> Tensor:
    weights[tokenizer.all_special_ids] = 0
    return weights
