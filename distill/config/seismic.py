"""Settings of approximate search, for miners and evaluations."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill.config.base import Fraction, Positive, Section


class Seismic(Section):
    """Approximate search in clustered posting lists (Bruch et al., SIGIR 2024); named as in pyseismic-lsr."""

    n_postings: Positive = 3500
    """Mean number of postings kept per term."""
    centroid_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Number of clusters of a posting list, per posting."""
    min_cluster_size: Positive = 2
    """Minimum number of postings per cluster."""
    summary_energy: Fraction = 0.4
    """Share of a cluster's weights that its summary keeps."""
    query_cut: Positive = 10
    """Number of query terms, the strongest first, whose posting lists are searched."""
    heap_factor: Annotated[float, Field(gt=0, le=1)] = 0.7
    """How readily clusters are skipped; 1: only those that cannot reach the best k. Lower is faster."""
