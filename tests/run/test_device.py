"""What errors of a device mean, and a GPU that torch cannot use."""

from __future__ import annotations

import os

import pytest
import torch

from distill.errors import DeviceError
from distill.run import device
from tests.helpers.simulated_cuda import simulated_cuda

MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
]
LOST = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
    RuntimeError("CUDA driver error: unknown error"),
]


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_every_wording_of_out_of_memory_is_known_and_is_no_lost_device(error):
    assert device.ran_out_of_memory(error) and not device.lost_device(error)


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_lost_device_is_not_out_of_memory(error):
    assert device.lost_device(error) and not device.ran_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyError("x")], ids=str)
def test_other_errors_are_neither(error):
    assert not device.ran_out_of_memory(error) and not device.lost_device(error)


def test_work_is_tried_with_half_the_tokens_until_it_fits():
    tried = []

    def work(tokens: int) -> str:
        tried.append(tokens)
        if tokens > 20:
            raise RuntimeError("CUDA error: out of memory")
        return "done"

    assert device.until_it_fits(work, 100) == ("done", 12)
    assert tried == [100, 50, 25, 12]


def test_one_text_that_does_not_fit_and_other_errors_are_raised():
    def full(tokens: int) -> None:
        raise torch.OutOfMemoryError("too much")

    def wrong(tokens: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(torch.OutOfMemoryError):
        device.until_it_fits(full, 8)
    with pytest.raises(RuntimeError, match="shapes"):
        device.until_it_fits(wrong, 8)


@pytest.fixture
def machine_with_a_gpu(tmp_path, monkeypatch):
    """A machine whose GPU this process may open, and torch does not see."""
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    unused = device.unused_gpu
    monkeypatch.setattr(device, "unused_gpu", lambda: unused(tmp_path))
    return tmp_path


def test_a_gpu_that_torch_cannot_use_is_refused(machine_with_a_gpu):
    with pytest.raises(DeviceError, match=r"this machine has a GPU \(.*nvidia0, driver .*\) that torch .* cannot use"):
        device.default_device()


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_not_missed(machine_with_a_gpu, monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert device.default_device() == "cpu"


def test_the_gpu_of_another_job_is_not_missed(machine_with_a_gpu):
    (machine_with_a_gpu / "nvidia0").unlink()
    (machine_with_a_gpu / "nvidia0").symlink_to("nowhere")  # shown, but cannot be opened
    assert device.default_device() == "cpu"


@pytest.mark.parametrize("own", [None, "max_split_size_mb:512"])
def test_memory_of_gpus_grows_in_place_unless_the_environment_sets_the_allocator(own, monkeypatch):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", own)
    with simulated_cuda():
        assert device.default_device() == "cuda"
    assert [os.environ.get(name) for name in names] == ([None, own] if own else ["expandable_segments:True"] * 2)
