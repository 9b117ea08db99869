"""One process of a real DeepSpeed run: three steps for each case, weights and norms written by rank 0.

python -m tests.training.step_worker MODEL OUT CASES.json; the rank comes from the environment, as under torchrun.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertForMaskedLM

from distill.losses.objective import GlobalSlice, Supervision, objective
from distill.student.dropout import set_dropout
from distill.student.model import SpladeStudent
from distill.student.query_table import QueryTable
from distill.training.engine import Engine
from distill.training.step import TokenBatch, cached_step, plan
from distill.training.world import World, join
from tests.training.reference import PASSAGE_LENGTH, QUERY_LENGTH, make_batch, table_weights, train_section


def run(model: str, case: dict, world: World) -> tuple[dict, list[float]]:
    kind, mlm = case.get("query", "model"), BertForMaskedLM.from_pretrained(model)
    table = None if kind == "model" else QueryTable(table_weights(mlm.config.vocab_size), learned=kind == "learned")
    student = SpladeStudent(
        mlm,
        AutoTokenizer.from_pretrained(model),
        query_max_length=QUERY_LENGTH,
        passage_max_length=PASSAGE_LENGTH,
        table=table,
        inference_free=kind in ("idf", "learned"),
    )
    set_dropout(student, 0.0)
    zero = {"stage": case["stage"], "stage3_param_persistence_threshold": 0, **case.get("zero", {})}
    train = train_section(deepspeed={"zero_optimization": zero}, **case.get("train", {}))
    engine = Engine(student, train, world, train.precision)
    if engine.loss_scale is not None:
        engine.loss_scale.scale = 8.0  # as after a few overflows
    norms = []
    for step in range(3):
        queries, passages, labels = make_batch(step, student.mlm.config.vocab_size)
        total, lists = labels.shape
        here = slice(world.rank * total // world.size, (world.rank + 1) * total // world.size)
        sides = (
            TokenBatch(queries[here], QUERY_LENGTH, student.special_tokens("query")),
            TokenBatch(passages[here.start * lists : here.stop * lists], PASSAGE_LENGTH, 2),
        )
        goal = partial(
            objective,
            train,
            supervision=Supervision(labels[here].to(world.device), GlobalSlice(here.start, total)),
            step=step + 1,
        )
        cached_step(
            engine,
            sides,
            plan(sides, case["chunk_tokens"], world, case["kept_tokens"]),
            goal,
            lambda out_of_memory: None,
        )
        norms.append(engine.step(1.0).grad_norm)
    parameters = {name.removeprefix("mlm."): value for name, value in engine.parameters().items()}
    engine.close()
    return parameters, norms


def main(model: str, out: str, cases: str) -> None:
    torch.set_num_threads(1)
    world = join()
    with world.leaving():
        for name, case in json.loads(Path(cases).read_text()).items():
            parameters, norms = run(model, case, world)
            if world.rank == 0:
                torch.save({"parameters": parameters, "norms": norms}, Path(out) / f"{name}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
