"""Batches that exceed the memory: the remaining items are batched again, once, and none is lost."""

import numpy as np
import pytest
import torch

from teachers.base import Work
from teachers.execution import Execution
from teachers.inference import run_batches


def score(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, Execution, list[int], Work]:
    """Score each item by its own number on a device that holds `capacity` padded tokens."""
    sizes, work = [], Work()

    def logits(inputs):
        tokens = inputs["row"].numel() * int(inputs["length"].max())
        if tokens > capacity:
            raise torch.OutOfMemoryError("too much")
        sizes.append(tokens)
        return inputs["row"].float()

    def inputs(batch):
        return {"row": batch, "length": lengths[batch], "input_ids": np.zeros((len(batch), lengths[batch].max()))}

    scores, execution = run_batches(logits, inputs, lengths, Execution("cpu", "float32", 1, 1024), work)
    return scores, execution, sizes, work


def test_one_out_of_memory_error_halves_the_budget_once_and_keeps_the_order_of_scores():
    lengths = np.random.default_rng(0).integers(5, 60, 500)
    scores, execution, sizes, work = score(lengths, capacity=600)
    np.testing.assert_array_equal(scores, np.arange(500))
    assert 256 <= execution.batch_tokens <= 512 and np.median(sizes) > 0.4 * execution.batch_tokens
    assert work == Work(lengths.sum(), sum(sizes))  # of the batches that ran, not of those first planned


def test_a_single_pair_that_exceeds_the_memory_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        score(np.full(4, 60), capacity=50)
