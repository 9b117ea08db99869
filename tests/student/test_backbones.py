"""Backbones of many architectures: one cached step, saved and read by SparseEncoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder

from distill import config
from distill.losses.objective import Objective
from distill.sparse.products import list_scores
from distill.student.checkpoint import load_student, save_student
from distill.student.dropout import set_dropout
from distill.student.model import SpladeStudent, start_splade
from distill.training.engine import Engine
from distill.training.step import TokenBatch, cached_step, plan
from distill.training.world import join
from tests.helpers.tiny_models import tiny_tokenizer
from tests.student.test_model import ARCHITECTURES, random_mlm

QUERIES = ["sorted list", "open a file"]
PASSAGES = ["the function returns a sorted list", "open the file for reading", "a new file", "the list of files"]
LABELS = torch.tensor([[3.0, 0.5], [2.0, -1.0]])
LENGTH = 30


def ids_of(tokenizer, texts):
    return [np.array(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def assert_read_by_sparse_encoder(student, path):
    save_student(student, path)
    encoder = SparseEncoder(str(path), device="cpu")
    with torch.no_grad():
        ours = student.eval()(*student.assemble(ids_of(student.tokenizer, PASSAGES), LENGTH)).to_dense()
        again = load_student(path).eval()(*student.assemble(ids_of(student.tokenizer, PASSAGES), LENGTH)).to_dense()
    assert torch.equal(again, ours) and ours.count_nonzero() > 0
    torch.testing.assert_close(
        encoder.encode_document(PASSAGES, convert_to_sparse_tensor=False), ours, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cached_step_equals_a_plain_step_and_its_result_is_saved(name, tmp_path):
    tokenizer = tiny_tokenizer()
    mlm, plain = (random_mlm(name, vocab_size=len(tokenizer)) for _ in range(2))
    student = SpladeStudent(mlm, tokenizer, query_max_length=LENGTH, passage_max_length=LENGTH)
    for module in (student, plain):
        set_dropout(module, 0.0)
    train = config.Train(optimizer="sgd", lr=0.1, weight_decay=0.0, max_grad_norm=0.0, precision="fp32")
    world = join()
    engine = Engine(student, train, world, "fp32")
    sides = tuple(TokenBatch(ids_of(tokenizer, texts), LENGTH, 2) for texts in (QUERIES, PASSAGES))

    def goal(queries, passages):
        return Objective((list_scores(queries, passages) - LABELS).square().mean(), {})

    step = cached_step(engine, sides, plan(sides, 12, world, 12), goal, lambda out_of_memory: None)
    assert step.chunks >= 4 and 0 < step.kept < step.chunks

    reps = []
    for text in (*QUERIES, *PASSAGES):
        logits = plain.train()(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits
        reps.append(logits.relu().log1p()[0].max(0).values)
    queries, passages = torch.stack(reps[:2]), torch.stack(reps[2:]).view(2, 2, -1)
    ((queries[:, None] * passages).sum(-1) - LABELS).square().mean().backward()
    largest = max(float(p.grad.norm()) for p in plain.parameters() if p.grad is not None)
    for key, parameter in plain.named_parameters():
        if parameter.grad is not None:
            difference = mlm.get_parameter(key).grad - parameter.grad
            assert difference.norm() <= 1e-5 * max(float(parameter.grad.norm()), 0.1 * largest), key
    before = {key: parameter.detach().clone() for key, parameter in student.named_parameters()}
    assert engine.step(1e-4).applied
    assert any(not torch.equal(before[key], parameter) for key, parameter in student.named_parameters())
    engine.close()
    assert_read_by_sparse_encoder(student, tmp_path / "model")


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"ModernBert"}))  # whose head has no biases to calibrate
def test_a_backbone_without_an_mlm_head_becomes_a_student_that_sparse_encoder_reads(name, tmp_path):
    tokenizer = tiny_tokenizer()
    random_mlm(name, vocab_size=len(tokenizer)).base_model.save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    student = start_splade(
        config.Student(model=str(tmp_path / "body"), query_max_length=LENGTH, passage_max_length=LENGTH),
        [*PASSAGES, *QUERIES] * 4,
    )
    assert_read_by_sparse_encoder(student, tmp_path / "model")
