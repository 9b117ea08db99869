"""The dropout kernel: the share and independence of the dropped values, the gradient, and the attention around it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from distill.student import dropout
from distill.student.kernels import dropout as kernel


@pytest.fixture(autouse=True)
def compiler():
    if kernel.native(kernel.SOURCE) is None:
        pytest.skip("needs a C++ compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 127, 128, 5001, 400_003])
def test_dropout_zeroes_or_scales_values_and_the_gradient_by_the_same_mask(dtype, size):
    torch.manual_seed(3)
    x = torch.randn(size, dtype=dtype).requires_grad_()
    y = kernel.dropout(x, 0.25)
    kept = y != 0
    scaled = x.detach() / 0.75
    torch.testing.assert_close(
        y.detach(), torch.where(kept, scaled, 0), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0
    )
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, kept.to(dtype) / 0.75)
    if size > 100_000:
        assert kept.double().mean() == pytest.approx(0.75, abs=5 * (0.25 * 0.75 / size) ** 0.5)


def test_dropout_masks_are_uncorrelated_along_a_tensor_and_between_draws():
    torch.manual_seed(0)
    first, second = (kernel.dropout(torch.ones(1 << 20), 0.5).sign() * 2 - 1 for _ in range(2))
    bound = 5 / first.numel() ** 0.5  # five standard deviations of the mean of independent signs
    assert abs(float((first * second).mean())) < bound
    for distance in (1, 2, 8, 16, 32, 64, 128, 1024):
        assert abs(float((first[:-distance] * first[distance:]).mean())) < 1.1 * bound


def test_dropout_masks_depend_on_the_generator_and_not_on_threads():
    x, before = torch.randn(300_000), torch.get_num_threads()
    masks = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            masks.append(kernel.dropout(x, 0.1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*masks) and not torch.equal(masks[0], kernel.dropout(x, 0.1))


def test_dropout_masks_equal_philox_in_python_integers():
    """Against the counter-based generator as published (Salmon et al. 2011), in Python's integers."""

    def philox(counter, key):
        words, keys = [counter & 0xFFFFFFFF, counter >> 32, 0, 0], [key & 0xFFFFFFFF, key >> 32]
        for _ in range(10):
            left, right = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
            words = [
                (right >> 32) ^ words[1] ^ keys[0],
                right & 0xFFFFFFFF,
                (left >> 32) ^ words[3] ^ keys[1],
                left & 0xFFFFFFFF,
            ]
            keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return words

    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # the authors' known answer
    seed, p = 0x123456789ABCDEF, 0.3
    mask = kernel.masked(torch.ones(1000), p, seed) != 0
    for i in range(1000):
        block, inside = divmod(i, 128)
        row, lane = divmod(inside, 16)
        half = philox(block * 16 + lane, seed)[row // 2] >> 16 * (row % 2) & 0xFFFF
        assert bool(mask[i]) == (half >= round(p * 65536))


def model_and_inputs():
    torch.manual_seed(1)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    ).train()
    ids = torch.randint(5, 50, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, 4:] = mask[2, 1:] = 0
    return model, ids, mask


def test_attention_written_out_equals_torchs_with_its_gradients():
    model, ids, mask = model_and_inputs()
    ours = copy.deepcopy(model)
    dropout.use_kernel(ours)
    assert any(isinstance(module, dropout.Dropout) for module in ours.modules())
    for mlm in (model, ours):
        dropout.set_dropout(mlm, 0.0)
    for layer in ours.bert.encoder.layer:  # takes the written-out route, but drops no weight
        layer.attention.self.dropout.p = 1e-9
    logits = []
    for mlm in (model, ours):
        out = mlm(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        out.square().mean().backward()
        logits.append(out.detach())
    torch.testing.assert_close(logits[1], logits[0])
    for (name, expected), parameter in zip(model.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_attention_averaged_over_dropout_draws_is_the_output_without_dropout():
    torch.manual_seed(2)
    query, key, value = (torch.randn(2, 2, 5, 8) for _ in range(3))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, :, :, 3:] = False
    module = nn.Module()
    draws = torch.stack([dropout.attention(module, query, key, value, mask, 0.2)[0] for _ in range(4000)])
    expected = dropout.attention(module, query, key, value, mask, 0.0)[0]
    assert float((draws.mean(0) - expected).abs().max()) < 0.05
    assert float(draws.std(0).min()) > 0.01


def test_dropout_kernel_drops_nothing_in_evaluation_mode():
    model, ids, mask = model_and_inputs()
    dropout.use_kernel(model)
    model.eval()
    with torch.no_grad():
        assert torch.equal(*(model(input_ids=ids, attention_mask=mask).logits for _ in range(2)))
