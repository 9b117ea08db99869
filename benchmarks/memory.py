"""Peak memory of one training step above the idle process: ours at 1x and at 16x the batch, and the peers' at 1x.

Each in a process of its own, after a step on a small batch (the optimizer's state and the libraries are then there).
One JSON line a figure. Usage: python benchmarks/memory.py [--small] [--active 300] [--times 16] [--uncached-peer]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

import torch
from measuring import peak_above_idle
from steps import Ours, Peer, arguments, make_model, parse, report


def main() -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=16)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--uncached-peer", action="store_true", help="needs some 20 GB at the full shape")
    args = parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(args, Path(folder))
        once, active = measured("ours", args, model, 1)
        many, _ = measured("ours", args, model, args.times)
        report(
            f"peak memory at {args.times}x the batch / at 1x",
            args,
            "GB",
            many,
            once,
            many / once,
            precision=args.precision,
            measured_active=active,
        )
        for name in ("CachedSpladeLoss", *(["SpladeLoss"] if args.uncached_peer else [])):
            peer, _ = measured(name, args, model, 1)
            report(f"peak memory / {name}", args, "GB", once, peer, once / peer, precision=args.precision)


def measured(which: str, args: argparse.Namespace, model: Path, times: int) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(peak_of_a_step, (which, args, model, times))


def peak_of_a_step(which: str, args: argparse.Namespace, model: Path, times: int) -> tuple[float, float]:
    """Gigabytes above the idle process, and the measured active terms of a passage (ours)."""
    torch.set_num_threads(args.threads)
    small = argparse.Namespace(**{**vars(args), "queries": 2, "passages": 2})
    if which == "ours":
        step = Ours(args, model, args.precision, times=times)
        first = Ours(small, model, args.precision)
        first.engine.close()
        step.sides, whole, step.plan, plan = first.sides, step.sides, first.plan, step.plan
        step.labels, labels = first.labels, step.labels
        del first
        step()
        step.sides, step.plan, step.labels = whole, plan, labels
    else:
        step = Peer(args, model, cached=which == "CachedSpladeLoss", times=times)
        whole, labels = step.columns, step.labels
        tiny = Peer(small, model, cached=False)
        step.columns, step.labels = tiny.columns, tiny.labels
        del tiny
        step()
        step.columns, step.labels = whole, labels
    peak = peak_above_idle(step)
    active = float(step.last.sides[1].active.double().mean()) if which == "ours" else 0.0
    return peak, round(active, 1)


if __name__ == "__main__":
    main()
