"""The SPLADE head compared with sentence-transformers' materialised one (SpladePooling on a decoder's logits).

Prints one JSON line per figure; on a GPU also compares with torch.compile of the materialised head. Ours and the peer
alternate, and a ratio is the median over the repetitions, so that other load on the machine affects both. Memory is the
peak above the inputs, each in its own process.
Usage: python benchmarks/head.py [--texts 32 --tokens 128 --hidden 384 --vocabulary 30522] [--active 300 400 0]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from functools import partial

import torch
from measuring import DEVICE, device_name, median_ratio, peak_above_idle, take_turns
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch.nn import functional as F

from distill.student.head import SpladeHead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (
        ("texts", 32),
        ("tokens", 128),
        ("hidden", 384),
        ("vocabulary", 30522),
        ("repeats", 5),
        ("threads", torch.get_num_threads()),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--active", type=int, nargs="+", default=[300, 400, 0], help="terms per text; 0: every term")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for dtype in args.dtypes:
        forward_figures(args, dtype)
        for active in args.active:
            step_figures(args, dtype, active or args.vocabulary)
        for active in args.active:
            memory_figures(args, dtype, active or args.vocabulary)


def forward_figures(args, dtype: str) -> None:
    hidden, mask, weight, bias, _ = inputs(args, dtype, args.active[0] or args.vocabulary)
    flat, logits = hidden.view(-1, args.hidden), hidden.new_empty(args.texts * args.tokens, args.vocabulary)
    head = SpladeHead(torch.nn.Parameter(weight), torch.nn.Parameter(bias))
    with torch.no_grad():
        compare(
            "head forward / bare matrix product",
            args,
            dtype,
            args.active[0],
            lambda: head(hidden, mask),
            lambda: torch.mm(flat, weight.T, out=logits),
        )


def step_figures(args, dtype: str, active: int) -> None:
    tensors = inputs(args, dtype, active)
    compare(
        "head forward + backward / materialised head",
        args,
        dtype,
        active,
        partial(ours, *tensors),
        partial(peer, *tensors),
    )
    if DEVICE.type == "cuda":
        compiled = torch.compile(materialised)
        compare(
            "head forward + backward / torch.compile of the materialised head",
            args,
            dtype,
            active,
            partial(ours, *tensors),
            partial(peer, *tensors, head=compiled),
        )
    hidden, mask, weight, bias, upstream = tensors
    parameters = [torch.nn.Parameter(x) for x in (hidden, weight, bias)]
    head = SpladeHead(*parameters[1:])
    with torch.no_grad():
        reps = head(hidden, mask)
    coefficients = upstream[reps.row_ids, reps.terms]
    compare(
        "second pass of the cached step (no product) / materialised head",
        args,
        dtype,
        active,
        lambda: head.surrogate(parameters[0], mask, reps, coefficients).backward(),
        partial(peer, *tensors),
    )


def memory_figures(args, dtype: str, active: int) -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        extra = [pool.apply(extra_memory, (system, args, dtype, active)) for system in ("ours", "peer")]
    print_figure("head extra peak memory / materialised head", args, dtype, active, "GB", *extra, extra[0] / extra[1])


def ours(hidden, mask, weight, bias, upstream) -> None:
    h, w, b = (torch.nn.Parameter(x) for x in (hidden, weight, bias))
    reps = SpladeHead(w, b)(h, mask)
    (reps.values * upstream[reps.row_ids, reps.terms]).sum().backward()


def materialised(hidden, mask, weight, bias):
    """SpladePooling's dense representations [B, V]."""
    return SpladePooling("max").train()({"token_embeddings": F.linear(hidden, weight, bias), "attention_mask": mask})[
        "sentence_embedding"
    ]


def peer(hidden, mask, weight, bias, upstream, head=materialised) -> None:
    h, w, b = (torch.nn.Parameter(x) for x in (hidden, weight, bias))
    (head(h, mask, w, b) * upstream).sum().backward()


def inputs(args, dtype: str, active: int):
    """Random hidden states and weights, with a bias that gives each text about `active` active terms."""
    torch.manual_seed(0)
    hidden = torch.randn(args.texts, args.tokens, args.hidden)
    weight = torch.randn(args.vocabulary, args.hidden) / args.hidden**0.5
    sample = (hidden[:4] @ weight.T).amax(1)  # [4, V]
    shift = sample.min() - 1 if active >= args.vocabulary else sample.quantile(1 - active / args.vocabulary, dim=1)
    bias = torch.zeros(args.vocabulary) - shift.mean()
    mask = torch.ones(args.texts, args.tokens, dtype=torch.long)
    kind = getattr(torch, dtype)
    tensors = hidden.to(kind), mask, weight.to(kind), bias.to(kind), torch.randn(args.texts, args.vocabulary)
    return tuple(tensor.to(DEVICE) for tensor in tensors)


def compare(name: str, args, dtype: str, active: int, our_call, peer_call) -> None:
    times = take_turns({"ours": our_call, "peer": peer_call}, args.repeats)
    print_figure(
        name,
        args,
        dtype,
        active,
        "ms",
        *(1000 * statistics.median(seconds) for seconds in times.values()),
        median_ratio(*times.values()),
    )


def extra_memory(system: str, args, dtype: str, active: int) -> float:
    """Peak memory above the inputs, in GB; for a fresh process."""
    torch.set_num_threads(args.threads)
    function = ours if system == "ours" else peer
    small = argparse.Namespace(**{**vars(args), "texts": 4, "tokens": 2, "vocabulary": 64})
    function(*inputs(small, dtype, 64))  # loads the libraries
    return peak_above_idle(partial(function, *inputs(args, dtype, active)))


def print_figure(name: str, args, dtype: str, active: int, unit: str, ours: float, peer: float, ratio: float) -> None:
    shape = f"{args.texts} x {args.tokens} tokens, hidden {args.hidden}, vocabulary {args.vocabulary}"
    print(
        json.dumps(
            {
                "figure": name,
                "shape": shape,
                "dtype": dtype,
                "active_terms": active or args.vocabulary,
                "device": device_name(args.threads),
                "unit": unit,
                "ours": round(ours, 3),
                "peer": round(peer, 3),
                "ours/peer": round(ratio, 4),
                "peer/ours": round(1 / ratio, 2),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
