"""Distributed distillation of rankers into learned sparse retrievers (SPLADE).

    from distill import load_recipe, run_pipeline
    run = run_pipeline(load_recipe("configs/quickstart.yaml"))

What is listed in `__all__` is the public API; it is imported on first use, so that `import distill` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from distill.errors import DistillError
    from distill.pipeline.run import run_pipeline
    from distill.recipe.expand import open_runs
    from distill.recipe.load import load_recipe
    from distill.run.run import Run
    from distill.run.stage import Stage
    from distill.sparse.collective import sum_over_processes
    from distill.sparse.reps import RepsGradient, SparseReps
    from distill.student.base import Student
    from distill.student.checkpoint import load_student

_HOMES = {
    "DistillError": "distill.errors",
    "RepsGradient": "distill.sparse.reps",
    "Run": "distill.run.run",
    "SparseReps": "distill.sparse.reps",
    "Stage": "distill.run.stage",
    "Student": "distill.student.base",
    "load_recipe": "distill.recipe.load",
    "load_student": "distill.student.checkpoint",
    "open_runs": "distill.recipe.expand",
    "run_pipeline": "distill.pipeline.run",
    "sum_over_processes": "distill.sparse.collective",
}

__all__ = [
    "DistillError",
    "RepsGradient",
    "Run",
    "SparseReps",
    "Stage",
    "Student",
    "load_recipe",
    "load_student",
    "open_runs",
    "run_pipeline",
    "sum_over_processes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
