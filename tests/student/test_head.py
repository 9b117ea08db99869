"""The head equals the materialised formula under plain autograd, on every kernel that a CPU may run."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from distill import native
from distill.student.head import SpladeHead
from distill.student.kernels import cpu

VOCABULARY, WIDTH = 173, 45
POOLINGS, ACTIVATIONS = ("max", "sum"), ("relu", "log1p_relu")
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86 processors")


CPUINFO = Path("/proc/cpuinfo")
AMX = CPUINFO.exists() and "amx_bf16" in CPUINFO.read_text(encoding="utf-8")
TILES = pytest.mark.skipif(not AMX, reason="without AMX, the same as native")


@pytest.fixture(
    params=[
        "native",
        pytest.param("native -mno-amx-tile -mno-amx-bf16", marks=TILES),
        pytest.param("x86-64-v3", marks=X86),
        pytest.param("x86-64", marks=X86),
        "torch",
    ]
)
def kernel(request, monkeypatch):
    """Kernels compiled for this processor, also without AMX, for AVX2 and for SSE, and the torch fallback.

    Patches a private function: users cannot choose the kernel, which follows from their processor.
    """
    library = (
        None if request.param == "torch" else cpu.declared(native.load(cpu.SOURCE, *f"-march={request.param}".split()))
    )
    monkeypatch.setattr(cpu, "_library", lambda: library)
    return request.param


def materialised(hidden, mask, weight, bias, pooling="max", activation="relu"):
    """sentence-transformers' SpladePooling on the decoder's logits: dense [B, V]."""
    logits = F.linear(hidden, weight, bias)  # [B, L, V]
    scores = (logits * mask.unsqueeze(-1)).relu().log1p()
    if activation == "log1p_relu":
        scores = scores.log1p()
    return scores.max(1).values if pooling == "max" else scores.sum(1)


def problem(shift=0.0, lengths=(7, 12, 1, 12, 0, 5), seed=0):
    """Hidden states, mask (padding, one-token and empty texts), weight and bias; `shift` sets the density."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(lengths), max(lengths), WIDTH, generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator) / WIDTH**0.5
    bias = torch.randn(VOCABULARY, generator=generator) * 0.1 + shift
    return hidden, mask, weight, bias


def leaves(hidden, weight, bias):
    return hidden.clone().requires_grad_(), torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())


def close(ours, reference, tolerance=1e-5):
    """Within `tolerance`, relative to each value and to the largest."""
    scale = float(reference.abs().max()) if reference.numel() else 0.0
    torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance * scale + 1e-30)


def check(hidden, mask, weight, bias, pooling="max", activation="relu"):
    """Values and gradients of the plain route and of the surrogate; returns the representations."""
    upstream = torch.randn(len(hidden), len(weight), generator=torch.Generator().manual_seed(1))
    reference = leaves(hidden, weight, bias)
    expected = materialised(reference[0], mask, *reference[1:], pooling, activation)
    expected.mul(upstream).sum().backward()

    ours = leaves(hidden, weight, bias)
    head = SpladeHead(*ours[1:], pooling, activation)
    reps = head(ours[0], mask)
    close(reps.to_dense(), expected.detach())
    assert reps.terms.numel() == int((expected > 0).sum())
    assert reps.indptr.tolist() == [0, *(expected > 0).sum(1).cumsum(0).tolist()]
    reps.to_dense().mul(upstream).sum().backward()
    for mine, theirs in zip(ours, reference, strict=True):
        close(mine.grad, theirs.grad)

    again = leaves(hidden, weight, bias)
    head = SpladeHead(*again[1:], pooling, activation)
    grad_values = upstream[reps.row_ids, reps.terms]
    scalar = head.surrogate(again[0], mask, reps.detach(), grad_values)
    close(scalar.detach(), (expected * upstream).sum().detach(), 1e-4)
    (scalar * 1024).backward()  # as fp16 loss scaling does
    for mine, theirs in zip(again, reference, strict=True):
        close(mine.grad / 1024, theirs.grad)
    return reps


@pytest.mark.parametrize("shift", [-100.0, -2.0, 0.0, 100.0], ids=["nothing", "sparse", "half", "dense"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_max_pooling_equals_the_materialised_formula_at_every_density(kernel, activation, shift):
    check(*problem(shift), activation=activation)


@pytest.mark.parametrize("shift", [-100.0, -2.0, 0.0, 100.0], ids=["nothing", "sparse", "half", "dense"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sum_pooling_equals_the_materialised_formula_at_every_density(activation, shift):
    check(*problem(shift), "sum", activation)


def test_argmax_is_the_token_that_attains_the_maximum(kernel):
    hidden, mask, weight, bias = problem()
    reps = SpladeHead(torch.nn.Parameter(weight), torch.nn.Parameter(bias))(hidden, mask)
    logits = F.linear(hidden, weight, bias).masked_fill(mask[..., None] == 0, -torch.inf)
    assert torch.equal(reps.argmax, logits.argmax(1)[reps.row_ids, reps.terms])


def test_the_first_of_tied_positions_wins_and_gets_the_whole_gradient(kernel):
    hidden, mask, weight, bias = problem(lengths=(20, 9))
    hidden, weight = hidden.round(), (2 * weight).round()  # exact sums in any order, so that ties are ties everywhere
    hidden[0, 3:] = hidden[0, 2]
    hidden[1] = 0  # all logits of this text are the bias
    reps = check(hidden, mask, weight, bias)
    assert reps.argmax[: reps.indptr[1]].max() == 2 and not reps.argmax[reps.indptr[1] :].any()


def test_max_pooling_ignores_padding_at_any_position(kernel):
    hidden, mask, weight, bias = problem(lengths=(12, 12, 12))
    mask[0, :5], mask[1, 3:9], mask[2, ::2] = 0, 0, 0
    check(hidden, mask, weight, bias)


@pytest.mark.parametrize("lengths", [(1,), (3, 1, 1, 2), (64,), (0, 1, 0)], ids=str)
def test_max_pooling_of_batches_with_one_token_and_empty_texts(kernel, lengths):
    check(*problem(lengths=lengths))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 4)], ids=str)
def test_batches_without_tokens_give_empty_representations_and_zero_gradients(kernel, shape, pooling):
    _, _, weight, bias = problem()
    hidden = torch.zeros(*shape, WIDTH, requires_grad=True)
    reps = SpladeHead(torch.nn.Parameter(weight), torch.nn.Parameter(bias), pooling)(hidden, torch.zeros(shape))
    assert reps.indptr.tolist() == [0] * (shape[0] + 1)
    reps.values.sum().backward()
    assert not hidden.grad.any()


def test_vocabularies_and_widths_not_divisible_by_the_kernels_blocks(kernel):
    generator = torch.Generator().manual_seed(2)
    for vocabulary, width in ((1, 1), (47, 5), (48, 16), (1000, 33)):
        hidden, mask, *_ = problem()
        check(
            torch.randn(*hidden.shape[:2], width, generator=generator),
            mask,
            torch.randn(vocabulary, width, generator=generator),
            torch.randn(vocabulary, generator=generator),
        )


def test_head_without_bias_and_with_frozen_weights(kernel):
    hidden, mask, weight, _ = problem()
    h = hidden.clone().requires_grad_()
    SpladeHead(torch.nn.Parameter(weight, requires_grad=False), None)(h, mask).values.sum().backward()
    reference = hidden.clone().requires_grad_()
    materialised(reference, mask, weight, None).sum().backward()
    close(h.grad, reference.grad)


def test_nan_in_the_hidden_states_reaches_the_values(kernel):
    hidden, mask, weight, bias = problem()
    hidden[1, 2, 0] = torch.nan
    dense = SpladeHead(torch.nn.Parameter(weight), torch.nn.Parameter(bias))(hidden, mask).to_dense()
    assert dense[1].isnan().all() and not dense[0].isnan().any()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_float32_values_and_half_precision_gradients(kernel, dtype, pooling):
    hidden, mask, weight, bias = (x.to(dtype) if x.is_floating_point() else x for x in problem())
    reference = [x.float().requires_grad_() for x in (hidden, weight, bias)]
    expected = materialised(reference[0], mask, *reference[1:], pooling)
    expected.sum().backward()
    ours = leaves(hidden, weight, bias)
    reps = SpladeHead(*ours[1:], pooling)(ours[0], mask)
    assert reps.values.dtype == torch.float32
    close(reps.to_dense(), expected.detach(), 1e-4)
    reps.values.sum().backward()
    for mine, theirs in zip(ours, reference, strict=True):
        assert mine.grad.dtype == dtype
        close(mine.grad.float(), theirs.grad, 1e-2)


def test_a_float32_bias_is_not_rounded_to_the_weights_dtype(kernel):
    hidden, mask, weight, _ = problem()
    bias = torch.linspace(9, 10, VOCABULARY)  # bf16 distinguishes only 16 of these
    reps = SpladeHead(torch.nn.Parameter(weight.bfloat16()), torch.nn.Parameter(bias))(hidden.bfloat16(), mask)
    expected = materialised(hidden.bfloat16().float(), mask, weight.bfloat16().float(), bias)
    close(reps.to_dense().detach(), expected)


def test_tied_weights_accumulate_both_gradients(kernel):
    _, mask, weight, bias = problem()
    ids = torch.randint(0, VOCABULARY, mask.shape)
    tied, expected = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(weight.clone())
    SpladeHead(tied, torch.nn.Parameter(bias))(F.embedding(ids, tied), mask).values.sum().backward()
    materialised(F.embedding(ids, expected), mask, expected, bias).sum().backward()
    close(tied.grad, expected.grad)


def test_head_results_do_not_depend_on_the_number_of_threads(kernel):
    hidden, mask, weight, bias = problem(lengths=tuple(range(1, 30)))
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            h, w, b = leaves(hidden, weight, bias)
            reps = SpladeHead(w, b)(h, mask)
            reps.values.square().sum().backward()
            results.append((reps.terms, reps.argmax, reps.values.detach(), h.grad, w.grad, b.grad))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three) if kernel != "torch" else torch.allclose(one, three, atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_head_under_autocast_stays_near_the_float32_formula(kernel, pooling):
    hidden, mask, weight, bias = problem()
    half, parameters = hidden.bfloat16().requires_grad_(), [torch.nn.Parameter(x) for x in (weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        reps = SpladeHead(*parameters, pooling=pooling)(half, mask)
    reps.values.sum().backward()
    exact = hidden.bfloat16().float().requires_grad_()
    expected = materialised(exact, mask, weight, bias, pooling)
    expected.sum().backward()
    assert reps.values.dtype == torch.float32
    assert float((reps.to_dense() - expected).detach().norm() / expected.norm()) < 5e-3
    assert float((half.grad.float() - exact.grad).norm() / exact.grad.norm()) < 5e-2


def test_without_a_compiler_the_torch_kernels_run_with_one_warning(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    caches = (cpu._library, native.native)  # once per process otherwise
    for cache in caches:
        cache.cache_clear()
    hidden, mask, weight, bias = problem()
    try:
        for _ in range(2):
            reps = SpladeHead(torch.nn.Parameter(weight), torch.nn.Parameter(bias))(hidden, mask)
        close(reps.to_dense(), materialised(hidden, mask, weight, bias))
        assert len(caplog.records) == 1 and "slower" in caplog.text
    finally:
        for cache in caches:
            cache.cache_clear()
