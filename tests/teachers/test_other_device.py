"""Teachers on the simulated device: the CPU's scores, and no tensor on the wrong device."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from distill.config import Teacher
from teachers import cross_encoder
from teachers.execution import Execution
from teachers.rank_t5 import RankT5
from tests.helpers.simulated_cuda import simulated_cuda
from tests.helpers.small_run import save_checkpoint
from tests.helpers.tiny_models import tiny_tokenizer
from tests.teachers.scoring import mined_pairs, scores_of
from tests.teachers.test_rank_t5 import PASSAGES, QUERIES, save_rank_t5


def on_both(cfg: Teacher, folder, precision: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    pairs = mined_pairs(folder)
    here = scores_of(cfg, folder, pairs, Execution("cpu", "float32", 1, 64))
    shutil.rmtree(folder.root / "scores", ignore_errors=True)
    with simulated_cuda():
        there = scores_of(cfg, folder, pairs, Execution("cuda", precision, 1, 64))
    return here, there


@pytest.mark.parametrize("packed", [False, True])
def test_a_cross_encoder(tiny_classifier, folder, packed, monkeypatch):
    monkeypatch.setattr(cross_encoder, "kernel_serves", lambda model, execution: packed)
    here, there = on_both(Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=32), folder)
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_a_cross_encoder_whose_body_is_in_half_precision_keeps_the_ranking(tiny_classifier, folder, monkeypatch):
    monkeypatch.setattr(cross_encoder, "kernel_serves", lambda model, execution: False)  # a kernel of CUDA's own
    cfg = Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=32)
    here, there = on_both(cfg, folder, "bfloat16")
    assert np.corrcoef(here, there)[0, 1] > 0.999 and np.abs(here - there).max() > 0
    assert len(np.unique(there)) == len(np.unique(here))  # the head's digits are float32's


def test_a_bi_encoder(tiny_sentence, folder):
    here, there = on_both(Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16), folder)
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_a_splade_teacher(tiny_mlm, folder, tmp_path):
    model = save_checkpoint(tiny_mlm, tmp_path / "splade")
    here, there = on_both(Teacher(kind="splade", model=str(model), max_length=16), folder)
    np.testing.assert_allclose(there, here, atol=1e-4)


def test_a_language_model(folder, tmp_path):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(2)
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2, pad_token_id=0)).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    cfg = Teacher(
        kind="llm",
        model=str(tmp_path / "llm"),
        max_length=64,
        template="{query} {passage} good",
        options={"yes": "yes", "no": "no"},
    )
    here, there = on_both(cfg, folder)
    np.testing.assert_allclose(there, here, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["DebertaV2", "ModernBert"])
def test_cross_encoders_of_other_architectures(folder, tmp_path, kind, precision):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    common = {"vocab_size": len(tokenizer), "num_labels": 1, "pad_token_id": 0, "initializer_range": 0.3, **size}
    if kind == "DebertaV2":
        relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8}
        model = DebertaV2ForSequenceClassification(DebertaV2Config(**common, **relative))
    else:
        local = {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}
        model = ModernBertForSequenceClassification(ModernBertConfig(**common, **local, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    cfg = Teacher(kind="cross-encoder", model=str(tmp_path / "model"), max_length=32)
    here, there = on_both(cfg, folder, precision)
    if precision == "float32":
        np.testing.assert_allclose(there, here, atol=1e-5)
    else:
        assert np.corrcoef(here, there)[0, 1] > 0.99 and np.abs(here - there).max() > 0


def test_rank_t5(tmp_path):
    save_rank_t5(tmp_path)
    expected = RankT5(str(tmp_path), backbone=str(tmp_path)).score(QUERIES, PASSAGES)
    with simulated_cuda():
        found = RankT5(str(tmp_path), backbone=str(tmp_path), batch_tokens=40).score(QUERIES, PASSAGES)
    np.testing.assert_allclose(found, expected, atol=3e-2)  # bfloat16 on a GPU
