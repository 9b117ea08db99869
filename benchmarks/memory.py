"""Peak memory of one training step above the idle process: ours at 1x and at 16x the batch, the peers' at 1x.

Each is measured in its own process, after a step on a small batch has created the optimizer state and loaded libraries.
Prints one JSON line per figure.
Usage: python benchmarks/memory.py [--small] [--active 300] [--times 16] [--uncached-peer]
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
    parser.add_argument("--uncached-peer", action="store_true", help="needs about 20 GB at the full shape")
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


def measured(system: str, args: argparse.Namespace, model: Path, times: int) -> tuple[float, float]:
    """Measure `peak_of_a_step` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(peak_of_a_step, (system, args, model, times))


def peak_of_a_step(system: str, args: argparse.Namespace, model: Path, times: int) -> tuple[float, float]:
    """Gigabytes above the idle process, and the mean active terms per passage (ours; 0 for a peer)."""
    torch.set_num_threads(args.threads)
    small = argparse.Namespace(**{**vars(args), "queries": 2, "passages": 2})
    if system == "ours":
        ours = Ours(args, model, args.precision, times=times)
        batch = ours.sides, ours.plan, ours.labels
        warm_up = Ours(small, model, args.precision)
        warm_up.engine.close()
        ours.sides, ours.plan, ours.labels = warm_up.sides, warm_up.plan, warm_up.labels
        del warm_up
        ours()
        ours.sides, ours.plan, ours.labels = batch
        peak = peak_above_idle(ours)
        return peak, round(float(ours.last.sides[1].nnz.double().mean()), 1)
    peer = Peer(args, model, cached=system == "CachedSpladeLoss", times=times)
    columns, labels = peer.columns, peer.labels
    small_peer = Peer(small, model, cached=False)
    peer.columns, peer.labels = small_peer.columns, small_peer.labels
    del small_peer
    peer()
    peer.columns, peer.labels = columns, labels
    return peak_above_idle(peer), 0.0


if __name__ == "__main__":
    main()
