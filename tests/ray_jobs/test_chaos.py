"""Whatever is killed, and whenever: the same command started again ends with the bytes of an undisturbed run."""

from __future__ import annotations

import pytest
from chaos import check


def test_thirty_kills(cluster, tmp_path):
    check(tmp_path, shards=60, kills=30, drivers=6, seed=1)


@pytest.mark.slow
def test_two_hundred_kills(cluster, tmp_path):
    check(tmp_path, shards=300, kills=200, drivers=30, seed=2)
