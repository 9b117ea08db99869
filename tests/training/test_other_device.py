"""The cached step on the simulated device: the CPU's gradients, no tensor on the wrong device, few waits for it."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM

import distill.training.engine  # noqa: F401  DeepSpeed looks for a device when it is imported
from distill.losses.objective import GlobalSlice, Supervision, objective
from distill.student.dropout import set_dropout
from distill.student.model import SpladeStudent
from distill.student.query_table import QueryTable
from distill.training import metrics
from distill.training.step import TokenBatch, cached_step, plan
from distill.training.world import World
from tests.helpers.simulated_cuda import simulated_cuda
from tests.training.reference import (
    BUILT_IN_LOSSES,
    PASSAGE_LENGTH,
    QUERY_LENGTH,
    make_batch,
    table_weights,
    train_section,
)

OTHER_LOSSES = {
    "losses": [
        *BUILT_IN_LOSSES,
    ],
    "passage_regularizers": [
        {"kind": "df-flops", "alpha": 0.5, "beta": 3.0, "weight": 0.05, "ramp": "constant"},
        {"kind": "flops", "threshold": 10, "weight": 0.1, "ramp": "constant"},
        {"kind": "anti-zero", "weight": 0.1, "ramp": "constant"},
    ],
}
CASES = {
    "model": {},
    "nothing kept": {"kept": 0},
    "dropout": {"dropout": 0.1, "kept": 0},
    "lexical": {"kind": "lexical"},
    "idf": {"kind": "idf"},
    "learned": {"kind": "learned", "kept": 0},
    "top_ks": {"train": {"top_ks": [{"k": 5}, {"k": None}]}},
    "other losses": {"train": OTHER_LOSSES},
    "half precision": {"half": True, "kept": 0},
}


class PlainEngine:
    """What `cached_step` asks of `Engine`, without DeepSpeed, whose own calls of a device cannot be simulated."""

    def __init__(self, student: SpladeStudent, world: World, half: bool):
        self.student, self.world, self.half = student, world, half

    def _autocast(self):
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.half)

    def encode(self, input_ids, attention_mask, side):
        with self._autocast():
            return self.student.encode(input_ids, attention_mask, side)

    def surrogate(self, input_ids, attention_mask, side, reps, gradient):
        with self._autocast():
            return self.student.surrogate(input_ids, attention_mask, side, reps, gradient)

    @contextlib.contextmanager
    def accumulating(self):
        yield

    def backward(self, loss):
        loss.backward()


def step(mlm, device, kind="model", train=None, kept=120, dropout=0.0, half=False, chunk_tokens=100, labels_on=None):
    """One cached step; returns the loss, the gradients and the number of chunks."""
    torch.manual_seed(1)
    model = BertForMaskedLM.from_pretrained(mlm).train()
    table = None if kind == "model" else QueryTable(table_weights(model.config.vocab_size), learned=kind == "learned")
    student = SpladeStudent(
        model,
        AutoTokenizer.from_pretrained(mlm),
        query_max_length=QUERY_LENGTH,
        passage_max_length=PASSAGE_LENGTH,
        table=table,
        inference_free=kind in ("idf", "learned"),
    )
    set_dropout(student, dropout)
    student.to(device)
    world = World(0, 1, torch.device(device))
    queries, passages, labels = make_batch(0, model.config.vocab_size)
    sides = (
        TokenBatch(queries, QUERY_LENGTH, student.special_tokens("query")),
        TokenBatch(passages, PASSAGE_LENGTH, 2),
    )
    supervision = Supervision(labels.to(labels_on or device), GlobalSlice(0, len(labels)))
    goal = partial(objective, train_section(**(train or {})), supervision=supervision, step=1)
    chunks = plan(sides, chunk_tokens, world, kept)
    result = cached_step(PlainEngine(student, world, half), sides, chunks, goal, lambda out_of_memory: None)
    metrics.sparsity(*result.sides)
    gradients = {name: p.grad.cpu() for name, p in student.named_parameters() if p.grad is not None}
    return float(result.objective.total), gradients, len(chunks)


def assert_same(found, expected, tolerance):
    """Losses and gradients of two steps agree."""
    (found_loss, found_gradients, _), (loss, gradients, _) = found, expected
    assert found_loss == pytest.approx(loss, rel=tolerance) and found_gradients.keys() == gradients.keys()
    whole = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for name, gradient in gradients.items():
        assert (found_gradients[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-3 * whole), name


@pytest.mark.parametrize("case", CASES)
def test_a_cached_step_on_another_device_has_the_gradients_of_the_cpu(case, tiny_mlm):
    expected = step(tiny_mlm, "cpu", **CASES[case])
    with simulated_cuda():
        found = step(tiny_mlm, "cuda", **CASES[case])
    assert_same(found, expected, 0.1 if CASES[case].get("half") else 1e-4)


def test_labels_on_the_wrong_device_are_noticed(tiny_mlm):
    with simulated_cuda(), pytest.raises(RuntimeError, match="tensors on both devices"):
        step(tiny_mlm, "cuda", labels_on="cpu")


def test_a_chunk_waits_for_the_device_only_for_what_the_device_decides(tiny_mlm):
    """A chunk: the number of its active terms, in the first pass; what depends on lengths is known on the host."""
    counted = {}
    for chunk_tokens in (100, 10_000):
        with simulated_cuda() as waits:
            *_, chunks = step(tiny_mlm, "cuda", kept=0, chunk_tokens=chunk_tokens)
            counted[chunks] = sum(count for place, count in waits.items() if not place.startswith("elsewhere"))
    (few, fewer), (many, more) = sorted(counted.items())
    assert more - fewer == many - few
    assert fewer - few <= 25  # the step's own: losses, metrics, the order of the texts
