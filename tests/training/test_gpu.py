"""On a GPU: the engine and the cached step against the CPU, dropout in both passes, out of memory."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from transformers import BertForMaskedLM

from distill.retrieval.encode import encode_texts
from distill.student.checkpoint import load_student
from tests.helpers.small_run import PASSAGES, save_checkpoint
from tests.training.reference import reference_steps, train_section
from tests.training.test_other_device import CASES, assert_same, step

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"dropout"}))
def test_a_cached_step_has_the_gradients_of_the_cpu(case, tiny_mlm):
    tolerance = 0.1 if CASES[case].get("half") else 1e-3
    assert_same(step(tiny_mlm, "cuda", **CASES[case]), step(tiny_mlm, "cpu", **CASES[case]), tolerance)


def test_dropout_draws_the_same_in_both_passes(tiny_mlm):
    twice, once = (step(tiny_mlm, "cuda", dropout=0.1, kept=kept) for kept in (0, 10_000))
    assert_same(twice, once, 1e-4)


@pytest.mark.parametrize("stage", range(4))
def test_three_steps_of_the_engine_equal_the_reference(stage, tiny_mlm, run_processes, tmp_path):
    case = {"stage": stage, "chunk_tokens": 60, "kept_tokens": 120}
    (tmp_path / "cases.json").write_text(json.dumps({"case": case}))
    run_processes(1, "step_worker", tiny_mlm, tmp_path, tmp_path / "cases.json")
    found = torch.load(tmp_path / "case.pt")
    parameters, norms = reference_steps(tiny_mlm, train_section(), steps=3)
    start = dict(BertForMaskedLM.from_pretrained(tiny_mlm).named_parameters())
    assert found["norms"] == pytest.approx(norms, rel=1e-3)
    for name, value in parameters.items():
        difference = found["parameters"][name] - value
        assert difference.norm() <= 1e-2 * (value - start[name]).norm() + 1e-6, name


def test_the_host_waits_once_per_chunk(tiny_mlm):
    """For the number of active terms: what torch itself reports, against the simulated device's count."""
    waits = {}
    for chunk_tokens in (100, 10_000):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                *_, chunks = step(tiny_mlm, "cuda", kept=0, chunk_tokens=chunk_tokens)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits[chunks] = sum("synchronizing" in str(warning.message) for warning in caught)
    (few, fewer), (many, more) = sorted(waits.items())
    assert 0 < more - fewer <= many - few


def test_vectors_equal_those_of_the_cpu_also_where_memory_is_short(tiny_mlm, tmp_path):
    save_checkpoint(tiny_mlm, tmp_path / "model")
    texts = PASSAGES * 3000
    expected = encode_texts(load_student(tmp_path / "model"), PASSAGES, "passage").toarray()
    student = load_student(tmp_path / "model").to("cuda")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (96 << 20)) / total)
    try:
        found = encode_texts(student, texts, "passage")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert abs(found[: len(PASSAGES)].toarray() - expected).max() < 1e-3
    assert (found[-len(PASSAGES) :] != found[: len(PASSAGES)]).nnz == 0 or abs(
        found[-len(PASSAGES) :] - found[: len(PASSAGES)]
    ).max() < 1e-3
