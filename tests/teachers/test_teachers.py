"""Each kind of teacher, pair by pair, against the library that defines its scores."""

from __future__ import annotations

import math
import sys

import bm25s
import numpy as np
import pytest
import Stemmer
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling, Transformer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    RobertaConfig,
)

from distill.config import Teacher
from distill.errors import TeacherError
from teachers import cross_encoder
from teachers.base import Pairs
from teachers.execution import Execution
from tests.helpers.small_run import PASSAGES, QUERIES, VARIANTS, save_checkpoint
from tests.helpers.tiny_models import tiny_tokenizer
from tests.teachers.scoring import mined_pairs, prepared, scores_of


def test_cross_encoder_gives_the_raw_logits_of_predict(tiny_classifier, folder, pairs, texts):
    got = scores_of(Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=12), folder, pairs)
    reference = CrossEncoder(str(tiny_classifier), max_length=12, device="cpu")
    expected = reference.predict(list(zip(*texts, strict=True)), activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert len(np.unique(got.round(4))) > 30


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize(
    ("config", "options"),
    [
        (BertConfig, {}),
        (ElectraConfig, {"embedding_size": 16}),
        (RobertaConfig, {}),
        (
            DebertaV2Config,
            {
                "relative_attention": True,
                "position_buckets": 8,
                "norm_rel_ebd": "layer_norm",
                "share_att_key": True,
                "pos_att_type": ["p2c", "c2p"],
                "position_biased_input": False,
                "type_vocab_size": 0,
                "pooler_hidden_size": 32,
            },
        ),
        (ModernBertConfig, {"local_attention": 8, "classifier_pooling": "cls"}),
        (ModernBertConfig, {"local_attention": 8, "classifier_pooling": "mean"}),
    ],
)
def test_every_architecture_gives_the_logits_of_predict_with_two_labels_as_log_odds(
    config, options, labels, folder, pairs, texts, tmp_path
):
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 130,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    AutoModelForSequenceClassification.from_config(config(**size, **options, num_labels=labels)).save_pretrained(
        tmp_path / "model"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    got = scores_of(Teacher(kind="cross-encoder", model=str(tmp_path / "model"), max_length=16), folder, pairs)
    logits = CrossEncoder(str(tmp_path / "model"), max_length=16, device="cpu").predict(
        list(zip(*texts, strict=True)), activation_fn=torch.nn.Identity()
    )
    expected = logits if labels == 1 else logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-2


def test_unpadded_batches_give_the_scores_of_padded_ones(tiny_classifier, folder, pairs, monkeypatch):
    cfg = Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=64)
    padded = scores_of(cfg, folder, pairs)
    monkeypatch.setattr(cross_encoder, "kernel_serves", lambda model, execution: True)  # as on a GPU
    np.testing.assert_allclose(scores_of(cfg, folder, pairs), padded, rtol=1e-5, atol=1e-5)
    teacher = prepared(cfg, folder)
    teacher.score(pairs)
    assert teacher.work.padded_tokens == teacher.work.tokens > 0


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_keeps_the_ranking(tiny_classifier, folder, pairs):
    cfg = Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=64)
    got = scores_of(cfg, folder, pairs, Execution("cuda", "bfloat16", 1, 4096))
    assert np.corrcoef(scores_of(cfg, folder, pairs), got)[0, 1] > 0.999


def test_bfloat16_on_a_cpu_keeps_the_ranking_without_ties(tiny_classifier, folder, pairs):
    cfg = Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=64)
    exact = scores_of(cfg, folder, pairs)
    coarse = scores_of(cfg, folder, pairs, Execution("cpu", "bfloat16", 1, 64))
    assert np.corrcoef(exact, coarse)[0, 1] > 0.999
    assert len(np.unique(coarse)) == len(np.unique(exact))


def test_scores_do_not_depend_on_the_batch_budget(tiny_classifier, folder, pairs):
    cfg = Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=64)
    one = scores_of(cfg, folder, pairs, Execution("cpu", "float32", 1, 1))
    all_at_once = scores_of(cfg, folder, pairs, Execution("cpu", "float32", 1, 100_000))
    np.testing.assert_allclose(one, all_at_once, atol=1e-5)


def test_bi_encoder_gives_the_similarity_of_sentence_transformer(tiny_sentence, folder):
    mined = mined_pairs(folder)
    got = scores_of(Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16), folder, mined)
    reference = SentenceTransformer(str(tiny_sentence), device="cpu")
    reference.max_seq_length = 16
    expected = reference.similarity_pairwise(
        *(
            encode([text[row] for row in rows])
            for encode, text, rows in (
                (reference.encode_query, QUERIES["test"], mined.query_rows),
                (reference.encode_document, PASSAGES, mined.passage_rows),
            )
        )
    )
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def sparse_encoder_scores(reference: SparseEncoder, pairs: Pairs) -> np.ndarray:
    return reference.similarity_pairwise(
        reference.encode_query([QUERIES["test"][row] for row in pairs.query_rows]),
        reference.encode_document([PASSAGES[row] for row in pairs.passage_rows]),
    ).numpy()


@pytest.mark.parametrize("query", ["model", "binary"])
def test_splade_gives_the_dot_product_of_sparse_encoder(tiny_mlm, folder, tmp_path, query):
    model = save_checkpoint(tiny_mlm, tmp_path / "splade", query={"kind": query})
    mined = mined_pairs(folder)
    got = scores_of(Teacher(kind="splade", model=str(model)), folder, mined)
    expected = sparse_encoder_scores(SparseEncoder(str(model), device="cpu"), mined)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_splade_teacher_accepts_any_other_sparse_encoder(tiny_mlm, folder, tmp_path):
    mlm = Transformer(str(tiny_mlm), transformer_task="fill-mask")
    static = SparseStaticEmbedding(mlm.tokenizer, weight=torch.rand(len(mlm.tokenizer)))
    router = Router.for_query_document(query_modules=[static], document_modules=[mlm, SpladePooling("max")])
    reference = SparseEncoder(modules=[router], device="cpu", similarity_fn_name="cosine")
    reference.save(str(tmp_path / "model"))
    mined = mined_pairs(folder)
    got = scores_of(Teacher(kind="splade", model=str(tmp_path / "model")), folder, mined)
    np.testing.assert_allclose(got, sparse_encoder_scores(reference, mined), rtol=1e-4, atol=1e-4)


def lucene_bm25(queries: list[str], texts: list[str], collection: list[str]) -> np.ndarray:
    """Lucene's formula, [queries, texts], with the statistics of the collection."""
    queries, texts, collection = (
        bm25s.tokenize(part, stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False)
        for part in (queries, texts, collection)
    )
    n, mean_length = len(collection), np.mean([len(words) for words in collection])

    def weight(word: str, words: list[str]) -> float:
        df, tf = sum(word in each for each in collection), words.count(word)
        return math.log(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + 1.5 * (0.25 + 0.75 * len(words) / mean_length))

    known = {word for words in collection for word in words}
    return np.array([[sum(weight(w, words) for w in query if w in known) for words in texts] for query in queries])


def test_bm25_is_lucenes_formula_with_the_collections_statistics_also_for_variants(folder, pairs):
    scores = scores_of(Teacher(kind="bm25"), folder, pairs).reshape(len(QUERIES["test"]), -1)
    expected = lucene_bm25(QUERIES["test"], [*PASSAGES, *(text for text, _ in VARIANTS)], PASSAGES)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    assert scores[2, 10] > 0  # "wind and rain": the variant of passage 6 still has the wind in it


def log_odds(model: LlamaForCausalLM, ids: list[int], yes: int, no: int) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return (logits[yes] - logits[no]).item()


def test_llm_gives_the_log_odds_of_its_answers(tiny_mlm, folder, pairs, texts, tmp_path):
    cfg, model, tokenizer = language_model(tiny_mlm, tmp_path, max_length=64)
    scores = scores_of(cfg, folder, pairs)
    answers = tokenizer.convert_tokens_to_ids(["good", "bad"])
    for i in range(0, len(pairs), 5):
        prompt = tokenizer(cfg.template.format(query=texts[0][i], passage=texts[1][i]))["input_ids"]
        assert scores[i] == pytest.approx(log_odds(model, prompt, *answers), abs=1e-4)


def test_llm_truncates_the_passage_and_keeps_the_template(tiny_mlm, folder, pairs, texts, tmp_path):
    cfg, model, tokenizer = language_model(tiny_mlm, tmp_path, max_length=18)
    scores = scores_of(cfg, folder, pairs)
    answers = tokenizer.convert_tokens_to_ids(["good", "bad"])
    tail = len(tokenizer("good or bad : ", add_special_tokens=False)["input_ids"]) + 1
    prompts = tokenizer([cfg.template.format(query=q, passage=p) for q, p in zip(*texts, strict=True)])["input_ids"]
    assert sum(len(prompt) > 18 for prompt in prompts) > len(prompts) / 4
    for score, prompt in zip(scores, prompts, strict=True):
        cut = prompt if len(prompt) <= 18 else prompt[: 18 - tail] + prompt[-tail:]
        assert score == pytest.approx(log_odds(model, cut, *answers), abs=1e-4)


def test_a_user_defined_class_is_a_teacher_and_must_return_one_number_per_pair(
    folder, pairs, texts, tmp_path, monkeypatch
):
    (tmp_path / "own_ranker.py").write_text(
        "class Longest:\n"
        "    def __init__(self, factor=1): self.factor = factor\n"
        "    def score(self, queries, passages): return [self.factor * len(p) for p in passages]\n"
        "class Wrong:\n"
        "    def score(self, queries, passages): return [1.0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_ranker", raising=False)
    scores = scores_of(Teacher(kind="custom", cls="own_ranker:Longest", options={"factor": 2}), folder, pairs)
    assert scores.tolist() == [2 * len(passage) for passage in texts[1]]
    with pytest.raises(TeacherError, match="one number per pair"):
        scores_of(Teacher(kind="custom", cls="own_ranker:Wrong"), folder, pairs)
    with pytest.raises(TeacherError, match="cannot import"):
        scores_of(Teacher(kind="custom", cls="own_ranker:Missing"), folder, pairs)
    del sys.modules["own_ranker"]


def language_model(tiny_mlm, tmp_path, max_length: int):
    tokenizer = AutoTokenizer.from_pretrained(tiny_mlm)
    torch.manual_seed(4)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.2,
        )
    ).eval()
    path = tmp_path / "llm"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    cfg = Teacher(
        kind="llm",
        model=str(path),
        max_length=max_length,
        options={"yes": "good", "no": "bad"},
        template="the {query} ? {passage} good or bad : ",
    )
    return cfg, model, tokenizer
