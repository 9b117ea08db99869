"""Attention in float32 for students that train in bfloat16 on CPUs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, BertForMaskedLM

from distill.student.dropout import set_dropout
from distill.student.model import SpladeStudent
from distill.training.attention import Float32Attention
from distill.training.engine import Engine
from distill.training.world import join
from tests.training.reference import train_section


def attention(query, key, value, mask, scale):
    """softmax(scale q k^T + mask) v."""
    return torch.softmax(scale * query @ key.transpose(-1, -2) + mask, -1) @ value


@pytest.mark.parametrize("by_name", [False, True])
def test_values_and_gradients_are_those_of_the_formula_on_the_rounded_inputs(by_name):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 7, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
    mask = torch.zeros(2, 1, 7, 7).masked_fill(torch.arange(7) >= 5, -torch.inf).bfloat16()
    upstream = torch.randn(2, 3, 7, 8, generator=generator)
    names = dict(zip(("query", "key", "value"), inputs, strict=True))
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        if by_name:
            ours = F.scaled_dot_product_attention(**names, attn_mask=mask, scale=0.3)
        else:
            ours = F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.3)
    ours.backward(upstream.bfloat16())
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = attention(*exact, mask.double(), 0.3)
    expected.backward(upstream.bfloat16().double())
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), expected, rtol=2**-8, atol=1e-6)
    for mine, theirs in zip(inputs, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=2**-8, atol=1e-5)


class Dtypes(TorchDispatchMode):
    """Records the dtypes of attention's queries."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func):
            self.seen.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("precision", "recomputes", "dtype"),
    [("bf16", False, torch.float32), ("bf16", True, torch.bfloat16), ("fp32", False, torch.float32)],
)
def test_the_engine_attends_in_float32_unless_the_backward_recomputes(tiny_mlm, precision, recomputes, dtype):
    student = SpladeStudent(
        BertForMaskedLM.from_pretrained(tiny_mlm),
        AutoTokenizer.from_pretrained(tiny_mlm),
        query_max_length=12,
        passage_max_length=24,
    )
    set_dropout(student, 0.0)
    engine = Engine(student, train_section(activation_checkpointing=recomputes), join(), precision)
    with engine.accumulating():
        with Dtypes() as dtypes:
            reps = engine.encode(torch.tensor([[2, 30, 31, 3]]), torch.ones(1, 4, dtype=torch.int64))
        engine.backward(reps.values.sum())
    assert dtypes.seen == {dtype}
    engine.close()
