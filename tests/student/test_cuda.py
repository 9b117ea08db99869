"""The Triton kernels: on a GPU where there is one, and their logic in Triton's interpreter where it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from distill.student.head import SpladeHead
from distill.student.kernels import blocked

TEXTS = [(7, 12, 1, 12, 0, 5), (0, 150, 33), (3,), (1,) * 70]


def problem(lengths, dtype, device, vocabulary=173, width=70):
    generator = torch.Generator().manual_seed(sum(lengths))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows = torch.arange(int(offsets[-1])) + 2  # as if two rows of padding came first
    # whole numbers: exact sums in any order, so that ties are ties everywhere
    hidden, weight, bias = (
        torch.randint(-3, 4, shape, generator=generator).to(dtype)
        for shape in ((len(rows) + 3, width), (vocabulary, width), (vocabulary,))
    )
    hidden[4:5] = hidden[3:4]
    return [x.to(device) for x in (hidden, rows, offsets, weight, bias)]


def check(lengths, dtype, device):
    from distill.student.kernels import cuda

    hidden, rows, offsets, weight, bias = problem(lengths, dtype, device)
    for b in (bias, None):
        ours = cuda.max_forward(hidden, rows, offsets, weight, b)
        for mine, reference in zip(ours, blocked.max_forward(hidden, rows, offsets, weight, b), strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)
    indptr, terms, maxima, at = ours
    gradients = [
        kernels.max_backward(indptr, at, terms, maxima, hidden, weight, (True, True, True))
        for kernels in (cuda, blocked)
    ]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-3)
    first = next(i for i, length in enumerate(lengths) if length)
    hidden[2, 0] = torch.nan
    indptr, _, maxima, _ = cuda.max_forward(hidden, rows, offsets, weight, bias)
    assert maxima[indptr[first] : indptr[first + 1]].isnan().all() and indptr[first + 1] - indptr[first] == len(weight)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", TEXTS, ids=str)
def test_triton_kernels_agree_with_plain_torch(lengths, dtype):
    check(lengths, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_head_on_a_gpu_equals_head_on_a_cpu(pooling, dtype):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(4, 33, 64), torch.randn(997, 64) / 8, torch.randn(997) - 1
    mask = (torch.arange(33) < torch.tensor([[33], [5], [1], [20]])).long()
    results = []
    for device in ("cpu", "cuda"):
        h = hidden.to(device, dtype).requires_grad_()
        w, b = (torch.nn.Parameter(x.to(device, dtype)) for x in (weight, bias))
        reps = SpladeHead(w, b, pooling)(h, mask.to(device))
        reps.values.square().sum().backward()
        results.append([x.float().cpu() for x in (reps.to_dense().detach(), h.grad, w.grad, b.grad)])
    for cpu, gpu in zip(*results, strict=True):
        scale = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(gpu, cpu, rtol=scale, atol=scale * float(cpu.abs().max()))


def check_everything():
    """Every dtype that the interpreter has, all texts at once and a few at a time, whole sums and in pieces."""
    from distill.student.kernels import cuda

    for dtype in (torch.float32, torch.float16):
        for lengths in TEXTS:
            check(lengths, dtype, "cpu")
    cuda._KEY_BYTES, cuda.PIECE = 8 * 173 * 2, 4
    for lengths in TEXTS:
        check(lengths, torch.float32, "cpu")
    for lengths in ((), (0, 0)):  # no text, and no token
        hidden, rows, offsets, weight, bias = problem(lengths, torch.float32, "cpu")
        indptr, *others = cuda.max_forward(hidden, rows, offsets, weight, bias)
        assert indptr.tolist() == [0] * (1 + len(lengths)) and not any(len(each) for each in others)
    bias_alone = cuda.max_backward(indptr, rows, rows, torch.ones(0), hidden, weight, (False, False, True))
    assert bias_alone[0] is None and bias_alone[1] is None and bias_alone[2].tolist() == [0.0] * 173


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed here")


@needs_triton
def test_triton_kernels_agree_with_plain_torch_in_tritons_interpreter():
    result = subprocess.run(
        [sys.executable, "-c", "from tests.student import test_cuda; test_cuda.check_everything()"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert result.returncode == 0, result.stderr


@needs_triton
@pytest.mark.parametrize("architecture", [80, 89, 90, 100, 120])
def test_triton_kernels_compile_without_spills_and_with_a_small_epilogue(architecture):
    from benchmarks import kernels

    multiprocessor = {80: 164, 90: 228, 100: 228}.get(architecture, 100)  # KiB of shared memory
    for name, dtype in kernels.DTYPES.items():
        for kernel, binary in kernels.compiled(architecture, dtype):
            taken = kernels.usage(binary)
            assert taken["stack"] == 0, (kernel, name, taken)
            if kernel == "max_tiles":
                # two programs on a multiprocessor, which has 65,536 registers
                assert 2 * taken["registers"] * 128 <= 65_536 and 2 * taken["shared"] <= multiprocessor << 10, taken
                assert taken["products"] > 0 and taken["after_product"] < 1000 and taken["shuffles"] <= 64, taken
