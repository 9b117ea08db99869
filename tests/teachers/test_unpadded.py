"""Pairs joined end to end get the logits of padded batches; a model that cannot be packed is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.attention import varlen
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from teachers.execution import Execution
from teachers.first_token import first_token_only
from teachers.unpadded import attend, drop_padding, kernel_serves, packed
from tests.teachers.test_first_token import SIZE, inputs


def packed_inputs(first_position: int) -> dict:
    arrays = {key: tensor.numpy() for key, tensor in inputs().items()}
    inside = arrays["attention_mask"].astype(bool)
    types = arrays["token_type_ids"][inside] if "token_type_ids" in arrays else None
    joined = packed(arrays["input_ids"][inside], types, inside.sum(1), first_position)
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in joined.items()}


@pytest.mark.parametrize(
    ("config", "cls", "first"),
    [
        (BertConfig, BertForSequenceClassification, 0),
        (ElectraConfig, ElectraForSequenceClassification, 0),
        (RobertaConfig, RobertaForSequenceClassification, 2),
        (XLMRobertaConfig, XLMRobertaForSequenceClassification, 2),
    ],
)
@torch.inference_mode()
def test_unpadded_batches_give_the_logits_of_padded_ones(config, cls, first):
    torch.manual_seed(0)
    model = cls(config(**SIZE)).eval()
    expected = model(**inputs()).logits
    assert first_token_only(model) and drop_padding(model) == first
    torch.testing.assert_close(model(**packed_inputs(first)).logits, expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_other_architectures_and_models_without_first_token_only_stay_padded():
    torch.manual_seed(0)
    distil = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=1)
    ).eval()
    for model in (distil, BertForSequenceClassification(BertConfig(**SIZE)).eval()):
        expected = model(**inputs()).logits
        assert drop_padding(model) is None
        torch.testing.assert_close(model(**inputs()).logits, expected, rtol=0, atol=0)


def test_a_torch_whose_kernel_takes_other_arguments_is_not_used(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, q_ends, k_ends, max_q, max_k, is_causal=False: q)
    model = BertForSequenceClassification(BertConfig(**SIZE))
    with FakeTensorMode():  # CUDA tensors without CUDA
        assert not kernel_serves(model, Execution("cuda", "bfloat16", 1, 64))
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, k, v, q_ends, k_ends, max_q, max_k, *, scale: q)
    with FakeTensorMode():
        assert kernel_serves(model, Execution("cuda", "bfloat16", 1, 64))


@pytest.mark.gpu
def test_the_cuda_kernel_equals_one_product_per_pair():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 127, 4, 32, device="cuda", dtype=torch.bfloat16)
    ends = torch.tensor([0, 40, 43, 60, 99, 127], device="cuda", dtype=torch.int32)
    expected = attend(*(part.float() for part in (query, key, value)), ends, ends, 40, 40, 32**-0.5)
    torch.testing.assert_close(
        attend(query, key, value, ends, ends, 40, 40, 32**-0.5).float(), expected, rtol=2e-2, atol=2e-2
    )
