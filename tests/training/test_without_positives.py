"""Lists without a positive in training: each loss equals its formula on them, and what needs a positive is refused."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill import config
from distill.config import meaning_of
from distill.errors import RecipeError
from distill.losses.objective import GlobalSlice, Supervision, objective
from distill.run.run import Run
from distill.store.labels import Labels
from distill.training.batches import Sampler, TrainingData
from distill.training.checks import check_losses
from tests.helpers.small_run import QUERIES, small_recipe, write_queries, write_run
from tests.losses.reference import V, assert_same, sparse

QUERY_COUNT, PASSAGES, NEGATIVES = 4, 6, 3
M = 1 + NEGATIVES


@pytest.fixture
def batch():
    """A batch of lists without a positive: queries [b, V], passages [b * M, V], and the batch of the sampler."""
    torch.manual_seed(1)
    rows = np.arange(QUERY_COUNT * PASSAGES)
    labels = np.random.default_rng(2).random(len(rows)).astype(np.float32)
    shard = Labels(
        np.arange(QUERY_COUNT), np.arange(0, len(rows) + 1, PASSAGES), rows, np.zeros(len(rows), bool), labels
    )
    data = TrainingData([shard])

    def drawn(pseudo_positives: bool):
        sampled = Sampler(data, NEGATIVES, 0, pseudo_positives=pseudo_positives).next_batch(QUERY_COUNT)
        queries = torch.rand(QUERY_COUNT, V).mul(torch.rand(QUERY_COUNT, V) < 0.4).requires_grad_()
        collection = torch.rand(len(rows), V).mul(torch.rand(len(rows), V) < 0.4)
        passages = collection[torch.from_numpy(sampled.passage_rows.reshape(-1))].requires_grad_()
        return queries, passages, sampled

    return drawn


def value(loss, queries, passages, sampled):
    train = config.Train.model_validate({"losses": [loss], "negatives": NEGATIVES})
    known = torch.from_numpy(sampled.known_positives(0, QUERY_COUNT))
    supervision = Supervision(torch.from_numpy(sampled.labels), GlobalSlice(0, QUERY_COUNT), known)
    return objective(train, sparse(queries), sparse(passages), supervision, 1).total


def ranks(values):
    return [1 + sum(other > value for other in values) for value in values]


def kl(scores, labels):
    return (labels.softmax(1) * (labels.log_softmax(1) - scores.log_softmax(1))).sum(1).mean()


def margin_mse(scores, labels):
    """The teacher's best against each other passage."""
    rows, best = torch.arange(len(labels))[:, None], labels.argmax(1, keepdim=True)
    others = torch.tensor([[j for j in range(M) if j != b] for b in best[:, 0].tolist()])
    return ((scores[rows, best] - scores[rows, others]) - (labels[rows, best] - labels[rows, others])).square().mean()


def margin_mse_all(scores, labels):
    pairs = [(i, j) for i in range(M) for j in range(i)]
    return sum(((scores[:, i] - scores[:, j]) - (labels[:, i] - labels[:, j])).square().mean() for i, j in pairs) / 6


def ranknet(scores, labels):
    lists = []
    for s, y in zip(scores, labels, strict=True):
        lists.append(torch.stack([F.softplus(s[j] - s[i]) for i in range(M) for j in range(M) if y[i] > y[j]]).mean())
    return torch.stack(lists).mean()


def adr_mse(scores, labels):
    errors = []
    for s, y in zip(scores, labels, strict=True):
        for i, rank in enumerate(ranks(y.tolist())):
            approximate = 1 + sum(torch.sigmoid(s[j] - s[i]) for j in range(M) if j != i)
            errors.append((approximate - rank) ** 2 / math.log2(1 + rank))
    return torch.stack(errors).mean()


def infonce(scores, labels):
    return (scores.logsumexp(1) - scores.gather(1, labels.argmax(1, keepdim=True))[:, 0]).mean()


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        ({"kind": "kl"}, kl),
        ({"kind": "margin-mse"}, margin_mse),
        ({"kind": "margin-mse", "pairs": "all"}, margin_mse_all),
        ({"kind": "ranknet"}, ranknet),
        ({"kind": "adr-mse"}, adr_mse),
        ({"kind": "infonce", "in_batch": False, "pseudo_positive": True}, infonce),
    ],
    ids=lambda each: "" if callable(each) else "-".join(map(str, each.values())),
)
def test_a_loss_on_scores_equals_its_formula(batch, loss, formula):
    queries, passages, sampled = batch(loss.get("pseudo_positive", False))
    scores = (queries[:, None] * passages.view(QUERY_COUNT, M, V)).sum(-1)
    expected = formula(scores, torch.from_numpy(sampled.labels))
    got = value(loss, queries, passages, sampled)
    assert_same(got, expected, queries, passages, active_terms_only=True)


def test_losses_on_cosines_equal_their_formulas(batch):
    queries, passages, sampled = batch(False)
    labels = torch.from_numpy(sampled.labels)

    def cosine():
        return F.cosine_similarity(queries[:, None], passages.view(QUERY_COUNT, M, V), dim=-1)

    got = value({"kind": "cosine-similarity"}, queries, passages, sampled)
    assert_same(got, (cosine() - labels).square().mean(), queries, passages, active_terms_only=True)
    flat, y = cosine().reshape(-1), labels.reshape(-1)
    worse = torch.stack([20 * (flat[k] - flat[i]) for i in range(len(y)) for k in range(len(y)) if y[i] > y[k]])
    expected = torch.cat([worse.new_zeros(1), worse]).logsumexp(0)
    assert_same(
        value({"kind": "cosent"}, queries, passages, sampled), expected, queries, passages, active_terms_only=True
    )


def test_a_triplet_takes_the_highest_label_for_the_positive(batch):
    queries, passages, sampled = batch(True)
    best = torch.from_numpy(sampled.labels).argmax(1)
    distances = (queries[:, None] - passages.view(QUERY_COUNT, M, V)).norm(dim=-1)
    terms = [
        F.relu(distances[q, best[q]] - distances[q, j] + 5.0)
        for q in range(QUERY_COUNT)
        for j in range(M)
        if j != best[q]
    ]
    got = value({"kind": "triplet", "pseudo_positive": True}, queries, passages, sampled)
    assert_same(got, torch.stack(terms).mean(), queries, passages, active_terms_only=True)


def test_in_batch_negatives_take_the_highest_label_for_the_positive(batch):
    queries, passages, sampled = batch(True)
    positives = torch.from_numpy(sampled.labels).argmax(1) + M * torch.arange(QUERY_COUNT)
    got = value({"kind": "infonce", "pseudo_positive": True}, queries, passages, sampled)
    assert_same(got, F.cross_entropy(queries @ passages.T, positives), queries, passages, active_terms_only=True)


@pytest.mark.parametrize("loss", [{"kind": "infonce"}, {"kind": "infonce", "in_batch": False}, {"kind": "triplet"}])
def test_a_loss_that_needs_a_positive_is_refused_by_name(tmp_path, loss):
    folder = write_run(tmp_path)
    recipe = small_recipe(folder.root, train={"losses": [{"kind": "kl"}, loss]})
    check_losses(Run(recipe, folder))  # every query is judged
    write_queries(folder.queries("train"), [*QUERIES["train"], "dogs and mats"])
    with pytest.raises(
        RecipeError, match=rf"train.losses.1: {loss['kind']} needs a positive .* but 1 training queries"
    ):
        check_losses(Run(recipe, folder))
    allowed = small_recipe(folder.root, train={"losses": [{"kind": "kl"}, {**loss, "pseudo_positive": True}]})
    check_losses(Run(allowed, folder))


def test_the_data_of_other_runs_are_checked_with_the_losses_that_they_are_trained_with(tmp_path):
    folder, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    write_queries(other.queries("train"), [*QUERIES["train"], "dogs and mats"])

    def train(loss, **dataset):
        datasets = {"log": {"run": str(other.root), **dataset}}
        return Run(small_recipe(folder.root, train={"losses": [loss], "datasets": datasets}), folder)

    check_losses(train({"kind": "infonce"}, losses=[{"kind": "kl"}]))
    with pytest.raises(RecipeError, match=r"train.losses.0: infonce needs .* in .*other"):
        check_losses(train({"kind": "infonce"}))
    with pytest.raises(RecipeError, match=r"train.datasets.log.losses.0: triplet needs"):
        check_losses(train({"kind": "kl"}, losses=[{"kind": "triplet"}]))


def test_fields_that_are_not_set_leave_fingerprints_alone():
    losses = [{"kind": "infonce"}, {"kind": "triplet", "pseudo_positive": True}]
    fields = meaning_of(config.Train.model_validate({"losses": losses}))
    assert "query_weights" not in fields and "pseudo_positive" not in fields["losses"][0]
    assert fields["losses"][1]["pseudo_positive"] is True
    assert meaning_of(config.Train(query_weights="root"))["query_weights"] == "root"
