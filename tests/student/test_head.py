"""The head against the materialised formula, computed plainly here by autograd in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distill.student.head import SpladeHead

VOCABULARY, WIDTH = 173, 24


def materialised(hidden, mask, weight, bias, pooling, activation):
    """sentence-transformers' SpladePooling on the decoder's logits: dense [B, V]."""
    logits = F.linear(hidden, weight, bias)  # [B, L, V]
    scores = (logits * mask.unsqueeze(-1)).relu().log1p()
    if activation == "log1p_relu":
        scores = scores.log1p()
    return scores.max(1).values if pooling == "max" else scores.sum(1)


def problem(shift=0.0, lengths=(7, 12, 1, 12, 0, 5), seed=0):
    """Hidden states, mask (padding, one-token and empty texts), weight and bias; `shift` sets the density."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(lengths), max(lengths), WIDTH, generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator) / WIDTH**0.5
    bias = torch.randn(VOCABULARY, generator=generator) * 0.1 + shift
    return hidden, mask, weight, bias


def leaves(hidden, weight, bias):
    return hidden.clone().requires_grad_(), torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())


def close(ours, reference):
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5 * max(1e-30, float(reference.abs().max())))


@pytest.mark.parametrize("shift", [-100.0, -2.0, 0.0, 100.0], ids=["nothing", "sparse", "half", "dense"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_values_and_gradients_equal_the_materialised_formula(pooling, activation, shift):
    hidden, mask, weight, bias = problem(shift)
    upstream = torch.randn(len(hidden), VOCABULARY)
    h, w, b = leaves(hidden, weight, bias)
    expected = materialised(h, mask, w, b, pooling, activation)
    expected.mul(upstream).sum().backward()

    h2, w2, b2 = leaves(hidden, weight, bias)
    reps = SpladeHead(w2, b2, pooling, activation)(h2, mask)
    close(reps.to_dense(), expected.detach())
    assert (reps.values > 0).all() and reps.terms.numel() == int((expected > 0).sum())
    reps.to_dense().mul(upstream).sum().backward()
    for ours, reference in ((h2, h), (w2, w), (b2, b)):
        close(ours.grad, reference.grad)
