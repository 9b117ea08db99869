"""One training step (MarginMSE + FLOPS, AdamW) of ours, compared with CachedSpladeLoss and SpladeLoss.

It is also compared with its bare matrix products and with our own step without a cache. Prints one JSON line per
figure.
Usage: python benchmarks/cached_step.py [--small] [--active 300] [--precision fp32 bf16] [--peers SpladeLoss]
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from measuring import DEVICE, median_ratio, take_turns
from steps import DTYPES, Ours, Peer, Plain, arguments, make_model, parse, report

ENOUGH = 64.0  # GiB: an activation budget that holds the graphs of any batch here
TWICE, OPEN = "every chunk encoded twice", "activation budget open"
PLAIN = "no cache"
PEERS = {"CachedSpladeLoss": True, "SpladeLoss": False}  # whether cached


def main() -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument(
        "--precision",
        nargs="+",
        default=["fp32", "bf16"],
        help="of our step; the peer uses float32 on a CPU, the same on a GPU",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        default=["CachedSpladeLoss"],
        help="SpladeLoss, uncached, needs about 20 GB at the full shape",
    )
    args = parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(args, Path(folder))
        for precision in args.precision:
            figures(args, model, precision)


def figures(args, model: Path, precision: str) -> None:
    routes = {TWICE: Ours(args, model, precision), OPEN: Ours(args, model, precision, budget_gib=ENOUGH)}
    peer_precision = precision if DEVICE.type == "cuda" else "fp32"
    plain = Plain(args, model, precision)
    peers = {name: Peer(args, model, cached=PEERS[name], precision=peer_precision) for name in args.peers}
    bare = {
        bare_of(route): partial(bare_products, ours, args, precision, again=route == TWICE)
        for route, ours in routes.items()
    }
    times = take_turns({**routes, PLAIN: plain, **peers, **bare}, args.repeats)

    def compare(figure: str, ours: str, other: str, **more) -> None:
        report(
            figure,
            args,
            "s",
            statistics.median(times[ours]),
            statistics.median(times[other]),
            median_ratio(times[ours], times[other]),
            precision=precision,
            **more,
        )

    for route, ours in routes.items():
        step = ours.last
        compare(
            f"step, {route} / bare matrix products",
            route,
            bare_of(route),
            padding=1 - step.tokens / step.padded,
            measured_active=float(step.sides[1].nnz.double().mean()),
            mfu=ours.mfu(times[route]),
        )
        for peer in args.peers:
            compare(f"step, {route} / {peer} in {peer_precision}", route, peer)
        compare(f"step, {route} / our plain step", route, PLAIN)
        ours.close()
    plain.close()


def bare_of(route: str) -> str:
    return f"bare matrix products, {route}"


def bare_products(ours: Ours, args, precision: str, again: bool) -> None:
    """Only the dense products that a step needs, without padding: every Linear forward (twice if chunks are encoded
    again) and backward (two products), and the head's product over the vocabulary once."""
    tokens = sum(int(texts.lengths.sum()) for texts in ours.sides)
    width, ones = args.hidden, partial(torch.ones, dtype=DTYPES[precision], device=DEVICE)
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    for start in range(0, tokens, args.chunk_tokens):
        piece = min(args.chunk_tokens, tokens - start)
        for ins, outs in shapes:
            x, w, dy = (ones(shape) for shape in ((piece, ins), (outs, ins), (piece, outs)))
            for _ in range(args.layers):
                for _ in range(2 if again else 1):
                    torch.mm(x, w.T)
                torch.mm(dy, w)
                torch.mm(dy.T, x)
        x = ones(piece, width)
        for first in range(0, args.vocabulary, 2048):
            torch.mm(x, ones(min(2048, args.vocabulary - first), width).T)


if __name__ == "__main__":
    main()
