"""The recipe of this room's tests."""

from __future__ import annotations

from pathlib import Path

from distill.config import Recipe
from distill.recipe.load import parse_recipe


def make_recipe(model, root: Path, student: dict | None = None, teachers: dict | None = None, **train) -> Recipe:
    """A recipe on the data of `labelled_folder`; `student` and `train` override small defaults."""
    return parse_recipe(
        {
            "name": "test",
            "run_dir": str(root / "run"),
            "data": {"source": {"kind": "jsonl", "path": str(root / "triples.jsonl"), "dev_queries": 8}},
            "teachers": teachers or {"given": {"kind": "imported"}},
            "student": {"model": str(model), "query_max_length": 12, "passage_max_length": 24, **(student or {})},
            "train": {
                "batch_size": 6,
                "negatives": 3,
                "steps": 6,
                "lr": 1e-3,
                "processes": 1,
                "precision": "fp32",
                "chunk_tokens": 64,
                "losses": [{"kind": "kl"}, {"kind": "margin-mse", "weight": 0.05}],
                "query_regularizers": [{"kind": "l1", "weight": 1e-3, "ramp_steps": 4}],
                "passage_regularizers": [{"kind": "flops", "weight": 1e-3, "ramp_steps": 4}],
                **train,
            },
            "evaluate": {"precision": "float32"},  # `auto` measures, and its choice may differ between calls
            "tracking": {"log_every": 1},
        }
    )
