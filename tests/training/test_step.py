"""The cached step under real DeepSpeed equals a plain single-process step, at any stage, chunking and world size."""

import copy
import itertools
import json
from functools import partial

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM

from distill.losses.objective import GlobalSlice, Supervision, objective
from distill.student.dropout import set_dropout, use_kernel
from distill.student.model import SpladeStudent
from distill.training.engine import Engine
from distill.training.step import TokenBatch, cached_step, plan
from distill.training.world import join
from tests.training.reference import (
    BUILT_IN_LOSSES,
    PASSAGE_LENGTH,
    QUERY_LENGTH,
    dense_objective,
    make_batch,
    reference_steps,
    table_weights,
    train_section,
)

SMALL, LARGE = 30, 10_000  # tokens per chunk: one or two texts; the whole batch
NONE, SOME, ALL = 0, 120, 10_000  # tokens whose graphs are kept from the first pass
CASES = {
    f"zero{stage}-chunk{chunk}-kept{kept}": {"stage": stage, "chunk_tokens": chunk, "kept_tokens": kept}
    for stage, (chunk, kept) in itertools.product(range(4), [(SMALL, NONE), (SMALL, SOME), (LARGE, ALL)])
}

CASES |= {
    f"zero{stage}-checkpointing": {
        "stage": stage,
        "chunk_tokens": 60,
        "kept_tokens": SOME,
        "train": {"activation_checkpointing": True},
    }
    for stage in (0, 3)
}


@pytest.fixture(scope="module")
def expected(tiny_mlm):
    return reference_steps(tiny_mlm, train_section(), steps=3)


def run_cases(processes, cases, run_processes, tiny_mlm, tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    run_processes(processes, "step_worker", tiny_mlm, tmp_path, tmp_path / "cases.json")
    return {name: torch.load(tmp_path / f"{name}.pt") for name in cases}


TABLES = {
    f"{kind}-zero{stage}": {
        "query": kind,
        "stage": stage,
        "chunk_tokens": 60,
        "kept_tokens": kept,
        "train": {"table_lr": 0.1} if kind == "learned" else {},
    }
    for kind, stage, kept in (
        ("lexical", 0, NONE),
        ("lexical", 3, SOME),
        ("idf", 2, SOME),
        ("learned", 0, ALL),
        ("learned", 2, NONE),
        ("learned", 3, SOME),
    )
}


@pytest.mark.parametrize("processes", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_three_cached_sgd_steps_equal_the_reference(processes, expected, run_processes, tiny_mlm, tmp_path):
    start = dict(BertForMaskedLM.from_pretrained(tiny_mlm).named_parameters())
    assert_equal_steps(run_cases(processes, CASES, run_processes, tiny_mlm, tmp_path), *expected, start)


def test_cached_steps_with_query_tables_equal_the_reference(run_processes, tiny_mlm, tmp_path):
    start = dict(BertForMaskedLM.from_pretrained(tiny_mlm).named_parameters())
    start["table.weight"] = table_weights(len(start["bert.embeddings.word_embeddings.weight"]))
    got = run_cases(2, TABLES, run_processes, tiny_mlm, tmp_path)
    for kind in ("lexical", "idf", "learned"):
        train = train_section(table_lr=0.1 if kind == "learned" else None)
        cases = {name: case for name, case in got.items() if name.startswith(kind)}
        assert_equal_steps(cases, *reference_steps(tiny_mlm, train, steps=3, kind=kind), start)


OTHER_LOSSES = {
    "losses": [
        *BUILT_IN_LOSSES,
        {"kind": "custom", "cls": "tests.training.reference:absolute_error", "options": {"factor": 0.1}},
    ],
    "passage_regularizers": [
        {
            "kind": "custom",
            "cls": "tests.training.reference:total_weight",
            "options": {"power": 1.5},
            "weight": 0.02,
            "ramp": "constant",
        },
        {"kind": "df-flops", "alpha": 0.5, "beta": 3.0, "weight": 0.05, "ramp": "constant"},
    ],
}


def test_cached_steps_with_every_other_loss_equal_the_reference(run_processes, tiny_mlm, tmp_path):
    start = dict(BertForMaskedLM.from_pretrained(tiny_mlm).named_parameters())
    cases = {
        f"zero{stage}": {"stage": stage, "chunk_tokens": 60, "kept_tokens": SOME, "train": OTHER_LOSSES}
        for stage in (0, 2)
    }
    expected = reference_steps(tiny_mlm, train_section(**OTHER_LOSSES), steps=3)
    assert_equal_steps(run_cases(2, cases, run_processes, tiny_mlm, tmp_path), *expected, start)


def assert_equal_steps(cases, parameters, norms, start):
    for name, got in cases.items():
        assert got["norms"] == pytest.approx(norms, rel=1e-5), name
        assert got["parameters"].keys() == parameters.keys(), name
        for key, value in parameters.items():
            difference = got["parameters"][key] - value
            assert difference.norm() <= 1e-5 * value.norm() + 1e-7, f"{name}: {key}"
            # also the change itself, since three clipped steps move a matrix little (a key's bias has gradient zero)
            assert difference.norm() <= 1e-4 * (value - start[key]).norm() + 1e-7, f"{name}: change of {key}"


@pytest.mark.parametrize("kept_tokens", [NONE, 200, ALL])
def test_a_cached_step_with_dropout_equals_a_plain_step_with_the_same_draws(tiny_mlm, kept_tokens):
    queries, passages, labels = make_batch(0, 1000)
    sides = (TokenBatch(queries, QUERY_LENGTH, 2), TokenBatch(passages, PASSAGE_LENGTH, 2))
    train = train_section()
    world = join()
    plans = plan(sides, 100, world, kept_tokens)
    assert len({planned.keep for planned in plans}) == (2 if kept_tokens == 200 else 1)

    model = BertForMaskedLM.from_pretrained(tiny_mlm).train()
    student = SpladeStudent(
        copy.deepcopy(model),
        AutoTokenizer.from_pretrained(tiny_mlm),
        query_max_length=QUERY_LENGTH,
        passage_max_length=PASSAGE_LENGTH,
    )
    for module in (model, student):
        set_dropout(module, 0.3)
    use_kernel(model)  # as the engine does for the student, for the same draws
    engine = Engine(student, train, world, "fp32")
    torch.manual_seed(5)
    goal = partial(objective, train, supervision=Supervision(labels, GlobalSlice(0, len(labels))), step=1)
    cached_step(engine, sides, plans, goal, lambda out_of_memory: None)
    ours = {name.removeprefix("mlm."): parameter.grad for name, parameter in student.named_parameters()}
    draws = torch.rand(1)

    torch.manual_seed(5)
    reps = [torch.zeros(len(texts.ids), model.config.vocab_size) for texts in sides]
    for planned in plans:  # all graphs at once, materialised logits
        ids, mask = student.assemble(
            [sides[planned.side].ids[row] for row in planned.chunk.rows], sides[planned.side].max_length
        )
        logits = model(input_ids=ids, attention_mask=mask).logits.masked_fill(mask[..., None] == 0, -torch.inf)
        reps[planned.side] = reps[planned.side].index_put(
            (torch.from_numpy(planned.chunk.rows),), torch.log1p(logits.max(dim=1).values.relu())
        )
    dense_objective(train, *reps, labels).backward()
    assert torch.equal(draws, torch.rand(1)), "the generators must be as the first pass left them"
    for name, parameter in model.named_parameters():
        scale = max(float(parameter.grad.norm()), 1.0)  # of 400 in all; a key's bias has gradient zero
        assert (ours[name] - parameter.grad).norm() <= 1e-5 * scale, name
    engine.close()
