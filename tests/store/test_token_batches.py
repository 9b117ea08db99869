"""Batches by token budget: each text once, within the budget, with little padding."""

from __future__ import annotations

import numpy as np
import pytest

from distill.store.token_batches import padded_tokens, token_batches


@pytest.mark.parametrize("budget", [1, 120, 4096, 10**7])
def test_batches_hold_every_text_once_within_the_budget_the_longest_first(budget):
    lengths = np.random.default_rng(0).integers(1, 256, 3000)
    batches = token_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(3000))
    assert all(padded_tokens(lengths, batch) <= budget or len(batch) == 1 for batch in batches)
    assert (np.diff(lengths[np.concatenate(batches)]) <= 0).all()


def test_batches_have_less_than_two_per_cent_of_padding():
    lengths = np.random.default_rng(0).integers(3, 256, 5000)
    assert lengths.sum() > 0.98 * sum(padded_tokens(lengths, batch) for batch in token_batches(lengths, 4096))


def test_a_text_longer_than_the_budget_is_one_batch_and_ties_keep_their_order():
    assert [batch.tolist() for batch in token_batches(np.array([3, 900, 4, 3]), 100)] == [[1], [2, 0, 3]]
    assert token_batches(np.array([], np.int64), 100) == []
    assert [batch.tolist() for batch in token_batches(np.array([0, 0]), 1)] == [[0], [1]]
