"""Losses on cosines, angles and distances of sparse representations, as sentence-transformers has them for pairs.

There a row of data is one pair (or a triplet); here a query brings its list, and each of its passages is a pair with
it: pairs are those of all lists, triplets the positive with each negative. Labels are similarities: give them with
`label.normalise: min-max` and no `map_to`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from distill.errors import RecipeError
from distill.losses.collective import gather_values
from distill.losses.sparse_products import list_scores
from distill.student.head import SparseReps


def cosines(queries: SparseReps, passages: SparseReps) -> Tensor:
    """Cosine of each query [b] with its own passages [b * m]: [b, m]; 0 where one is empty."""
    scale = _norms(queries)[:, None] * _norms(passages).view(len(queries), -1)
    return list_scores(queries, passages) / scale.clamp(min=1e-8)


def angles(queries: SparseReps, passages: SparseReps) -> Tensor:
    """AnglE's similarity [b, m]: a vector's halves taken for real and imaginary parts (arXiv 2309.12871), with the
    sign of the authors' code; `pairwise_angle_sim` of sentence-transformers. Refuses an odd vocabulary."""
    half, odd = divmod(queries.vocab_size, 2)
    if odd:
        raise RecipeError(
            f"train.losses: angle halves the vocabulary, and {queries.vocab_size} terms have no halves; use cosent"
        )
    first = passages.terms < half
    turned = replace(
        passages,
        terms=torch.where(first, passages.terms + half, passages.terms - half),
        values=torch.where(first, passages.values, -passages.values),
    )
    real, imaginary = list_scores(queries, passages), list_scores(queries, turned)
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

    Every process holds the whole value.
    """
    similarities = gather_values(similarities.reshape(-1)) * scale  # [N]
    labels, order = gather_values(labels.reshape(-1)).sort()
    similarities = similarities[order]
    higher = torch.searchsorted(labels, labels, right=True)  # where the labels above one's own begin
    sums = torch.logcumsumexp(-similarities.flip(0), dim=0).flip(0)
    sums = torch.cat([sums, sums.new_full((1,), -torch.inf)])[higher]  # [N]: log sum exp(-s_i) over them
    return torch.cat([similarities.new_zeros(1), similarities + sums]).logsumexp(0)


def _norms(reps: SparseReps) -> Tensor:
    """Euclidean norm of each text: [n]; its gradient is finite for empty ones, too."""
    squares = reps.values.new_zeros(len(reps)).index_add(0, reps.texts, reps.values.square())
    return squares.clamp(min=1e-24).sqrt()
