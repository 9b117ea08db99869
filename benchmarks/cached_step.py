"""One training step (MarginMSE + FLOPS, AdamW) of ours beside sentence-transformers' CachedSpladeLoss and SpladeLoss.

Also beside the bare matrix products of the route taken, and cached beside our own plain step. One JSON line a figure.
Usage: python benchmarks/cached_step.py [--small] [--active 300] [--precision fp32 bf16] [--no-peer]
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from steps import Ours, Peer, arguments, make_model, median_ratio, parse, report, take_turns

OPEN = 64.0  # GiB: an activation budget that holds any batch of these


def main() -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--uncached-peer", action="store_true", help="needs some 20 GB at the full shape")
    args = parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(args, Path(folder))
        for precision in args.precision:
            figures(args, model, precision)


def figures(args, model: Path, precision: str) -> None:
    routes = {"every chunk encoded twice": Ours(args, model, precision),
              "activation budget open": Ours(args, model, precision, budget_gib=OPEN)}
    for route, ours in routes.items():
        again = ours.plan[0].keep is False
        mine, bare = take_turns(ours, lambda ours=ours, again=again: bare_products(ours, args, precision, again),
                                args.repeats)
        report(f"step, {route} / bare matrix products", args, "s", statistics.median(mine), statistics.median(bare),
               median_ratio(mine, bare), precision=precision, measured_active=measured_active(ours))
    cached, plain = take_turns(*routes.values(), max(args.repeats, 5))
    report("cached step / our plain step", args, "s", statistics.median(cached), statistics.median(plain),
           median_ratio(cached, plain), precision=precision)
    if not args.no_peer:
        for name, peer in (("CachedSpladeLoss", Peer(args, model, cached=True)),
                           *((("SpladeLoss", Peer(args, model, cached=False)),) if args.uncached_peer else ())):
            for route, ours in routes.items():
                mine, theirs = take_turns(ours, peer, args.repeats)
                report(f"step, {route} / {name} in float32", args, "s", statistics.median(mine),
                       statistics.median(theirs), median_ratio(mine, theirs), precision=precision)
    for ours in routes.values():
        ours.close()


def measured_active(ours: Ours) -> float:
    return round(float(ours.last.sides[1].active.double().mean()), 1)


def bare_products(ours: Ours, args, precision: str, again: bool) -> None:
    """Only the dense products that the step cannot do without: each Linear forward (twice where chunks are encoded
    again) and backward (two), and the head's product over the vocabulary once; without padding, in one piece."""
    tokens = sum(int(texts.lengths.sum()) for texts in ours.sides)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    width = args.hidden
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    piece = min(tokens, args.chunk_tokens)
    for ins, outs in shapes:
        x, w, dy = (torch.ones(shape, dtype=dtype) for shape in ((piece, ins), (outs, ins), (piece, outs)))
        for _ in range(args.layers * round(tokens / piece)):
            for _ in range(2 if again else 1):
                torch.mm(x, w.T)
            torch.mm(dy, w)
            torch.mm(dy.T, x)
    x, w = torch.ones(piece, width, dtype=dtype), torch.ones(2048, width, dtype=dtype)
    for _ in range(round(tokens / piece) * args.vocabulary // 2048):
        torch.mm(x, w.T)


if __name__ == "__main__":
    main()
