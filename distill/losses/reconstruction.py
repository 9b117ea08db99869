"""What an autoencoder loses of dense vectors (CSR, arXiv 2503.01776), as sentence-transformers' `CSRReconstructionLoss`
has it: equal weights for the queries and for each place of the lists, and every mean over the global batch."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.losses.collective import sum_over_processes
from distill.student.head import SparseReps


def reconstruction(queries: SparseReps, passages: SparseReps, total: int, beta: float) -> Tensor:
    """L_k + L_4k / 8 + beta · L_aux of the global batch of `total` queries, whose `vectors` `CsrStudent` describes.

    L_k and L_4k are mean squared errors of the dense vector; L_aux is that of what is left of it, divided by its
    variance in the batch (equation 5's residual, after Gao et al., arXiv 2406.04093).
    """
    lists = len(passages) // len(queries)
    texts = torch.cat([queries.vectors[:, None], passages.vectors.unflatten(0, (-1, lists))], 1)  # [b, 2+n, 5·D]
    x, by_k, by_4k, left, unbiased = texts.chunk(5, dim=2)  # [b, 2+n, D] each
    size = total * x.shape[2]  # numbers of a column
    rest = x - unbiased.detach()
    mean = sum_over_processes(rest.detach().sum(0)) / total  # [2+n, D]; the variance's slope in it is 0
    sums = torch.stack(
        [
            (x - by_k).square().sum((0, 2)),
            (x - by_4k).square().sum((0, 2)),
            (left - rest).square().sum((0, 2)),
            (rest - mean).square().sum((0, 2)),
        ]
    )
    of_k, of_4k, of_rest, variance = sum_over_processes(sums) / size  # [2+n] each
    return (of_k + of_4k / 8 + beta * of_rest / torch.where(variance == 0, 1.0, variance)).mean()
