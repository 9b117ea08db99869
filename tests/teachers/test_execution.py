"""The execution record: what a machine resolves to, and what happens where a worker's device is not the record's."""

from __future__ import annotations

import pytest
import torch

from distill.config import Teacher
from distill.data.files import read_json
from distill.errors import TeacherError
from teachers.execution import Execution, frozen_execution, resolve_execution


@pytest.fixture
def gpu(monkeypatch):
    """Set the compute capability that torch reports; everything else about precision follows from it."""

    def has(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: capability >= (8, 0))

    return has


@pytest.mark.parametrize(
    ("capability", "ranker", "llm"),
    [
        ((9, 0), "bfloat16", "bfloat16"),
        ((8, 0), "bfloat16", "bfloat16"),
        ((7, 5), "float16", "float32"),
        ((6, 1), "float32", "float32"),
    ],
)
def test_auto_precision_is_the_fastest_that_the_gpu_has_and_the_model_bears(gpu, capability, ranker, llm):
    gpu(*capability)
    assert resolve_execution(Teacher(kind="cross-encoder", model="m")).precision == ranker
    assert resolve_execution(Teacher(kind="llm", model="m")).precision == llm
    assert resolve_execution(Teacher(kind="llm", model="m", dtype="float16")).precision == "float16"
    assert resolve_execution(Teacher(kind="custom", cls="a:B")).precision == "float32"  # and says nothing of its own


def test_the_first_worker_freezes_the_record_and_another_device_kind_gets_its_own(gpu, tmp_path):
    path, cfg = tmp_path / "execution.json", Teacher(kind="cross-encoder", model="m", dtype="float32")
    gpu(8, 0)
    frozen = frozen_execution(path, cfg, "cuda", 2, "m")
    assert frozen_execution(path, cfg, "cuda", 7, "m") == frozen  # the record's threads, not the second worker's
    assert frozen_execution(path, cfg, "cpu", 7, "m") == Execution("cpu", "float32", 7, 4096)
    assert read_json(path) == {"teacher": "m", **frozen.record()}


def test_what_the_recipe_says_itself_goes_before_the_record(gpu, tmp_path):
    path, auto = tmp_path / "execution.json", Teacher(kind="cross-encoder", model="m")
    gpu(7, 5)
    frozen = frozen_execution(path, auto, "cuda", 2, "m")
    assert frozen.precision == "float16"
    given = Teacher(kind="cross-encoder", model="m", dtype="float32", batch_tokens=1000)
    assert frozen_execution(path, given, "cuda", 7, "m") == Execution("cuda", "float32", 2, 1000)
    assert frozen_execution(path, auto, "cuda", 7, "m") == frozen


def test_another_model_under_the_same_name_gets_a_record_of_its_own(gpu, tmp_path):
    path = tmp_path / "execution.json"
    gpu(7, 5)
    frozen_execution(path, Teacher(kind="cross-encoder", model="m"), "cuda", 2, "m")
    llm = frozen_execution(path, Teacher(kind="llm", model="other"), "cuda", 3, "other")
    assert llm == Execution("cuda", "float32", 3, 65536)
    assert read_json(path) == {"teacher": "other", **llm.record()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_a_gpu_that_torch_cannot_use_is_an_error_before_any_record_is_written(tmp_path):
    with pytest.raises(TeacherError, match=r"torch finds none there.*score\.gpus to 0"):
        frozen_execution(tmp_path / "execution.json", Teacher(kind="bm25"), "cuda", 1, "bm25")
    assert not list(tmp_path.iterdir())
