"""One local Ray for the session."""

from __future__ import annotations

import pytest
import ray

from distill.config import Cluster
from ray_jobs.cluster import ray_cluster


@pytest.fixture(scope="session")
def cluster():
    with ray_cluster(Cluster(cpus=2, object_store_gib=0.1)):
        yield
    assert not ray.is_initialized()
