"""The calibrated start, measured by the model's own materialised logits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers

from distill import config
from distill.errors import StudentError
from distill.student.calibrate import calibrate_head
from distill.student.model import start_splade
from tests.helpers.tiny_models import WORDS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CFG = config.CalibratedStart(percentile=98.0, margin=2.0)
SMALL = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "Bert": {},
    "Roberta": {},
    "MPNet": {},
    "Electra": {"embedding_size": 48},
    "DistilBert": {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}


def some_texts(count, seed):
    """Texts of 5 to 25 words drawn by Zipf's law: the r-th most common word with weight 1/r."""
    rng, words = np.random.default_rng(seed), WORDS.read_text(encoding="utf-8").split()
    chances = 1 / np.arange(1, len(words) + 1)
    return [" ".join(rng.choice(words, rng.integers(5, 26), p=chances / chances.sum())) for _ in range(count)]


TEXTS, UNSEEN = some_texts(300, seed=0), some_texts(100, seed=1)


def random_mlm(name="Bert"):
    torch.manual_seed(0)
    changes = ARCHITECTURES[name]
    fields = {key: value for key, value in SMALL.items() if "dim" not in changes or "hidden" not in key}
    mlm = getattr(transformers, f"{name}ForMaskedLM")(getattr(transformers, f"{name}Config")(**fields, **changes))
    mlm.get_input_embeddings().weight.data.normal_()  # distinguishable words in all layers, as in trained models
    return mlm


def calibrated(name="Bert", cfg=CFG):
    mlm = random_mlm(name)
    calibrate_head(mlm, TOKENIZER, TEXTS, cfg, max_length=32)
    return mlm.eval()


def max_logits(mlm, texts):
    """Each term's largest logit in each text [N, V], and which terms each text has [N, V]."""
    rows, has = [], torch.zeros(len(texts), len(TOKENIZER), dtype=torch.bool)
    for i, text in enumerate(texts):
        tokens = TOKENIZER(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            rows.append(mlm(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits[0].amax(0))
        has[i, tokens["input_ids"][0, 1:-1]] = True
    return torch.stack(rows), has


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_calibrated_texts_have_their_own_words_first_and_few_other_terms(name):
    logits, has = max_logits(calibrated(name), UNSEEN)
    active = logits > 0
    assert (active & ~has).sum(1).float().mean() < 0.04 * len(TOKENIZER)  # configured: at most 0.02
    assert not active[:, TOKENIZER.all_special_ids].any()
    strongest = logits.argsort(dim=1, descending=True)[:, :5]
    assert has.gather(1, strongest).float().mean() > 0.8
    uncalibrated, _ = max_logits(random_mlm(name).eval(), UNSEEN)
    assert (uncalibrated > 0).float().mean() > 0.5


def test_a_term_is_active_in_the_configured_share_of_texts_without_it():
    logits, has = max_logits(calibrated(cfg=config.CalibratedStart(percentile=95.0, idf_scale=100.0)), TEXTS)
    special = torch.zeros(len(TOKENIZER), dtype=torch.bool)
    special[TOKENIZER.all_special_ids] = True
    share = ((logits > 0) & ~has).sum(0) / (~has).sum(0)
    assert share[~special].max() < 0.06
    assert share[~special].mean() > 0.04


def test_own_words_exceed_silence_by_the_margin_and_common_words_by_their_idf():
    steep, _ = max_logits(calibrated(cfg=config.CalibratedStart(margin=2.0, idf_scale=100.0)), TEXTS)
    flat, has = max_logits(calibrated(cfg=config.CalibratedStart(margin=2.0, idf_scale=0.5)), TEXTS)
    texts_with = has.sum(0)
    rare = has & (texts_with < 0.45 * len(TEXTS))
    assert steep[rare].clamp(min=0).mean() == pytest.approx(2.0, rel=0.05)
    idf = torch.log((len(TEXTS) - texts_with + 0.5) / (texts_with + 0.5))
    mean = (flat * has).sum(0)[texts_with > 0] / texts_with[texts_with > 0]
    assert (mean <= 0.5 * idf[texts_with > 0].clamp(min=0) + 1e-2).all()
    assert (flat <= steep + 1e-4).all()


def test_calibration_is_deterministic_and_changes_only_the_head():
    mlm = random_mlm()
    body = copy.deepcopy(mlm.bert.state_dict())
    assert mlm.training
    calibrate_head(mlm, TOKENIZER, TEXTS, CFG, max_length=32)
    assert mlm.training
    for name, value in mlm.bert.state_dict().items():
        assert torch.equal(value, body[name])
    for name, value in calibrated().state_dict().items():
        assert torch.equal(value, mlm.state_dict()[name])


def test_a_calibrated_student_has_few_active_terms_on_unseen_texts(tiny_sentence):
    student = start_splade(
        config.Student(model=str(tiny_sentence), calibration=CFG, query_max_length=32, passage_max_length=32), TEXTS
    )
    ids = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in UNSEEN]
    with torch.no_grad():
        reps = student.eval()(*student.assemble(ids, 32))
    assert reps.nnz.float().mean() < 0.04 * len(TOKENIZER) + 15


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_calibration_on_texts_without_words_is_refused(texts):
    with pytest.raises(StudentError, match="needs passages"):
        calibrate_head(random_mlm(), TOKENIZER, texts, CFG)


def test_calibration_of_a_head_of_another_layout_is_refused():
    mlm = transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            pad_token_id=0,
            cls_token_id=1,
            sep_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with pytest.raises(StudentError, match="the MLM head of ModernBertForMaskedLM cannot be calibrated"):
        calibrate_head(mlm, TOKENIZER, TEXTS, CFG)
