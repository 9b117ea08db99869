"""Losses on cosines, angles and distances of sparse representations, as sentence-transformers defines them for pairs.

There one row of data is one pair or triplet. Here a query has a list of passages: it forms a pair with each of them,
and a triplet with its positive and each negative. Labels are similarities: use `label.normalise: min-max` without
`map_to`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from distill.errors import RecipeError
from distill.sparse.collective import gather_values
from distill.sparse.products import list_scores, sum_by_text
from distill.sparse.reps import SparseReps


def cosines(queries: SparseReps, passages: SparseReps) -> Tensor:
    """Cosine of each query [b] with its own passages [b * m]: [b, m]; 0 if either is empty."""
    scale = _norms(queries)[:, None] * _norms(passages).view(len(queries), -1)
    return list_scores(queries, passages) / scale.clamp(min=1e-8)


def angles(queries: SparseReps, passages: SparseReps) -> Tensor:
    """AnglE's similarity of each query [b] with its own passages [b * m] (arXiv 2309.12871): [b, m].

    The halves of a vector are its real and imaginary parts. The sign is that of the authors' code, as in
    sentence-transformers' `pairwise_angle_sim`. Raises `RecipeError` for an odd vocabulary size.
    """
    half, odd = divmod(queries.vocab_size, 2)
    if odd:
        raise RecipeError(
            f"train.losses: kind angle needs an even vocabulary size, but the student has {queries.vocab_size} terms; "
            "use kind cosent"
        )
    first = passages.terms < half
    rotated = replace(  # by a right angle: the halves swapped, one with its sign changed
        passages,
        terms=torch.where(first, passages.terms + half, passages.terms - half),
        values=torch.where(first, passages.values, -passages.values),
    )
    real, imaginary = list_scores(queries, passages), list_scores(queries, rotated)
    scale = _norms(queries)[:, None] * _norms(passages).view(len(queries), -1)
    return ((real + imaginary) / scale.clamp(min=1e-8)).abs()


def triplet(queries: SparseReps, passages: SparseReps, distance: str = "euclidean", margin: float = 5.0) -> Tensor:
    """max(0, d(q, positive) - d(q, negative) + margin), mean over queries and negatives (`SparseTripletLoss`)."""
    if distance == "cosine":
        distances = 1 - cosines(queries, passages)
    else:
        squares = _norms(queries).square()[:, None] + _norms(passages).square().view(len(queries), -1)
        distances = (squares - 2 * list_scores(queries, passages)).clamp(min=1e-12).sqrt()
    return (distances[:, :1] - distances[:, 1:] + margin).relu().mean()


def cosine_mse(queries: SparseReps, passages: SparseReps, labels: Tensor) -> Tensor:
    """Squared error of the cosine against the label, mean over pairs (`SparseCosineSimilarityLoss`)."""
    return (cosines(queries, passages) - labels).square().mean()


def cosent(similarities: Tensor, labels: Tensor, scale: float = 20.0) -> Tensor:
    """log(1 + sum exp(scale * (s_k - s_i))) over all pairs i, k of the global batch with label i above label k
    (Huang et al. 2024; `SparseCoSENTLoss`, and `SparseAnglELoss` on angles). similarities, labels [b, m].

    Returns the value of the global batch on every process.
    """
    similarities = gather_values(similarities.reshape(-1)) * scale  # [N]
    labels, order = gather_values(labels.reshape(-1)).sort()
    similarities = similarities[order]
    higher = torch.searchsorted(labels, labels, right=True)  # [N]: index of the first label above each label
    sums = torch.logcumsumexp(-similarities.flip(0), dim=0).flip(0)
    sums = torch.cat([sums, sums.new_full((1,), -torch.inf)])[higher]  # [N]: log sum exp(-s_i) over higher labels
    return torch.cat([similarities.new_zeros(1), similarities + sums]).logsumexp(0)


def _norms(reps: SparseReps) -> Tensor:
    """Euclidean norm of each text: [n]; the gradient is finite also for empty texts."""
    squares = sum_by_text(reps.values.square(), reps)
    return squares.clamp(min=1e-24).sqrt()
