"""The training log: one JSON object a line in logs/train.jsonl, and what is measured on a step."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.data.files import read_json_lines, write_atomic
from distill.losses.collective import sum_over_processes
from distill.student.head import SparseReps


class TrainLog:
    """Appends lines; `enabled` on rank 0 only. Lines of steps after `resumed_at` are those of a lost attempt and go."""

    def __init__(self, path: Path, resumed_at: int, enabled: bool):
        self.path, self.enabled = path, enabled
        if enabled:
            with write_atomic(path) as temporary:
                temporary.write_text(
                    "".join(
                        map(_line, (values for values in read_json_lines(path) if values.get("step", 0) <= resumed_at))
                    ),
                    encoding="utf-8",
                )

    def write(self, **values: Any) -> None:
        if self.enabled:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line(values))


def _line(values: dict[str, Any]) -> str:
    """One line of strict JSON: a number that is not finite becomes null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def sparsity(queries: SparseReps, passages: SparseReps) -> dict[str, float]:
    """Over the texts of all processes: mean active terms, share of texts without any, and FLOPS: expected products
    of a query and a passage, the sum over terms of the two shares of texts in which the term is active."""
    measured: dict[str, float] = {}
    shares = []
    for side, reps in (("query", queries), ("passage", passages)):
        counts = torch.bincount(reps.terms, minlength=reps.vocab_size).double()  # [V]
        sums = sum_over_processes(torch.cat([counts, counts.new_tensor([len(reps), (reps.active == 0).sum()])]))
        texts = sums[-2]
        shares.append(sums[:-2] / texts)
        measured[f"{side}_active"] = float(shares[-1].sum())
        measured[f"{side}_empty"] = float(sums[-1] / texts)
    measured["flops"] = float((shares[0] * shares[1]).sum())
    return measured


def texts_with(sides: tuple[SparseReps, SparseReps]) -> Tensor:
    """How many texts of all processes have each term: [V]."""
    counts = sum(torch.bincount(reps.terms, minlength=reps.vocab_size).double() for reps in sides)
    return sum_over_processes(counts)


def total(value: float, device: torch.device) -> float:
    """The sum over processes."""
    return float(sum_over_processes(torch.tensor(value, dtype=torch.float64, device=device)))


def peak_memory_gib(device: torch.device) -> float:
    """Of this process: on the GPU, or else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def spread(scores: Tensor) -> float:
    """Mean standard deviation of the scores (or labels) [b, 1+n] of a query's passages."""
    return float(scores.std(1, correction=0).mean())


def teacher_confidence(labels: Tensor, temperature: float) -> float:
    """Mean probability of the teacher's favourite passage: 1 means that its distribution has collapsed."""
    return float((labels / temperature).softmax(1).max(1).values.mean())
