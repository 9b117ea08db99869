"""One process of a real DeepSpeed run of a CSR student: two steps for each ZeRO stage, weights written by rank 0.

python -m tests.training.csr_worker MODEL OUT; the rank comes from the environment, as under torchrun.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

from distill import config
from distill.losses.objective import GlobalSlice, Supervision, objective
from distill.student.csr import CsrStudent
from distill.student.dropout import set_dropout
from distill.training.engine import Engine
from distill.training.step import TokenBatch, cached_step, plan
from distill.training.world import World, join
from tests.training.reference import PASSAGE_LENGTH, QUERY_LENGTH, make_batch, train_section

SECTION = config.CsrStudent(
    kind="csr",
    model="-",
    latents=96,
    k=8,
    dead_after=2,
    reconstruction=config.Reconstruction(weight=2.0, beta=0.3),
    query_max_length=QUERY_LENGTH,
    passage_max_length=PASSAGE_LENGTH,
)
TRAIN = {
    "losses": [{"kind": "kl"}, {"kind": "margin-mse", "weight": 0.05}, {"kind": "infonce", "weight": 0.5}],
    "query_regularizers": [],
    "passage_regularizers": [],
}
VOCABULARY = 200  # token ids below it are words of the tiny models


def start(model: str) -> CsrStudent:
    """A CSR student with half of its latents dead."""
    torch.manual_seed(3)
    student = CsrStudent.start(SECTION.model_copy(update={"model": model}))
    student.autoencoder.stats_last_nonzero[::2] = 5
    set_dropout(student, 0.0)
    student.begin_training(SECTION)
    return student


def run(model: str, stage: int, kept_tokens: float, world: World) -> dict[str, torch.Tensor]:
    student = start(model)
    train = train_section(deepspeed={"zero_optimization": {"stage": stage}}, **TRAIN)
    engine = Engine(student, train, world, train.precision)
    for step in range(2):
        queries, passages, labels = make_batch(step, VOCABULARY)
        total, lists = labels.shape
        here = slice(world.rank * total // world.size, (world.rank + 1) * total // world.size)
        sides = (
            TokenBatch(queries[here], QUERY_LENGTH, 2),
            TokenBatch(passages[here.start * lists : here.stop * lists], PASSAGE_LENGTH, 2),
        )
        goal = partial(
            objective,
            train,
            supervision=Supervision(labels[here], GlobalSlice(here.start, total)),
            step=step + 1,
            own_losses=student.own_losses,
        )
        cached_step(engine, sides, plan(sides, 60, world, kept_tokens), goal, lambda out_of_memory: None)
        engine.step(1.0)
    parameters = engine.parameters()
    engine.close()
    return parameters


if __name__ == "__main__":
    torch.set_num_threads(1)
    process = join()
    with process.leaving():
        for zero in (0, 2):
            result = run(sys.argv[1], zero, 120.0 if zero else 0.0, process)
            if process.rank == 0:
                torch.save(result, Path(sys.argv[2]) / f"zero{zero}.pt")
