"""The recipe's objective: the weighted sum of losses and regularisers on the representations of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from distill import config
from distill.losses import listwise, ranking, regularizers, similarity, top_k
from distill.losses.embedding import embedding_mse
from distill.recipe.imports import import_object
from distill.sparse.collective import gather, sum_over_processes
from distill.sparse.products import all_scores, list_scores
from distill.sparse.reps import SparseReps

OwnLosses = Callable[[SparseReps, SparseReps, int], dict[str, Tensor]]  # `Student.own_losses`
Targets = Mapping[tuple[str, str], SparseReps]  # (teacher, side) -> its vectors of this process's texts


@dataclass(frozen=True)
class Objective:
    """`total` carries the gradient; `parts` are its weighted terms by name, for the log.

    Of the regularisers with `target_terms`: `weights` in force, by name, and mean number of `active` terms per text of
    the global batch, in the order of `Train.targets` (float64 [targets]; None without any).
    """

    total: Tensor
    parts: dict[str, Tensor]
    weights: dict[str, float] = field(default_factory=dict)
    active: Tensor | None = None


@dataclass(frozen=True)
class GlobalSlice:
    """The queries of the global batch on this process: `first`, `first + 1`, ... of `total`."""

    first: int
    total: int


@dataclass(frozen=True)
class Supervision:
    """The supervision of this process's queries [b] and their passages [b * (1+n)], positive first.

    In a list without a positive, the passage with the highest label is first.
    """

    labels: Tensor  # float32 [b, 1+n]
    slice: GlobalSlice
    # int64 [2, k]: (local query, global passage) pairs that are relevant although the passage comes from another list;
    # InfoNCE must not treat them as negatives
    known_positives: Tensor | None = None
    targets: Targets = field(default_factory=dict)  # for embedding-mse


def objective(
    train: config.Train,
    queries: SparseReps,
    passages: SparseReps,
    supervision: Supervision,
    step: int,
    own_losses: OwnLosses = lambda queries, passages, total: {},
    multipliers: Mapping[str, float] = MappingProxyType({}),
) -> Objective:
    """Sum the recipe's losses and regularisers and the student's own losses.

    The value is that of the global batch, the same on every process; the gradient with respect to each representation
    is the gradient of that value. `step` counts optimizer steps from 1, for the ramps. `multipliers`: side -> factor of
    the weight of its regulariser with `target_terms`, 1 if missing.
    """
    list_length, local = supervision.labels.shape[1], supervision.slice
    share = len(queries) / local.total
    parts: dict[str, Tensor] = {}
    for weight, capped_queries, capped_passages in top_k.capped(train.top_ks, queries, passages):
        scores = list_scores(capped_queries, capped_passages)  # [b, 1+n]
        for loss in train.losses:
            value = _loss(loss, scores, capped_queries, capped_passages, supervision) * (share * weight)
            _add(parts, loss.kind, sum_over_processes(value) * loss.weight)
    for name, value in own_losses(queries, passages, local.total).items():
        _add(parts, name, value)
    weights: dict[str, float] = {}
    active: list[Tensor] = []
    for side, reps, per_query, terms in (
        ("query", queries, 1, train.query_regularizers),
        ("passage", passages, list_length, train.passage_regularizers),
    ):
        total = local.total * per_query
        for term in terms:
            weight = term.weight * regularizers.ramp(term.ramp, step, term.ramp_steps)
            if term is train.targets.get(side):
                weight *= multipliers.get(side, 1.0)
                weights[f"{side}_{term.kind}_weight"] = weight
                active.append(sum_over_processes(reps.indptr[-1].double()) / total)
            _add(parts, f"{side}-{term.kind}", _regularizer(term, reps, local.first * per_query, total) * weight)
    return Objective(
        torch.stack(list(parts.values())).sum(),
        {name: part.detach() for name, part in parts.items()},
        weights,
        torch.stack(active) if active else None,
    )


def _loss(
    loss: config.Loss,
    scores: Tensor,
    queries: SparseReps,
    passages: SparseReps,
    supervision: Supervision,
) -> Tensor:
    """Mean of one loss over this process's queries (or over its texts, the same number per query)."""
    labels = supervision.labels
    match loss:
        case config.KlLoss():
            return listwise.kl(scores, labels, loss.student_temperature, loss.teacher_temperature)
        case config.MarginMseLoss():
            return listwise.margin_mse(scores, labels, loss.pairs)
        case config.InfoNceLoss(in_batch=False):
            return listwise.infonce(scores, scores.new_zeros(len(scores), dtype=torch.int64), loss.temperature)
        case config.InfoNceLoss():
            first, known = supervision.slice.first, supervision.known_positives
            positives = (first + torch.arange(len(queries), device=scores.device)) * labels.shape[1]
            batch_scores = all_scores(queries, gather(passages))  # [b, B * (1+n)]
            if known is not None:
                batch_scores = batch_scores.index_put(tuple(known), batch_scores.new_full((), -torch.inf))
            return listwise.infonce(batch_scores, positives, loss.temperature)
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
            return embedding_mse([(sides[side], supervision.targets[loss.teacher, side]) for side in loss.sides])
        case config.CustomLoss():
            value: Tensor = import_object(loss.cls)(scores, labels, **loss.options)
            return value


def _regularizer(term: config.AnyRegularizer, reps: SparseReps, first: int, total: int) -> Tensor:
    """Value of one regulariser on the global batch; `reps` holds its texts `first`, `first + 1`, ... of `total`."""
    if isinstance(term, config.CustomRegularizer):
        value: Tensor = import_object(term.cls)(reps, total, **term.options)
        return value
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
    """Add a part; two terms of the same kind (say, two MarginMSE losses) are logged as one."""
    parts[name] = parts[name] + value if name in parts else value
