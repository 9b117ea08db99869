"""Encoding against `SparseEncoder.encode` of the same checkpoint."""

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder

from distill.errors import StudentError
from distill.retrieval import encode
from distill.retrieval.encode import encode_store, encode_texts, token_store
from distill.store.texts import TextStore
from distill.student.checkpoint import load_student
from tests.helpers.small_run import PASSAGES, QUERIES, save_checkpoint, write_run


@pytest.fixture(scope="module")
def checkpoint(tiny_mlm, tmp_path_factory):
    return save_checkpoint(tiny_mlm, tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
@pytest.mark.parametrize("slab", [3, 1000])
def test_vectors_equal_those_of_sparse_encoder(checkpoint, tmp_path, batch_tokens, slab, monkeypatch):
    monkeypatch.setattr(encode, "_SLAB", slab)  # a slab is 65,536 texts, too many for a test
    folder = write_run(tmp_path)
    student, reference = load_student(checkpoint), SparseEncoder(str(checkpoint), device="cpu")
    passages, queries = TextStore.open(folder.passages), TextStore.open(folder.queries("test"))
    rows = np.array([7, 0, 5, 5, 9, 1])  # long, short, empty and repeated
    ours = encode_store(
        student, token_store(student, passages, folder, "passages"), rows, "passage", batch_tokens=batch_tokens
    )
    expected = reference.encode_document([PASSAGES[row] for row in rows]).to_dense().numpy()
    np.testing.assert_allclose(ours.toarray(), expected, atol=1e-5)
    tokens = token_store(student, queries, folder, "queries.test")
    ours = encode_store(student, tokens, np.arange(4), "query", batch_tokens=batch_tokens)
    expected = reference.encode_query(QUERIES["test"]).to_dense().numpy()
    np.testing.assert_allclose(ours.toarray(), expected, atol=1e-5)
    ours = encode_texts(student, QUERIES["test"], "query", batch_tokens=batch_tokens)
    np.testing.assert_allclose(ours.toarray(), expected, atol=1e-5)


def test_half_precision_vectors_are_close_to_single_precision(checkpoint, tmp_path):
    folder = write_run(tmp_path)
    student, passages = load_student(checkpoint), TextStore.open(folder.passages)
    tokens, rows = token_store(student, passages, folder, "passages"), np.arange(len(PASSAGES))
    single = encode_store(student, tokens, rows, "passage")
    half = encode_store(student, tokens, rows, "passage", precision="bfloat16")
    assert half.dtype == np.float32 and (single != half).nnz
    np.testing.assert_allclose(half.toarray(), single.toarray(), atol=0.1)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"query": {"kind": "lexical"}}], ids=str)
def test_vectors_that_are_not_finite_are_refused_with_a_remedy(tiny_mlm, tmp_path, options):
    student = load_student(save_checkpoint(tiny_mlm, tmp_path / "model", **options))
    folder = write_run(tmp_path)
    tokens = token_store(student, TextStore.open(folder.passages), folder, "passages")
    with torch.no_grad():
        student.head.weight.mul_(1e6)  # past float16's largest number
    assert np.isfinite(encode_texts(student, PASSAGES, "query").data).all()
    with pytest.raises(StudentError, match=r"query vectors .* float16: set evaluate\.precision, mine\.precision"):
        encode_texts(student, PASSAGES, "query", precision="float16")
    with pytest.raises(StudentError, match=r"passage vectors .* in float16: .* to bfloat16 or float32"):
        encode_store(student, tokens, np.arange(3), "passage", precision="float16")
    with torch.no_grad():
        student.head.weight.fill_(torch.nan)
    with pytest.raises(StudentError, match=r"in float32.* weights are broken"):
        encode_texts(student, PASSAGES, "query")


def test_vectors_of_a_query_table_that_is_not_finite_are_refused(tiny_mlm, tmp_path):
    for kind in ("binary", "lexical"):
        student = load_student(save_checkpoint(tiny_mlm, tmp_path / kind, query={"kind": kind}))
        with torch.no_grad():
            student.table.weight.fill_(torch.nan)
        with pytest.raises(StudentError, match="query vectors have NaN"):
            encode_texts(student, PASSAGES, "query")


def test_prompts_and_top_k_of_the_checkpoint_are_applied(tiny_mlm, tmp_path):
    path = save_checkpoint(tiny_mlm, tmp_path / "model", top_k=5)
    student = load_student(path)
    student.prompts = {"query": "find: ", "document": "text: "}
    reference = SparseEncoder(str(path), device="cpu", prompts=student.prompts)
    for side, encode_side in (("query", reference.encode_query), ("passage", reference.encode_document)):
        ours = encode_texts(student, PASSAGES[:4], side)
        np.testing.assert_allclose(ours.toarray(), encode_side(PASSAGES[:4]).to_dense().numpy(), atol=1e-5)
        assert ours.getnnz(axis=1).max() == 5


def test_encoding_restores_training_mode_and_accepts_no_texts(checkpoint):
    student = load_student(checkpoint).train()
    assert encode_texts(student, [], "query").shape == (0, student.vocab_size)
    encode_texts(student, ["text"], "query")
    assert student.training


def test_a_batch_that_does_not_fit_in_memory_is_cut_and_so_are_the_further_ones(checkpoint, monkeypatch):
    texts = [" ".join(["cat"] * (1 + n % 7)) + f" {n}" for n in range(40)]
    student = load_student(checkpoint)
    monkeypatch.setattr(encode, "_CPU_BATCH_TOKENS", 200)
    expected = encode_texts(student, texts, "passage")
    sizes, forward = [], type(student).forward

    def small_memory(self, input_ids, *args, **kwargs):
        sizes.append(input_ids.numel())
        if input_ids.numel() > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(student), "forward", small_memory)
    ours = encode_texts(student, texts, "passage")
    with pytest.raises(torch.OutOfMemoryError):
        encode_texts(student, texts, "passage", batch_tokens=200)  # the caller's own choice
    sizes.pop()
    np.testing.assert_allclose(ours.toarray(), expected.toarray(), atol=1e-5)
    assert [size > 50 for size in sizes].count(True) == 2  # 200 and 100 tokens, once each
