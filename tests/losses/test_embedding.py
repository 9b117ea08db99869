"""embedding-mse: sentence-transformers' loss on dense representations, and what a recipe may ask for."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sparse_encoder import losses as st

from distill import config
from distill.losses.objective import GlobalSlice, Supervision, objective
from distill.recipe.load import parse_recipe
from tests.losses.reference import LISTS, B, V, assert_same, sparse


@pytest.fixture
def sides():
    """(student, teacher) by side: dense queries and passages, some of them empty in one or both."""
    torch.manual_seed(0)
    by_side = {}
    for side, texts in (("query", B), ("passage", B * LISTS)):
        student, teacher = (torch.rand(texts, V).mul(torch.rand(texts, V) < 0.3) for _ in range(2))
        student[1], teacher[2] = 0, 0
        student[3] = teacher[3] = 0
        by_side[side] = student.requires_grad_(), teacher
    return by_side


def ours(sides, top_ks=(), **loss):
    train = config.Train.model_validate(
        {"losses": [{"kind": "embedding-mse", "teacher": "t", **loss}], "top_ks": top_ks}
    )
    targets = {("t", side): sparse(teacher) for side, (_, teacher) in sides.items()}
    return objective(
        train,
        *(sparse(student) for student, _ in sides.values()),
        Supervision(torch.randn(B, LISTS), GlobalSlice(0, B), targets=targets),
        1,
    ).total


def theirs(sides, of=("query", "passage"), change=lambda student: student):
    columns = []  # as sentence-transformers wants them: queries, positives, first negatives, ...
    if "query" in of:
        columns.append(sides["query"])
    if "passage" in of:
        student, teacher = (side.view(B, LISTS, V) for side in sides["passage"])
        columns += [(student[:, i], teacher[:, i]) for i in range(LISTS)]
    student, teacher = zip(*columns, strict=True)
    # an inactive term of the student passes no gradient on
    return st.SparseMSELoss(None).compute_loss_from_embeddings([change(x) * (x > 0) for x in student], list(teacher))


@pytest.mark.parametrize("of", [["query"], ["passage"], ["query", "passage"]])
def test_embedding_mse_equals_sentence_transformers_on_dense_representations(sides, of):
    got = ours(sides, of="both" if len(of) == 2 else of[0], weight=3.0)
    assert_same(got, 3.0 * theirs(sides, of), *(sides[side][0] for side in of))


def test_embedding_mse_with_top_k_caps_is_the_weighted_mean_over_the_caps(sides):
    inputs = [student for student, _ in sides.values()]

    def cap(k):
        return lambda student: student * (student >= student.topk(k, dim=1).values[:, -1:])

    expected = 0.75 * theirs(sides, change=cap(4)) + 0.25 * theirs(sides)
    assert_same(ours(sides, [{"k": 4, "weight": 3.0}, {"k": None}]), expected, *inputs)


LOSS = {"kind": "embedding-mse", "teacher": "sparse"}


@pytest.mark.parametrize(
    ("student", "train", "message"),
    [
        ({}, {"losses": [{**LOSS, "teacher": "nobody"}]}, r"'nobody', which is not among the teachers \(sparse, bm25"),
        ({}, {"losses": [{**LOSS, "teacher": "bm25"}]}, "names 'bm25', a bm25 teacher: only those of kind splade"),
        (
            {"query": {"kind": "idf"}},
            {"losses": [LOSS]},
            "train.losses: .* student.query is idf.* set its `of` to passage",
        ),
        (
            {"query": {"kind": "binary"}},
            {"datasets": {"more": {"run": "x", "losses": [{**LOSS, "of": "query"}]}}},
            "train.datasets.more.losses: .* no effect on queries",
        ),
        ({"query": {"kind": "idf"}}, {"losses": [{**LOSS, "of": "passage"}]}, None),
        ({"query": {"kind": "learned"}}, {"losses": [LOSS]}, None),
    ],
)
def test_embedding_mse_refuses_a_teacher_or_side_it_cannot_teach(student, train, message):
    tree = {
        "name": "x",
        "data": {"source": {"kind": "python-docs"}},
        "teachers": {"sparse": {"kind": "splade", "model": "a"}, "bm25": {"kind": "bm25"}},
        "student": {"model": "b", **student},
        "train": train,
    }
    if message is None:
        parse_recipe(tree)
    else:
        with pytest.raises(Exception, match=message):
            parse_recipe(tree)
