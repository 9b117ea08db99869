"""The recipe's objective: the weighted sum of losses and regularisers on a batch's representations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from distill import config
from distill.losses import listwise, ranking, regularizers, similarity, top_k
from distill.losses.collective import gather, sum_over_processes
from distill.losses.embedding import embedding_mse
from distill.losses.reconstruction import reconstruction
from distill.losses.sparse_products import all_scores, list_scores
from distill.own_code import import_object
from distill.student.head import SparseReps

Targets = Mapping[tuple[str, str], SparseReps]  # by teacher and side: its vectors of this process's texts


@dataclass(frozen=True)
class Objective:
    """`total` carries the gradient; `parts` are its weighted terms by name, for the log."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Place:
    """Which queries of the global batch are here: `first`, `first + 1`, ... of `total`."""

    first: int
    total: int


def objective(
    train: config.Train,
    queries: SparseReps,
    passages: SparseReps,
    labels: Tensor,
    place: Place,
    step: int,
    also_positive: Tensor | None = None,
    targets: Targets = MappingProxyType({}),
) -> Objective:
    """Representations of this process's queries [b] and their passages [b * (1+n)], positive first; labels [b, 1+n].

    `also_positive` int64 [2, k]: queries here, and passages of the global batch that are positives of theirs without
    standing first in their list: in-batch negatives leave them out. `targets`: what embedding-mse needs.

    The value is that of the global batch, the same on every process, and so is the gradient with respect to each
    representation. `step` counts optimizer steps from 1, for the ramps.
    """
    lists = labels.shape[1]
    share = len(queries) / place.total
    parts: dict[str, Tensor] = {}
    for of_cap, *kept in top_k.capped(train.top_ks, queries, passages):
        scores = list_scores(*kept)  # [b, 1+n]
        for loss in train.losses:
            value = _loss(loss, scores, *kept, labels, place, also_positive, targets) * (share * of_cap)
            _add(parts, loss.kind, sum_over_processes(value) * loss.weight)
    if train.reconstruction is not None:
        value = reconstruction(queries, passages, place.total, train.reconstruction.beta)
        _add(parts, "reconstruction", value * train.reconstruction.weight)
    for side, reps, per_query, terms in (
        ("query", queries, 1, train.query_regularizers),
        ("passage", passages, lists, train.passage_regularizers),
    ):
        for term in terms:
            weight = term.weight * regularizers.ramp(term.ramp, step, term.ramp_steps)
            value = _regularizer(term, reps, place.first * per_query, place.total * per_query)
            _add(parts, f"{side}-{term.kind}", value * weight)
    return Objective(torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()})


def _loss(
    loss: config.Loss,
    scores: Tensor,
    queries: SparseReps,
    passages: SparseReps,
    labels: Tensor,
    place: Place,
    also_positive: Tensor | None,
    targets: Targets,
) -> Tensor:
    """Mean over the queries here (or over texts, as many of each query)."""
    match loss:
        case config.KlLoss():
            return listwise.kl(scores, labels, loss.student_temperature, loss.teacher_temperature)
        case config.MarginMseLoss():
            return listwise.margin_mse(scores, labels, loss.pairs)
        case config.InfoNceLoss(in_batch=False):
            return listwise.infonce(scores, scores.new_zeros(len(scores), dtype=torch.int64), loss.temperature)
        case config.InfoNceLoss():
            positives = (place.first + torch.arange(len(queries), device=scores.device)) * labels.shape[1]
            every = all_scores(queries, gather(passages))  # [b, B * (1+n)]
            if also_positive is not None:
                every = every.index_put(tuple(also_positive), every.new_full((), -torch.inf))
            return listwise.infonce(every, positives, loss.temperature)
        case config.RankNetLoss():
            return ranking.ranknet(scores, labels, loss.pair_weights)
        case config.AdrMseLoss():
            return ranking.adr_mse(scores, labels, loss.temperature)
        case config.TripletLoss():
            return similarity.triplet(queries, passages, loss.distance, loss.margin)
        case config.CosineLoss():
            return similarity.cosine_mse(queries, passages, labels)
        case config.CosentLoss():
            measure = similarity.angles if loss.kind == "angle" else similarity.cosines
            return similarity.cosent(measure(queries, passages), labels, loss.scale)
        case config.EmbeddingMseLoss():
            sides = {"query": queries, "passage": passages}
            return embedding_mse([(sides[side], targets[loss.teacher, side]) for side in loss.sides])
        case config.CustomLoss():
            return import_object(loss.cls)(scores, labels, **loss.options)


def _regularizer(term: config.AnyRegularizer, reps: SparseReps, first: int, total: int) -> Tensor:
    if isinstance(term, config.CustomRegularizer):
        return import_object(term.cls)(reps, total, **term.options)
    if isinstance(term, config.DfFlopsRegularizer):
        return regularizers.df_flops(reps, total, term.alpha, term.beta)
    if term.threshold is not None:
        reps = regularizers.above_threshold(reps, term.threshold)
    match term.kind:
        case "flops":
            return regularizers.flops(reps, total, first, term.group_size)
        case "l1":
            return regularizers.l1(reps, total)
        case "anti-zero":
            return regularizers.anti_zero(reps)


def _add(parts: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Two terms of one kind (say, two MarginMSE losses) are logged as one."""
    parts[name] = parts[name] + value if name in parts else value
