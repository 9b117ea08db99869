"""Random kills of drivers and workers: the restarted command ends with the bytes of an undisturbed run."""

from __future__ import annotations

import pytest

from tests.ray_jobs.chaos import check


def test_a_few_random_kills_change_no_byte(cluster, tmp_path):
    check(tmp_path, shards=20, kills=8, drivers=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_kills_change_no_byte(cluster, tmp_path, request):
    kills = request.config.getoption("--kills")
    check(tmp_path, shards=kills + kills // 2, kills=kills, drivers=kills // 7, seed=2)
