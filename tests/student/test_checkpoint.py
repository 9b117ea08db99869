"""Saved students load into sentence-transformers and transformers, and give the same vectors."""

from __future__ import annotations

import json

import pytest
import torch
from sentence_transformers import SparseEncoder
from transformers import AutoModelForMaskedLM, BertTokenizer

from distill import config
from distill.errors import ModelError, RecipeError, StudentError
from distill.retrieval.encode import encode_texts
from distill.student.checkpoint import load_student, save_student
from distill.student.model import start_splade
from tests.helpers.tiny_models import tiny_tokenizer

TEXTS = ["the function returns a sorted list", "open the file for reading", "", "set " * 60]


def vectors(student, texts, max_length):
    ids = [student.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with torch.no_grad():
        reps = student.eval()(*student.assemble(ids, max_length))
    return (reps if student.top_k is None else reps.top_k(student.top_k)).to_dense()


@pytest.mark.parametrize("options", [{}, {"pooling": "sum"}, {"activation": "log1p_relu"}, {"top_k": 7}], ids=str)
def test_sparse_encoder_loads_a_saved_student_to_the_same_vectors(tiny_mlm, tmp_path, options):
    student = start_splade(config.Student(model=str(tiny_mlm), query_max_length=16, passage_max_length=40, **options))
    save_student(student, tmp_path / "model")
    encoder = SparseEncoder(str(tmp_path / "model"), device="cpu")
    close = {"rtol": 1e-5, "atol": 1e-5}
    documents = encoder.encode_document(TEXTS, convert_to_sparse_tensor=False)
    torch.testing.assert_close(documents, vectors(student, TEXTS, 40), **close)
    queries = encoder.encode_query(TEXTS, convert_to_sparse_tensor=False)
    torch.testing.assert_close(queries, vectors(student, TEXTS, 16), **close)
    torch.testing.assert_close(encoder.encode(TEXTS, convert_to_sparse_tensor=False), documents)
    assert encoder.max_seq_length == 40
    types = [module["type"] for module in json.loads((tmp_path / "model/modules.json").read_text())]
    assert [kind.rsplit(".", 1)[-1] for kind in types] == ["Transformer", "SpladePooling"]

    again = load_student(tmp_path / "model")
    assert (again.query_max_length, again.passage_max_length, again.top_k) == (16, 40, options.get("top_k"))
    torch.testing.assert_close(vectors(again, TEXTS, 40), vectors(student, TEXTS, 40), rtol=0, atol=0)


@pytest.mark.parametrize("query", ["model", "binary"])
def test_lower_casing_is_saved_with_the_tokenizers_of_model_and_query_table(tiny_mlm, tmp_path, query):
    AutoModelForMaskedLM.from_pretrained(tiny_mlm).save_pretrained(tmp_path / "cased")
    BertTokenizer(vocab=tiny_tokenizer().get_vocab(), do_lower_case=False, model_max_length=128).save_pretrained(
        tmp_path / "cased"
    )
    cased, lowered = (
        start_splade(config.Student(model=str(tmp_path / "cased"), lower_case=lower_case, query={"kind": query}))
        for lower_case in (False, True)
    )
    save_student(lowered, tmp_path / "model")
    encoder, shouted = SparseEncoder(str(tmp_path / "model"), device="cpu"), [text.upper() for text in TEXTS]
    for side, encode in (("query", encoder.encode_query), ("passage", encoder.encode_document)):
        expected = encode_texts(lowered, TEXTS, side).toarray()
        assert (expected != encode_texts(cased, shouted, side).toarray()).any()
        for ours in (lowered, load_student(tmp_path / "model")):
            assert (encode_texts(ours, shouted, side).toarray() == expected).all()
        torch.testing.assert_close(
            encode(shouted, convert_to_sparse_tensor=False), torch.from_numpy(expected), rtol=1e-5, atol=1e-5
        )


def test_a_saved_folder_is_a_plain_masked_language_model_with_its_ties(tiny_mlm, tmp_path):
    student = start_splade(config.Student(model=str(tiny_mlm)))
    save_student(student, tmp_path / "model")
    plain, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, student.mlm.get_parameter(name))


def test_saving_replaces_a_checkpoint_and_keeps_prompts(tiny_mlm, tmp_path):
    student = start_splade(config.Student(model=str(tiny_mlm), query_max_length=8))
    save_student(student, tmp_path / "model")
    student.prompts = {"query": "find: "}
    with torch.no_grad():
        student.head.weight.mul_(2)
    save_student(student, tmp_path / "model")
    again = load_student(tmp_path / "model")
    assert again.prompts == {"query": "find: "} and again.query_max_length == 8
    assert torch.equal(again.head.weight, student.head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_plain_masked_language_model_loads_as_a_splade_checkpoint(tiny_mlm):
    student = load_student(tiny_mlm)
    encoder = SparseEncoder(str(tiny_mlm), device="cpu")
    torch.testing.assert_close(
        encoder.encode(TEXTS, convert_to_sparse_tensor=False),
        vectors(student, TEXTS, student.passage_max_length),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_older_layout_of_sentence_transformers_loads(tiny_mlm, tmp_path):
    student = start_splade(config.Student(model=str(tiny_mlm), pooling="sum"))
    folder = tmp_path / "model"
    save_student(student, folder)
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": 0,
                    "name": "0",
                    "path": "",
                    "type": "sentence_transformers.sparse_encoder.models.MLMTransformer",
                },
                {
                    "idx": 1,
                    "name": "1",
                    "path": "1_SpladePooling",
                    "type": "sentence_transformers.sparse_encoder.models.SpladePooling",
                },
            ]
        )
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    again = load_student(folder)
    assert again.head.pooling == "sum" and again.passage_max_length == again.query_max_length == 24


def test_loading_a_model_that_is_not_a_splade_checkpoint_is_refused(tiny_sentence, tmp_path):
    with pytest.raises(StudentError, match="not a SPLADE checkpoint"):
        load_student(tiny_sentence)
    for load in (load_student, lambda name: start_splade(config.Student(model=str(name)))):
        with pytest.raises(ModelError, match="nothing: no such folder"):
            load(tmp_path / "nothing")


@pytest.mark.parametrize("content", [{"cls": "evil.module:Student"}, {"cls": "os:system"}, {"cls": "evil:X"}])
def test_a_class_that_a_checkpoint_names_runs_no_code_without_trust(tiny_mlm, tmp_path, monkeypatch, content):
    save_student(start_splade(config.Student(model=str(tiny_mlm), query_max_length=16)), tmp_path / "model")
    (tmp_path / "model" / "student.json").write_text(json.dumps(content))
    (tmp_path / "evil").mkdir()
    for name in ("__init__", "module"):
        (tmp_path / "evil" / f"{name}.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudentError, match=r"names the class .*, whose code would run.*--trust-remote-code"):
        load_student(tmp_path / "model")
    assert not (tmp_path / "ran").exists()
    with pytest.raises((StudentError, RecipeError)):  # trusted, but no student
        load_student(tmp_path / "model", trust_remote_code=True)


@pytest.mark.parametrize("content", ["null", "5", "{}", '{"cls": 3}', "[]"])
def test_a_damaged_file_of_the_class_is_a_message(tiny_mlm, tmp_path, content):
    save_student(start_splade(config.Student(model=str(tiny_mlm), query_max_length=16)), tmp_path / "model")
    (tmp_path / "model" / "student.json").write_text(content)
    with pytest.raises(StudentError, match="damaged, it names no class"):
        load_student(tmp_path / "model")
