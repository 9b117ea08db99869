"""Pairs of a small run, with candidates for every split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.run.layout import RunFolder
from distill.store.texts import TextStore
from teachers.base import Pairs
from tests.helpers.small_run import PASSAGES, QUERIES, small_recipe, write_run
from tests.helpers.stages import mine


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = write_run(tmp_path / "run")
    mine(small_recipe(tmp_path / "run"), folder)
    return folder


@pytest.fixture
def pairs() -> Pairs:
    """Every test query with every passage, the variant of passage 6 included."""
    n = len(PASSAGES) + 1
    return Pairs(np.repeat(np.arange(len(QUERIES["test"])), n), np.tile(np.arange(n), len(QUERIES["test"])), "test")


@pytest.fixture
def texts(folder, pairs) -> tuple[list[str], list[str]]:
    """Queries and passages of `pairs`."""
    return (
        TextStore.open(folder.queries("test")).texts(pairs.query_rows),
        TextStore.open(folder.passages).texts(pairs.passage_rows),
    )
