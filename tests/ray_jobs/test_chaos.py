"""Random kills of drivers and workers: the restarted command ends with the bytes of an undisturbed run."""

from __future__ import annotations

import pytest

from tests.ray_jobs.chaos import check


def test_thirty_random_kills_change_no_byte(cluster, tmp_path):
    check(tmp_path, shards=60, kills=30, drivers=6, seed=1)


@pytest.mark.slow
def test_two_hundred_random_kills_change_no_byte(cluster, tmp_path):
    check(tmp_path, shards=300, kills=200, drivers=30, seed=2)
