"""The Triton search: on a GPU where there is one, in Triton's interpreter, and compiled ahead of time."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import sparse

from distill.retrieval import inverted
from distill.retrieval.inverted import InvertedIndex
from tests.retrieval.test_inverted import index_of, reference, whole


def check(device, queries, passages, k, runs, least=None):
    """Compare rankings and bits with those of the C++ search and of the sorted product in NumPy."""
    from distill.retrieval.cuda_search import DeviceIndex

    width = min(k, passages.shape[0])
    least = np.zeros(queries.shape[0], np.float32) if least is None else least
    rows, scores = DeviceIndex.of(runs, device).search(queries, width, least)
    other = InvertedIndex(runs).search(queries, k, least=least)
    expected = reference(queries, passages, k)
    above = expected[1] > least[:, None]
    for found in ((rows, scores), other):
        np.testing.assert_array_equal(found[0], np.where(above, expected[0], -1))
        np.testing.assert_array_equal(found[1], np.where(above, expected[1], 0))


def check_everything(device="cpu"):
    """Ties, a query without terms, several runs, blocks of several windows, more hits than there is room for."""
    from distill.retrieval import cuda_search

    if device == "cpu":  # in Triton's interpreter, which is slow: tiny windows and tiles
        cuda_search.WINDOW, cuda_search.TILES = 32, {"POSTINGS": 8, "PASSAGES": 16}
    queries = sparse.vstack([whole((4, 30), 0.1, 0), sparse.csr_matrix((1, 30), dtype=np.float32)], format="csr")
    passages = whole((150, 30), 0.1, 1)
    for width, run, k in ((13, 80, 7), (96, 150, 1), (64, 77, 1000), (8192, 150, 20)):
        check(device, queries, passages, k, index_of(passages, width, run).runs)
    check(device, queries, passages, 9, index_of(passages, 64, 150).runs, np.full(5, 3, np.float32))
    rng = np.random.default_rng(2)
    half = sparse.random(60, 40, 0.2, "csr", np.float32, rng)
    passages = sparse.vstack([half, half], format="csr")  # every score twice: a sum in another order would break ties
    check(device, sparse.random(3, 40, 0.3, "csr", np.float32, rng), passages, 100, index_of(passages, 128, 120).runs)
    rising = sparse.csr_matrix(np.arange(1, 321, dtype=np.float32)[:, None])
    check(device, sparse.csr_matrix(np.ones((2, 1), np.float32)), rising, 3, index_of(rising, 96, 200).runs)
    signed = whole((60, 20), 0.2, 3)
    signed.data *= rng.choice([-1, 1], len(signed.data))
    check(device, whole((3, 20), 0.2, 4), signed, 60, index_of(signed, 64, 60).runs)


def needs_triton(function):
    return pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed here")(
        function
    )


@needs_triton
def test_rankings_and_bits_equal_those_of_the_cpu_in_tritons_interpreter():
    result = subprocess.run(
        [sys.executable, "-c", "from tests.retrieval import test_cuda_search as test; test.check_everything()"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.gpu
def test_rankings_and_bits_equal_those_of_the_cpu():
    check_everything("cuda")
    rng = np.random.default_rng(5)
    passages = sparse.random(50_000, 2000, 0.03, "csr", np.float32, rng)
    queries = sparse.random(300, 2000, 0.01, "csr", np.float32, rng)
    index = InvertedIndex.of(passages, "cuda")
    for k in (1, 100, 1000, 20_000):
        for found, expected in zip(
            index.search(queries, k), InvertedIndex.of(passages).search(queries, k), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    assert index._on_device is not None  # else processor cores have searched


@needs_triton
@pytest.mark.parametrize("architecture", [80, 89, 90, 100, 120])
def test_kernel_compiles_to_rounded_products_with_a_barrier_between_lists(architecture):
    from benchmarks import kernels
    from distill.retrieval import cuda_search

    ((name, binary),) = kernels.compiled_search(architecture)
    taken = kernels.usage(binary)
    threads = 32 * cuda_search.OPTIONS["num_warps"]
    assert taken["stack"] == 0 and cuda_search.PROGRAMS * threads * taken["registers"] <= 65_536, (name, taken)
    assert taken["shared"] <= 8 << 10, taken
    code = kernels.instructions(binary)
    assert not any(each.startswith("FFMA") for each in code)  # a product that is not rounded before the sum
    # sums are stored, and no sum is read before all threads have met
    last_sum = max(place for place, each in enumerate(code) if each.startswith("FADD"))
    after = [each.split(".")[0] for each in code[last_sum:] if re.match("STG|BAR|LDG", each)]
    assert [each for each, _ in itertools.groupby(after)][:3] == ["STG", "BAR", "LDG"], after


def test_a_device_that_cannot_search_leaves_it_to_processor_cores(monkeypatch, caplog):
    """Without memory, and without the kernel, as on this machine."""
    queries, passages = whole((5, 40), 0.2, 6), whole((80, 40), 0.2, 7)
    expected = InvertedIndex.of(passages).search(queries, 5)

    class Full:
        @classmethod
        def of(cls, runs, device):
            raise torch.OutOfMemoryError("CUDA out of memory")

    class FullLater:
        @classmethod
        def of(cls, runs, device):
            return cls()

        def search(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory")

    for kind in (Full, FullLater):
        monkeypatch.setattr(inverted, "_device_index", lambda device, kind=kind: kind)
        with caplog.at_level(logging.WARNING):
            found = InvertedIndex.of(passages, "cuda").search(queries, 5)
        assert "cuda has too little memory for " in caplog.text
        np.testing.assert_array_equal(found, expected)
        caplog.clear()
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with caplog.at_level(logging.WARNING):
            found = InvertedIndex.of(passages, "cuda").search(queries, 5)
        assert "processor cores search" in caplog.text
        np.testing.assert_array_equal(found, expected)
