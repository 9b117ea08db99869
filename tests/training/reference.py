"""A plain single-process reference of a training step: materialised logits, dense representations, plain autograd."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import torch
from sentence_transformers.sparse_encoder import losses
from torch.nn import functional as F
from transformers import BertForMaskedLM

from distill import config
from distill.sparse.collective import sum_over_processes

BATCH, LISTS = 6, 3
QUERY_LENGTH, PASSAGE_LENGTH = 12, 24
BUILT_IN_LOSSES = [  # besides those of `train_section`
    {"kind": "ranknet", "pair_weights": "ndcg"},
    {"kind": "adr-mse", "weight": 0.1},
    {"kind": "cosine-similarity"},
    {"kind": "triplet", "margin": 1.0, "weight": 0.5},
    {"kind": "cosent", "scale": 3.0},
    {"kind": "angle", "scale": 2.0},
]


def make_batch(seed: int, vocab_size: int):
    """Token ids of queries [6] and passages [6 * 3] of very unequal lengths (one empty), and labels [6, 3]."""
    rng = np.random.default_rng(seed)
    queries = [rng.integers(20, vocab_size, rng.integers(1, 9)) for _ in range(BATCH)]
    passages = [rng.integers(20, vocab_size, rng.integers(2, 30)) for _ in range(BATCH * LISTS)]
    passages[1] = passages[1][:0]
    return queries, passages, torch.from_numpy(rng.normal(size=(BATCH, LISTS)).astype(np.float32) * 4)


def dense_reps(model: BertForMaskedLM, ids: list[np.ndarray], max_length: int) -> torch.Tensor:
    """[n, V], one text at a time: [CLS] ids [SEP], no padding."""
    reps = []
    for text in ids:
        row = torch.tensor([[2, *text[: max_length - 2].tolist(), 3]])
        reps.append(torch.log1p(model(input_ids=row).logits[0].max(dim=0).values.relu()))
    return torch.stack(reps)


def table_weights(vocab_size: int) -> torch.Tensor:
    """Weights [V] of a query table, some of them zero."""
    return (torch.rand(vocab_size, generator=torch.Generator().manual_seed(7)) * 3 - 0.3).clamp(min=0)


def dense_queries(model: BertForMaskedLM, table: torch.Tensor | None, kind: str, ids: list[np.ndarray]) -> torch.Tensor:
    """[n, V]: by the model, by a table [V] over the query's own tokens, or (lexical, with special tokens) by both."""
    if kind == "model":
        return dense_reps(model, ids, QUERY_LENGTH)
    own = torch.zeros(len(ids), model.config.vocab_size)
    for row, text in zip(own, ids, strict=True):
        row[[2, 3, *text[: QUERY_LENGTH - 2]] if kind == "lexical" else text[:QUERY_LENGTH]] = 1
    weighted = own * table.relu()
    return weighted * dense_reps(model, ids, QUERY_LENGTH) if kind == "lexical" else weighted


def dense_objective(train: config.Train, queries, passages, labels) -> torch.Tensor:
    """The losses and regularisers of `train_section`, on dense representations of the whole batch."""
    lists = passages.view(len(queries), labels.shape[1], -1)
    scores = (queries[:, None] * lists).sum(-1)
    total = 0.0
    for loss in train.losses:
        if loss.kind == "kl":
            value = F.kl_div(scores.log_softmax(1), labels.softmax(1), reduction="batchmean")
        elif loss.kind == "margin-mse":
            value = ((scores[:, :1] - scores[:, 1:]) - (labels[:, :1] - labels[:, 1:])).square().mean()
        elif loss.kind == "infonce":
            value = F.cross_entropy(queries @ passages.T, torch.arange(len(queries)) * labels.shape[1])
        else:
            value = _other_loss(loss, queries, lists, scores, labels)
        total = total + loss.weight * value
    for terms, reps in ((train.query_regularizers, queries), (train.passage_regularizers, passages)):
        for term in terms:
            if term.kind == "flops":
                groups = reps.split(term.group_size or len(reps))
                value = sum(group.mean(0).square().sum() * len(group) for group in groups) / len(reps)
            elif term.kind == "df-flops":
                power = math.log(2) / math.log(term.alpha)
                weights = 1 / (1 + ((reps > 0).float().mean(0).pow(power) - 1).pow(term.beta))
                value = (weights * reps.mean(0).square()).sum()
            elif term.kind == "custom":
                value = (reps ** term.options["power"]).sum(1).mean()
            else:
                value = reps.sum(1).mean()
            total = total + term.weight * value
    return total


def _other_loss(loss, queries, lists, scores, labels) -> torch.Tensor:
    """sentence-transformers' losses on all pairs, or the formulas of the losses on the teacher's ranking."""
    wide = queries[:, None].expand_as(lists)
    match loss.kind:
        case "ranknet":
            assert loss.pair_weights == "ndcg"
            return torch.stack([lambdarank(*pair) for pair in zip(scores, labels, strict=True)]).mean()
        case "adr-mse":
            return torch.stack([adr_mse(*pair, loss.temperature) for pair in zip(scores, labels, strict=True)]).mean()
        case "cosine-similarity":
            return (F.cosine_similarity(wide, lists, dim=-1) - labels).square().mean()
        case "triplet":
            distances = (wide - lists).square().sum(-1).clamp(min=1e-12).sqrt()
            return (distances[:, :1] - distances[:, 1:] + loss.margin).relu().mean()
        case "cosent" | "angle":
            theirs = {"cosent": losses.SparseCoSENTLoss, "angle": losses.SparseAnglELoss}[loss.kind]
            return theirs(SimpleNamespace(similarity_fn_name=""), scale=loss.scale).compute_loss_from_embeddings(
                [wide.flatten(0, 1), lists.flatten(0, 1)], labels.flatten()
            )
        case "custom":
            return (scores - labels).abs().mean() * loss.options["factor"]


def ranks(scores: torch.Tensor) -> list[int]:
    """Rank of each score, 1 for the highest."""
    values = scores.tolist()
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return [order.index(i) + 1 for i in range(len(values))]


def lambdarank(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """RankNet on one list, each pair weighted by the change in nDCG if the student swapped it (Burges 2010)."""
    gains = (teacher - teacher.min()) / (teacher.max() - teacher.min())
    discounts = [1 / math.log2(1 + rank) for rank in ranks(student)]
    ideal = sum(float(gain) / math.log2(2 + k) for k, gain in enumerate(sorted(gains.tolist(), reverse=True)))
    losses, weights = [], []
    for i, j in itertools.permutations(range(len(student)), 2):
        if teacher[i] > teacher[j]:
            weights.append(abs(float(gains[i] - gains[j])) * abs(discounts[i] - discounts[j]) / ideal)
            losses.append(weights[-1] * (1 + (student[j] - student[i]).exp()).log())
    return sum(losses) / sum(weights)


def adr_mse(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Discounted squared error of approximate ranks on one list (arXiv 2405.07920)."""
    errors = []
    for i, rank in enumerate(ranks(teacher)):
        others = [j for j in range(len(student)) if j != i]
        approximate = 1 + sum(torch.sigmoid((student[j] - student[i]) / temperature) for j in others)
        errors.append((approximate - rank).square() / math.log2(1 + rank))
    return torch.stack(errors).mean()


def absolute_error(scores: torch.Tensor, labels: torch.Tensor, factor: float) -> torch.Tensor:
    """A user-defined loss, named by its import path."""
    return (scores - labels).abs().mean() * factor


def total_weight(reps, total: int, power: float) -> torch.Tensor:
    """A user-defined regulariser: each process adds the part of its texts."""
    return sum_over_processes(reps.values.pow(power).sum()) / total


def train_section(**changes) -> config.Train:
    return config.Train.model_validate(
        {
            "batch_size": BATCH,
            "negatives": LISTS - 1,
            "lr": 0.01,
            "optimizer": "sgd",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "precision": "fp32",
            "losses": [{"kind": "kl"}, {"kind": "margin-mse", "weight": 0.05}, {"kind": "infonce", "weight": 0.5}],
            "query_regularizers": [{"kind": "l1", "weight": 0.01, "ramp": "constant"}],
            "passage_regularizers": [
                {"kind": "flops", "weight": 0.05, "ramp": "constant"},
                {"kind": "flops", "weight": 0.03, "ramp": "constant", "group_size": 4},
            ],
            **changes,
        }
    )


def reference_steps(
    path, train: config.Train, steps: int, kind: str = "model"
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after `steps` SGD steps on the whole batch, and the gradient norms before clipping.

    `kind`: that of the query side, as in the recipe; a learned table has the learning rate `train.table_lr`.
    """
    model = BertForMaskedLM.from_pretrained(path).eval()
    table = None if kind == "model" else table_weights(model.config.vocab_size).requires_grad_(kind == "learned")
    trained = dict(model.named_parameters())
    if kind == "learned":
        trained["table.weight"] = table
    norms = []
    for step in range(steps):
        queries, passages, labels = make_batch(step, model.config.vocab_size)
        objective = dense_objective(
            train, dense_queries(model, table, kind, queries), dense_reps(model, passages, PASSAGE_LENGTH), labels
        )
        for parameter in trained.values():
            parameter.grad = None
        objective.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), train.max_grad_norm or 1e9)))
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter -= (train.table_lr if name == "table.weight" else train.lr) * parameter.grad
    return {name: parameter.detach() for name, parameter in trained.items()}, norms
