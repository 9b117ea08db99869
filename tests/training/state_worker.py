"""Move the optimizer's state between ZeRO stages: python -m tests.training.state_worker MODEL OUT STAGES."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertForMaskedLM

from distill.losses.objective import GlobalSlice, Supervision, objective
from distill.student.dropout import set_dropout
from distill.student.model import SpladeStudent
from distill.training.checkpoints import load_parameters
from distill.training.engine import Engine
from distill.training.step import TokenBatch, cached_step, plan
from distill.training.world import World, join
from tests.training.reference import PASSAGE_LENGTH, QUERY_LENGTH, make_batch, train_section


def open_engine(model: str, zero: dict, world: World, parameters: dict | None) -> tuple[Engine, object]:
    student = SpladeStudent(
        BertForMaskedLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
        query_max_length=QUERY_LENGTH,
        passage_max_length=PASSAGE_LENGTH,
    )
    set_dropout(student, 0.0)
    if parameters is not None:
        load_parameters(student, parameters)
    train = train_section(
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.1,
        deepspeed={"zero_optimization": {"stage3_param_persistence_threshold": 0, **zero}},
    )
    return Engine(student, train, world, "fp32"), train


def step(engine: Engine, train, number: int, world: World) -> None:
    queries, passages, labels = make_batch(number, engine.student.mlm.config.vocab_size)
    total, lists = labels.shape
    here = slice(world.rank * total // world.size, (world.rank + 1) * total // world.size)
    sides = (
        TokenBatch(queries[here], QUERY_LENGTH, 2),
        TokenBatch(passages[here.start * lists : here.stop * lists], PASSAGE_LENGTH, 2),
    )
    supervision = Supervision(labels[here], GlobalSlice(here.start, total))
    goal = partial(objective, train, supervision=supervision, step=number)
    cached_step(engine, sides, plan(sides, 100, world, 0), goal, lambda out_of_memory: None)
    assert engine.step(1.0).applied


def main(model: str, out: str, *zeros: str) -> None:
    torch.set_num_threads(1)
    world = join()
    with world.leaving():
        move(model, Path(out), zeros, world)


def move(model: str, out: Path, zeros: tuple[str, ...], world: World) -> None:
    """Three steps in ZeRO-0; the state after two goes to each of `zeros` for the third."""
    engine, train = open_engine(model, {"stage": 0}, world, None)
    step(engine, train, 1, world)
    step(engine, train, 2, world)
    saved = world.broadcast((engine.parameters(), engine.optimizer_state(), engine.updates()))
    step(engine, train, 3, world)
    expected = engine.parameters()
    results = {}
    for zero in zeros:
        settings = {"stage": int(zero[0]), **({"offload_optimizer": {"device": "cpu"}} if "offload" in zero else {})}
        engine, train = open_engine(model, settings, world, saved[0])
        engine.load_optimizer_state(*saved[1:])
        back = engine.parameters(), engine.optimizer_state(), engine.updates()
        step(engine, train, 3, world)
        results[zero] = {"back": back, "next": engine.parameters()}
        engine.close()
    if world.rank == 0:
        torch.save({"saved": saved, "expected": expected, "results": results}, out / "states.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
