"""Each kind of teacher, pair by pair, against the library that defines its scores."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling, Transformer
from small_run import PASSAGES, QUERIES, save_checkpoint
from tiny_models import tiny_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DebertaV2Config,
    ElectraConfig,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    RobertaConfig,
)

from distill.config import Teacher
from distill.data.arrow import RowReader
from distill.data.candidates import iterate_candidates
from distill.data.files import locked
from distill.data.texts import TextStore
from distill.errors import TeacherError
from distill.mining.bm25 import build_index
from teachers import cross_encoder, vectors
from teachers.base import Pairs, open_teacher, prepare
from teachers.bi_encoder import DenseEncoder
from teachers.execution import Execution
from teachers.identity import identity

FLOAT32 = Execution("cpu", "float32", 1, 64)


def scores_of(cfg: Teacher, folder, pairs: Pairs, execution: Execution = FLOAT32) -> np.ndarray:
    identity("t", cfg, folder)
    prepare("t", cfg, folder, ["test"])
    return open_teacher("t", cfg, folder, execution).score(pairs)


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
def test_architectures_give_the_logits_of_predict_two_labels_as_log_odds(
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


def test_unpadded_batches_give_the_same_scores(tiny_classifier, folder, pairs, monkeypatch):
    cfg = Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=64)
    padded = scores_of(cfg, folder, pairs)
    monkeypatch.setattr(cross_encoder, "kernel_serves", lambda model, execution: True)  # as on a GPU
    np.testing.assert_allclose(scores_of(cfg, folder, pairs), padded, rtol=1e-5, atol=1e-5)
    teacher = open_teacher("t", cfg, folder, FLOAT32)
    teacher.score(pairs)
    assert teacher.work.padded_tokens == teacher.work.tokens > 0


@pytest.mark.gpu
def test_a_gpu_in_half_precision_keeps_the_ranking(tiny_classifier, folder, pairs):
    cfg = Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=64)
    got = scores_of(cfg, folder, pairs, Execution("cuda", "bfloat16", 1, 4096))
    assert np.corrcoef(scores_of(cfg, folder, pairs), got)[0, 1] > 0.999


def test_bfloat16_keeps_the_ranking_and_does_not_tie(tiny_classifier, folder, pairs):
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


def test_bi_encoder_gives_its_own_similarity(tiny_sentence, folder):
    mined = _mined(folder)
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
    mined = _mined(folder)
    got = scores_of(Teacher(kind="splade", model=str(model)), folder, mined)
    expected = sparse_encoder_scores(SparseEncoder(str(model), device="cpu"), mined)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_other_sparse_encoders_are_teachers_too(tiny_mlm, folder, tmp_path):
    mlm = Transformer(str(tiny_mlm), transformer_task="fill-mask")
    static = SparseStaticEmbedding(mlm.tokenizer, weight=torch.rand(len(mlm.tokenizer)))
    router = Router.for_query_document(query_modules=[static], document_modules=[mlm, SpladePooling("max")])
    reference = SparseEncoder(modules=[router], device="cpu", similarity_fn_name="cosine")
    reference.save(str(tmp_path / "model"))
    mined = _mined(folder)
    got = scores_of(Teacher(kind="splade", model=str(tmp_path / "model")), folder, mined)
    np.testing.assert_allclose(got, sparse_encoder_scores(reference, mined), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bi-encoder", "splade"])
def test_vectors_that_do_not_fit_the_memory_are_made_in_smaller_batches(
    kind, tiny_sentence, tiny_mlm, folder, tmp_path, monkeypatch
):
    model = tiny_sentence if kind == "bi-encoder" else save_checkpoint(tiny_mlm, tmp_path / "splade")
    cfg, mined = Teacher(kind=kind, model=str(model), max_length=16), _mined(folder)
    expected = scores_of(cfg, folder, mined)
    prepare("small", cfg, folder, ["test"])
    teacher = open_teacher("small", cfg, folder, Execution("cpu", "float32", 1, 1024))
    forward = BertModel.forward

    def small_memory(self, input_ids, **kwargs):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("too much")
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(BertModel, "forward", small_memory)
    np.testing.assert_allclose(teacher.score(mined), expected, rtol=1e-4, atol=1e-4)
    assert teacher.execution.batch_tokens < 1024


def test_a_text_is_encoded_once_for_all_splits_and_chunks_that_are_lost_are_made_again(
    tiny_sentence, folder, monkeypatch
):
    monkeypatch.setattr(vectors, "CHUNK", 3)
    cfg, encoded = Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16), []
    encode = DenseEncoder.vectors
    monkeypatch.setattr(
        DenseEncoder,
        "vectors",
        lambda self, store, texts, execution: (
            encoded.extend((store, text) for text in texts),
            encode(self, store, texts, execution),
        )[1],
    )
    splits = {split: _mined(folder, split) for split in ("train", "test")}

    def score(name: str) -> list[bytes]:
        prepare(name, cfg, folder, list(splits))
        teacher = open_teacher(name, cfg, folder, FLOAT32)
        return [teacher.score(pairs).tobytes() for pairs in splits.values()]

    scores = score("t")
    assert len({(store, text) for store, text in encoded}) == len(encoded)
    for lost in sorted(folder.scores("t", "vectors").glob("*/*.arrow"))[::2]:
        lost.unlink()
    assert score("t") == scores
    del splits["train"]  # planned alone: its chunks are others, its scores the same
    np.testing.assert_allclose(*(np.frombuffer(each, np.float32) for each in (score("alone")[0], scores[1])), atol=1e-6)


@pytest.mark.parametrize("kind", ["bi-encoder", "splade"])
@pytest.mark.parametrize("damage", ["cut short", "another value"])
def test_damaged_chunks_are_set_aside_and_encoded_again(kind, damage, tiny_sentence, tiny_mlm, folder, tmp_path):
    model = tiny_sentence if kind == "bi-encoder" else save_checkpoint(tiny_mlm, tmp_path / "splade")
    cfg, mined = Teacher(kind=kind, model=str(model), max_length=16), _mined(folder)
    expected = scores_of(cfg, folder, mined)
    (chunk,) = folder.scores("t", "vectors").glob("*/passages-*.arrow")
    whole = chunk.read_bytes()
    values = RowReader(chunk).batches[0].columns[-1].values.to_numpy().tobytes()
    where = whole.index(values) + len(values) // 2
    chunk.write_bytes(
        whole[:-40] if damage == "cut short" else whole[:where] + bytes([whole[where] ^ 64]) + whole[where + 1 :]
    )
    np.testing.assert_array_equal(scores_of(cfg, folder, mined), expected)
    assert chunk.read_bytes() == whole and chunk.with_name(f"{chunk.name}.damaged").exists()


def test_chunks_that_another_process_has_in_hand_come_last_and_only_if_it_gives_up(tiny_sentence, folder, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK", 2)
    cfg, mined, encoded = Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16), _mined(folder), []
    encode = DenseEncoder.vectors
    monkeypatch.setattr(
        DenseEncoder,
        "vectors",
        lambda self, store, texts, execution: (encoded.append((store, texts)), encode(self, store, texts, execution))[
            1
        ],
    )
    expected = scores_of(cfg, folder, mined)
    by_content = {(store, *texts) for store, texts in encoded}
    first, second, *others = sorted(folder.scores("t", "vectors").glob("*/passages-*.arrow"))
    theirs = second.read_bytes()
    for chunk in (first, second, *others):
        chunk.unlink()
    encoded.clear()

    encode_missing = vectors.VectorTeacher._encode_missing
    monkeypatch.setattr(
        vectors.VectorTeacher,
        "_encode_missing",
        lambda self, chunks: (
            encode_missing(self, chunks),
            second.exists() or len(encoded) < len(others) or second.write_bytes(theirs),
        ),
    )
    with locked(first), locked(second):
        np.testing.assert_array_equal(scores_of(cfg, folder, mined), expected)
    assert len(encoded) == len(others) + 1  # the second came from the process that had it in hand
    assert encoded[-1][1] == [PASSAGES[row] for row in np.load(first.with_name("passages.rows.npy"))[:2]]
    assert {(store, *texts) for store, texts in encoded} < by_content


def test_a_vector_that_is_not_finite_is_refused_and_not_kept(tiny_sentence, folder, monkeypatch):
    cfg = Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16)
    encode = DenseEncoder.vectors
    monkeypatch.setattr(
        DenseEncoder,
        "vectors",
        lambda *arguments: pa.RecordBatch.from_arrays(
            [pa.FixedSizeListArray.from_arrays(encode(*arguments).column(0).values.to_numpy() * np.float32("nan"), 32)],
            names=["vector"],
        ),
    )
    with pytest.raises(TeacherError, match="NaN or infinite values, of one of the queries in rows 0 to 3; float16"):
        scores_of(cfg, folder, _mined(folder), Execution("cpu", "float16", 1, 64))
    monkeypatch.undo()
    assert np.isfinite(scores_of(cfg, folder, _mined(folder))).all()


def test_bm25_scores_variants_on_their_own_words(folder, pairs):
    got = scores_of(Teacher(kind="bm25"), folder, pairs).reshape(len(QUERIES["test"]), -1)
    rows, scores = build_index(TextStore.open(folder.passages)).search(QUERIES["test"], len(PASSAGES))
    for query in range(len(QUERIES["test"])):
        found = rows[query][rows[query] >= 0]
        np.testing.assert_allclose(got[query, found], scores[query, : len(found)], rtol=1e-5)
        assert np.count_nonzero(got[query, : len(PASSAGES)]) == len(found)
    assert got[2, 10] > 0  # "wind and rain": the variant of passage 6 still has the wind in it


def test_llm_gives_the_log_odds_of_its_answers(tiny_mlm, folder, pairs, texts, tmp_path):
    cfg, model, tokenizer = _language_model(tiny_mlm, tmp_path, max_length=64)
    got = scores_of(cfg, folder, pairs)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("good", "bad"))
    for i in range(0, len(pairs), 5):
        prompt = cfg.template.format(query=texts[0][i], passage=texts[1][i])
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
        assert got[i] == pytest.approx((logits[yes] - logits[no]).item(), abs=1e-4)


def test_llm_cuts_the_passage_and_keeps_the_template(tiny_mlm, folder, pairs, texts, tmp_path):
    cfg, _, tokenizer = _language_model(tiny_mlm, tmp_path, max_length=18)
    prepare("t", cfg, folder, ["test"])
    teacher = open_teacher("t", cfg, folder, FLOAT32)
    prompts = teacher._tokenise(*texts)
    assert max(map(len, prompts)) == 18
    whole = tokenizer([cfg.template.format(query=q, passage=p) for q, p in zip(*texts, strict=True)])["input_ids"]
    tail = len(tokenizer("good or bad : ", add_special_tokens=False)["input_ids"]) + 1
    for ids, full in zip(prompts, whole, strict=True):
        assert ids.tolist()[-tail:] == full[-tail:]
        assert ids.tolist()[:-tail] == full[: len(ids) - tail]


def test_own_classes_by_import_path(folder, pairs, texts, tmp_path, monkeypatch):
    (tmp_path / "own_ranker.py").write_text(
        "class Longest:\n"
        "    def __init__(self, factor=1): self.factor = factor\n"
        "    def score(self, queries, passages): return [self.factor * len(p) for p in passages]\n"
        "class Wrong:\n"
        "    def score(self, queries, passages): return [1.0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    got = scores_of(Teacher(kind="custom", cls="own_ranker:Longest", options={"factor": 2}), folder, pairs)
    assert got.tolist() == [2 * len(passage) for passage in texts[1]]
    with pytest.raises(TeacherError, match="one number per pair"):
        scores_of(Teacher(kind="custom", cls="own_ranker:Wrong"), folder, pairs)
    with pytest.raises(TeacherError, match="cannot import"):
        identity("t", Teacher(kind="custom", cls="own_ranker:Missing"), folder)
    del sys.modules["own_ranker"]


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda path: (path / "model.safetensors").unlink(), "no model weights"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\0" * 100), "damaged"),
        (lambda path: (path / "config.json").write_text("{"), "not valid JSON"),
        (lambda path: (path / "config.json").unlink(), "missing"),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_refused_before_any_work(
    tiny_classifier, folder, tmp_path, break_it, message
):
    shutil.copytree(tiny_classifier, tmp_path / "broken")
    break_it(tmp_path / "broken")
    with pytest.raises(TeacherError, match=message):
        identity("t", Teacher(kind="cross-encoder", model=str(tmp_path / "broken")), folder)


def test_a_model_without_a_trained_head_is_no_cross_encoder(tiny_sentence, tiny_classifier, folder):
    with pytest.raises(TeacherError, match="no classification head"):
        identity("t", Teacher(kind="cross-encoder", model=str(tiny_sentence)), folder)
    with pytest.raises(TeacherError, match="not from the hub"):
        identity("t", Teacher(kind="cross-encoder", model="nobody/nothing"), folder)
    with pytest.raises(TeacherError, match="teacher 't' cannot be loaded: /no/such/model: no such folder"):
        identity("t", Teacher(kind="splade", model="/no/such/model"), folder)


def test_identity_follows_the_content_not_the_place(tiny_classifier, folder, tmp_path):
    shutil.copytree(tiny_classifier, tmp_path / "moved")
    here, there = (
        identity("t", Teacher(kind="cross-encoder", model=str(path)), folder)
        for path in (tiny_classifier, tmp_path / "moved")
    )
    assert here == there
    shorter = Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=32)
    assert identity("t", shorter, folder) != here


def _mined(folder, split: str = "test") -> Pairs:
    """A split's pairs as mined: a vector teacher encodes what the candidates hold."""
    ((_, candidates),) = iterate_candidates(folder.candidates(split))
    return Pairs(candidates.pair_queries, candidates.passages, split)


def _language_model(tiny_mlm, tmp_path, max_length: int):
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
