"""The execution record: how a machine resolves it, and what a worker with another kind of device gets."""

from __future__ import annotations

import pytest
import torch

from distill.config import Teacher
from distill.errors import TeacherError
from distill.run.files import read_json
from distill.run.layout import RunFolder
from teachers.execution import Execution, frozen_execution, resolve_execution
from teachers.spec import TeacherSpec


@pytest.fixture
def gpu(monkeypatch):
    """Set the compute capability that torch reports; the precision follows from it."""

    def has(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: capability >= (8, 0))

    return has


@pytest.fixture
def spec(tmp_path):
    """A teacher with the given settings, always under the same name."""

    def make(**fields) -> TeacherSpec:
        return TeacherSpec("t", Teacher(**fields), RunFolder(tmp_path))

    return make


@pytest.mark.parametrize(
    ("capability", "ranker", "llm"),
    [
        ((9, 0), "bfloat16", "bfloat16"),
        ((8, 0), "bfloat16", "bfloat16"),
        ((7, 5), "float16", "float32"),
        ((6, 1), "float32", "float32"),
    ],
)
def test_auto_precision_is_the_fastest_that_gpu_and_model_allow(gpu, capability, ranker, llm):
    gpu(*capability)
    assert resolve_execution(Teacher(kind="cross-encoder", model="m")).precision == ranker
    assert resolve_execution(Teacher(kind="llm", model="m")).precision == llm
    assert resolve_execution(Teacher(kind="llm", model="m", dtype="float16")).precision == "float16"
    assert resolve_execution(Teacher(kind="custom", cls="a:B")).precision == "float32"


def test_the_first_worker_freezes_the_record_and_another_device_kind_gets_its_own_settings(gpu, spec):
    teacher = spec(kind="cross-encoder", model="m", dtype="float32")
    gpu(8, 0)
    frozen = frozen_execution(teacher, "m", "cuda", 2)
    assert frozen_execution(teacher, "m", "cuda", 7) == frozen  # the record's threads, not the second worker's
    assert frozen_execution(teacher, "m", "cpu", 7) == Execution("cpu", "float32", 7, 4096)
    assert read_json(teacher.execution_record) == {"teacher": "m", **frozen.record()}


def test_dtype_and_batch_tokens_of_the_recipe_take_precedence_over_the_record(gpu, spec):
    auto = spec(kind="cross-encoder", model="m")
    gpu(7, 5)
    frozen = frozen_execution(auto, "m", "cuda", 2)
    assert frozen.precision == "float16"
    explicit = spec(kind="cross-encoder", model="m", dtype="float32", batch_tokens=1000)
    assert frozen_execution(explicit, "m", "cuda", 7) == Execution("cuda", "float32", 2, 1000)
    assert frozen_execution(auto, "m", "cuda", 7) == frozen


def test_another_model_under_the_same_name_gets_a_new_record(gpu, spec):
    gpu(7, 5)
    frozen_execution(spec(kind="cross-encoder", model="m"), "m", "cuda", 2)
    teacher = spec(kind="llm", model="other")
    execution = frozen_execution(teacher, "other", "cuda", 3)
    assert execution == Execution("cuda", "float32", 3, 65536)
    assert read_json(teacher.execution_record) == {"teacher": "other", **execution.record()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_a_gpu_that_torch_cannot_use_is_an_error_before_any_record_is_written(spec, tmp_path):
    with pytest.raises(TeacherError, match=r"torch finds none there.*score\.gpus to 0"):
        frozen_execution(spec(kind="bm25"), "bm25", "cuda", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["null", "5", "{}", '{"teacher": "m"}', '{"teacher": "m", "device": 1}', "{", ""])
def test_a_damaged_record_is_resolved_again_with_a_warning(spec, content, caplog):
    teacher = spec(kind="cross-encoder", model="m", dtype="float32")
    frozen = frozen_execution(teacher, "m", "cpu", 2)
    teacher.execution_record.write_text(content)
    assert frozen_execution(teacher, "m", "cpu", 2) == frozen
    assert content == "{}" or "execution.json: a damaged execution record" in caplog.text
    changed = teacher.execution_record.read_text().replace("float32", "bfloat16")
    teacher.execution_record.write_text(changed)  # a record of the right form with another value
    assert frozen_execution(teacher, "m", "cpu", 2) == frozen
