"""Computing only the first token in the last layer changes no logit and saves work."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
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

from teachers.first_token import first_token_only

SIZE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_labels": 1,
    "initializer_range": 0.2,
    "pad_token_id": 1,
}


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids, mask = torch.randint(5, 300, (5, 40)), torch.ones(5, 40, dtype=torch.int64)
    for row, length in enumerate((40, 3, 17, 39, 28)):
        ids[row, length:], mask[row, length:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "config, cls",
    [
        (BertConfig, BertForSequenceClassification),
        (RobertaConfig, RobertaForSequenceClassification),
        (XLMRobertaConfig, XLMRobertaForSequenceClassification),
        (ElectraConfig, ElectraForSequenceClassification),
    ],
)
@torch.inference_mode()
def test_first_token_only_keeps_the_logits_and_saves_an_eighth_of_the_work(config, cls):
    torch.manual_seed(0)
    model = cls(config(**SIZE)).eval()
    expected = model(**inputs()).logits
    with FlopCounterMode(display=False) as before:
        model(**inputs())
    assert first_token_only(model)
    torch.testing.assert_close(model(**inputs()).logits, expected, rtol=1e-4, atol=1e-5)
    with FlopCounterMode(display=False) as after:
        model(**inputs())
    assert after.get_total_flops() < 0.88 * before.get_total_flops()


@torch.inference_mode()
def test_first_token_only_leaves_other_architectures_alone():
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=1)
    ).eval()
    assert not first_token_only(model)


@torch.inference_mode()
def test_first_token_only_restores_a_model_that_reads_all_tokens():
    class MeanOfTokens(BertForSequenceClassification):
        def forward(self, input_ids, attention_mask):
            hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
            return type("Output", (), {"logits": self.classifier(hidden.mean(1))})

    torch.manual_seed(0)
    model = MeanOfTokens(BertConfig(**SIZE)).eval()
    expected = model(**inputs()).logits
    assert not first_token_only(model)
    torch.testing.assert_close(model(**inputs()).logits, expected, rtol=0, atol=0)
