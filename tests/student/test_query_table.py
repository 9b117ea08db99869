"""Query tables give the vectors of sentence-transformers' Router, and the gradients of the plain dense formula."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding, SpladePooling, Transformer

from distill import config
from distill.errors import StudentError
from distill.retrieval.encode import encode_texts
from distill.sparse.reps import RepsGradient
from distill.student.checkpoint import load_student, save_student
from distill.student.model import start_splade
from tests.helpers.tiny_models import tiny_tokenizer
from tests.student.test_model import random_mlm

TEXTS = ["the function returns a sorted list", "open the file, open it for reading", "set " * 60, "zzz [SEP] file", ""]
COUNTED = ["the file", "open the file", "a list of the list"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def document_frequencies(tokenizer, max_length):
    counts = np.zeros(len(tokenizer), np.int64)
    for text in COUNTED:
        counts[list(set(tokenizer(text, add_special_tokens=False)["input_ids"][:max_length]))] += 1
    return counts, len(COUNTED)


def student_of(model, kind, **options):
    cfg = config.Student.model_validate(
        {"model": str(model), "query": {"kind": kind}, "query_max_length": 9, "passage_max_length": 20, **options}
    )
    return start_splade(cfg, document_frequencies=document_frequencies)


def both(student, texts=TEXTS):
    return [torch.from_numpy(encode_texts(student, texts, side).toarray()) for side in ("query", "passage")]


def theirs(encoder, texts=TEXTS):
    return [encode(texts, convert_to_sparse_tensor=False) for encode in (encoder.encode_query, encoder.encode_document)]


def assert_same(got, expected):
    for ours, other in zip(got, expected, strict=True):
        assert other.count_nonzero() > 0
        torch.testing.assert_close(ours, other, **CLOSE)


@pytest.mark.parametrize("kind", ["lexical", "binary", "idf", "learned"])
def test_a_saved_query_table_loads_into_sparse_encoder_and_back(tiny_mlm, tmp_path, kind):
    student = student_of(tiny_mlm, kind, activation="log1p_relu", top_k=None if kind == "binary" else 5)
    student.prompts = {"query": "find: "}
    if kind == "learned":
        with torch.no_grad():
            student.table.weight[::3] *= 0.5
            student.table.weight[student.tokenizer.convert_tokens_to_ids("file")] = -1.0
    save_student(student, tmp_path / "model")
    encoder = SparseEncoder(str(tmp_path / "model"), device="cpu")
    assert_same(both(student), theirs(encoder))
    torch.testing.assert_close(encoder.encode(TEXTS, convert_to_sparse_tensor=False), both(student)[1], **CLOSE)

    again = load_student(tmp_path / "model")
    assert (again.query_max_length, again.passage_max_length) == (9, 20)
    assert again.table.learned == (kind == "learned") and again.inference_free == (kind != "lexical")
    for ours, before in zip(both(again), both(student), strict=True):
        assert torch.equal(ours, before)
    encoder.save(str(tmp_path / "theirs"))  # once more, as sentence-transformers saves it
    assert_same(both(load_student(tmp_path / "theirs")), theirs(encoder))


@pytest.mark.parametrize("kind", ["learned", "idf", "model"])
def test_a_later_round_starts_from_the_previous_student_and_its_learned_table(tiny_mlm, tmp_path, kind):
    first = student_of(tiny_mlm, "learned")
    with torch.no_grad():
        first.head.weight.mul_(1.5)
        first.table.weight.mul_(1.5)
    save_student(first, tmp_path / "ours")
    SparseEncoder(str(tmp_path / "ours"), device="cpu").save(str(tmp_path / "theirs"))  # weights in a folder inside
    for path in (tmp_path / "ours", tmp_path / "theirs"):
        second = student_of(path, kind)
        assert torch.equal(second.head.weight, first.head.weight)
        if kind != "model":
            assert torch.equal(second.table.weight, first.table.weight / (1 if kind == "learned" else 1.5))


@pytest.mark.parametrize("lexical", [False, True])
def test_a_router_saved_by_sentence_transformers_loads(tiny_mlm, tmp_path, lexical):
    transformer = Transformer(str(tiny_mlm), transformer_task="fill-mask", max_seq_length=20)
    weight = torch.rand(len(transformer.tokenizer), generator=torch.Generator().manual_seed(0)) + 0.1
    pooling, static = SpladePooling("max"), SparseStaticEmbedding(transformer.tokenizer, weight, frozen=True)
    query = [transformer, SpladePooling("max"), static] if lexical else [static]
    encoder = SparseEncoder(
        modules=[Router.for_query_document(query, [transformer, pooling])], device="cpu", similarity_fn_name="dot"
    )
    encoder.save(str(tmp_path / "model"))
    assert_same(both(load_student(tmp_path / "model")), theirs(encoder))


def test_the_layout_of_opensearch_models_loads(tiny_mlm, tmp_path):
    """Their layout: older names of modules, weights and tokenizer at the root, no lengths."""
    student = student_of(tiny_mlm, "idf", activation="log1p_relu")
    save_student(student, tmp_path)
    (tmp_path / "sentence_bert_config.json").unlink()
    old = "sentence_transformers.sparse_encoder.models"
    (tmp_path / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}])
    )
    (tmp_path / "1_SpladePooling").rename(tmp_path / "document_1_SpladePooling")
    (tmp_path / "router_config.json").write_text(
        json.dumps(
            {
                "types": {
                    "query_0_SparseStaticEmbedding": f"{old}.SparseStaticEmbedding.SparseStaticEmbedding",
                    "": f"{old}.MLMTransformer.MLMTransformer",
                    "document_1_SpladePooling": f"{old}.SpladePooling.SpladePooling",
                },
                "structure": {"query": ["query_0_SparseStaticEmbedding"], "document": ["", "document_1_SpladePooling"]},
                "parameters": {"default_route": "document", "allow_empty_key": True},
            }
        )
    )
    again = load_student(tmp_path)
    assert again.inference_free and not again.table.learned and again.head.activation == "log1p_relu"
    assert_same(both(again), both(student))
    assert_same(both(again), theirs(SparseEncoder(str(tmp_path), device="cpu")))


def test_an_opensearch_idf_json_gives_the_weights_that_sentence_transformers_reads(tiny_mlm, tmp_path):
    (tmp_path / "idf.json").write_text(json.dumps({"file": 2.5, "open": 1.5, "[SEP]": 0.25, "the": 0.125}))
    student = student_of(tiny_mlm, "binary", query={"kind": "idf", "file": str(tmp_path / "idf.json")})
    static = SparseStaticEmbedding.from_json(str(tmp_path / "idf.json"), student.tokenizer)
    expected = static(static.preprocess(TEXTS))["sentence_embedding"].detach()
    torch.testing.assert_close(both(student)[0], expected, rtol=0, atol=0)
    (tmp_path / "idf.json").write_text("[1, 2]")
    with pytest.raises(StudentError, match=r"student\.query\.file"):
        student_of(tiny_mlm, "binary", query={"kind": "idf", "file": str(tmp_path / "idf.json")})


def test_idf_weights_come_from_the_passages_and_binary_weights_are_one(tiny_mlm):
    query, weights = "open the the file [CLS]", []
    for kind in ("binary", "idf"):
        student = student_of(tiny_mlm, kind)
        vector = both(student, [query])[0][0]
        ids = student.tokenizer.convert_tokens_to_ids(["open", "the", "file"])
        assert set(vector.nonzero().flatten().tolist()) == set(ids)  # special tokens weigh nothing
        weights.append(vector[ids].tolist())
    assert weights[0] == [1, 1, 1]
    assert weights[1] == pytest.approx([math.log(1 + (3 - n + 0.5) / (n + 0.5)) for n in (1, 3, 2)])


def test_inference_free_queries_without_tokens_are_empty(tiny_mlm):
    assert both(student_of(tiny_mlm, "idf"), ["", " "])[0].count_nonzero() == 0


def test_lexical_queries_are_the_models_vectors_without_expansion(tiny_mlm):
    full, lexical = student_of(tiny_mlm, "model"), student_of(tiny_mlm, "lexical")
    full.query_max_length = lexical.query_max_length = 20
    queries, passages = both(lexical)
    torch.testing.assert_close(passages, both(full)[1], rtol=0, atol=0)
    expected = torch.zeros_like(queries)
    for i, text in enumerate(TEXTS):
        own = [t for t in full.tokenizer(text)["input_ids"][:20] if t not in full.tokenizer.all_special_ids]
        expected[i, own] = both(full)[0][i, own]
    assert 0 < queries.count_nonzero() < both(full)[0].count_nonzero()
    torch.testing.assert_close(queries, expected, rtol=0, atol=0)


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("kind", ["lexical", "learned"])
def test_query_table_gradients_and_surrogate_equal_autograd_on_the_dense_formula(tiny_mlm, kind, pooling):
    student = student_of(tiny_mlm, kind, pooling=pooling).eval()
    with torch.no_grad():
        student.table.weight[10:300] = torch.rand(290) - 0.2  # some terms at or below zero
    ids = [np.array(student.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    inputs = student.assemble(ids, 9, "query")
    reps = student(*inputs, side="query")
    assert (reps.values > 0).all()
    upstream = torch.randn(len(ids), student.vocab_size, generator=torch.Generator().manual_seed(1))
    at_terms = upstream[reps.row_ids, reps.terms]

    present = torch.zeros(len(ids), student.vocab_size).scatter(1, inputs[0], inputs[1].float())
    dense = present * student.table.weight.relu()
    if kind == "lexical":
        mlm = random_bert(student)
        logits = mlm(input_ids=inputs[0], attention_mask=inputs[1]).logits * inputs[1][..., None]
        weights = logits.relu().log1p()
        dense = dense * (weights.max(1).values if pooling == "max" else weights.sum(1))
    torch.testing.assert_close(reps.to_dense(), dense, **CLOSE)
    trained = student.table if kind == "learned" else student.mlm
    reference = dict(trained.named_parameters() if kind == "learned" else mlm.named_parameters())
    (dense * upstream).sum().backward()
    expected = {name: p.grad.clone() for name, p in reference.items() if p.grad is not None}
    assert expected
    for loss in (
        (reps.values * at_terms).sum(),
        student.surrogate(*inputs, "query", reps.detach(), RepsGradient(at_terms)),
    ):
        trained.zero_grad()
        loss.backward()
        for name, gradient in expected.items():
            torch.testing.assert_close(trained.get_parameter(name).grad, gradient, rtol=1e-4, atol=2e-6)


def random_bert(student):
    """The student's masked language model with its own decoder back in place."""
    from transformers import BertForMaskedLM

    mlm = BertForMaskedLM(student.mlm.config).eval()
    mlm.load_state_dict(student.mlm.state_dict())
    return mlm


def test_embedding_rows_that_only_pad_the_vocabulary_are_cut_for_the_router(tmp_path):
    tokenizer = tiny_tokenizer()
    mlm = random_mlm("ModernBert", vocab_size=len(tokenizer) + 7)
    mlm.save_pretrained(tmp_path / "mlm")
    tokenizer.save_pretrained(tmp_path / "mlm")
    student = student_of(tmp_path / "mlm", "binary")
    assert student.vocab_size == len(tokenizer)
    save_student(student, tmp_path / "model")
    assert_same(both(student), theirs(SparseEncoder(str(tmp_path / "model"), device="cpu")))


def test_routers_with_other_routes_are_refused(tiny_mlm, tmp_path):
    transformer, other = (Transformer(str(tiny_mlm), transformer_task="fill-mask") for _ in range(2))
    pooling, static = SpladePooling("max"), SparseStaticEmbedding(transformer.tokenizer)
    for query in ([other, pooling], [other, pooling, static], [transformer, SpladePooling("sum"), static]):
        router = Router.for_query_document(query, [transformer, pooling])
        SparseEncoder(modules=[router], device="cpu").save(str(tmp_path / "two"))
        with pytest.raises(StudentError, match="its routes are query: Transformer"):
            load_student(tmp_path / "two")
