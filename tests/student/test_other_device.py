"""The head and encoding on the simulated device: the CPU's results, and no tensor on the wrong device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.retrieval.encode import encode_texts
from distill.student.checkpoint import load_student
from distill.student.head import SpladeHead
from distill.student.model import BROADCAST_MASKS, SpladeStudent
from tests.helpers.simulated_cuda import simulated_cuda
from tests.helpers.small_run import PASSAGES, save_checkpoint
from tests.helpers.tiny_models import tiny_tokenizer
from tests.student.test_model import ARCHITECTURES, random_mlm


def test_the_simulated_device_refuses_what_a_gpu_refuses():
    with simulated_cuda() as waits:
        there = torch.randn(3, device="cuda")
        for mixed in (
            lambda: there + torch.randn(3),
            lambda: torch.cat([there, torch.randn(1)]),
            lambda: there.numpy(),
            lambda: np.asarray(there),
            lambda: there.pin_memory(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
        assert torch.equal((there + torch.tensor(1.0)).cpu(), there.cpu() + 1)  # a number may come from the CPU
        assert there[torch.tensor([0, 2])].is_cuda and there.new_ones(2).is_cuda
        waits.clear()
        torch.randn(4).to("cuda")
        torch.randn(4).pin_memory().to("cuda", non_blocking=True)
        assert sum(waits.values()) == 1
        (there > 0).nonzero()
        float(there.sum())
        assert sum(waits.values()) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_the_head_on_another_device(pooling, dtype):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(4, 33, 64), torch.randn(997, 64) / 8, torch.randn(997) - 1
    mask = (torch.arange(33) < torch.tensor([[33], [5], [1], [20]])).long()

    def run(device: str) -> list[torch.Tensor]:
        h = hidden.clone().to(device, dtype).requires_grad_()
        w, b = (torch.nn.Parameter(x.to(device, dtype)) for x in (weight, bias))
        reps = SpladeHead(w, b, pooling)(h, mask.to(device))
        reps.values.square().sum().backward()
        return [x.float().cpu() for x in (reps.to_dense().detach(), h.grad, w.grad, b.grad)]

    expected = run("cpu")
    with simulated_cuda():
        found = run("cuda")
    scale = 1e-5 if dtype == torch.float32 else 3e-2
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=scale, atol=scale * float(reference.abs().max()))


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"query": {"kind": "lexical"}}], ids=str)
def test_encoding_on_another_device(tiny_mlm, tmp_path, options):
    save_checkpoint(tiny_mlm, tmp_path / "model", **options)
    side = "query" if "query" in options else "passage"
    expected = encode_texts(load_student(tmp_path / "model"), PASSAGES, side, batch_tokens=40).toarray()
    with simulated_cuda():
        found = encode_texts(load_student(tmp_path / "model").to("cuda"), PASSAGES, side, batch_tokens=40).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_on_another_device_with_a_mask_on_the_host(name, padded):
    """The host waits for the number of active terms, and for nothing else where attention takes a broadcast mask."""
    tokenizer = tiny_tokenizer()
    student = SpladeStudent(
        random_mlm(name, vocab_size=len(tokenizer)), tokenizer, query_max_length=30, passage_max_length=30
    ).eval()
    ids = [np.arange(5, 5 + length) for length in ((9, 4, 12) if padded else (9, 9, 9))]
    inputs, mask = student.assemble(ids, 30)
    with torch.no_grad():
        expected = student(inputs, mask).to_dense()
        with simulated_cuda() as waits:
            student.to("cuda")
            inputs = inputs.pin_memory().to("cuda", non_blocking=True)
            waits.clear()
            reps = student(inputs, mask)
            waited = sum(waits.values())
            found = reps.to_dense().cpu()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if student.mlm.config.model_type in BROADCAST_MASKS or not (
        padded or name == "DebertaV2"
    ):  # looks at its positions
        assert waited == 1, dict(waits)
