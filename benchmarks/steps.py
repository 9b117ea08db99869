"""Shared by the training benchmarks: a student of a given shape, a batch, one step of ours and one of the peer's."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import DEVICE, device_name
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder import losses
from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from distill import config
from distill.losses.objective import GlobalSlice, Supervision, objective
from distill.planning.devices import peak_flops
from distill.sparse.reps import SparseReps
from distill.student.dropout import set_dropout
from distill.student.model import SpladeStudent
from distill.training import profiling
from distill.training.engine import Engine
from distill.training.step import TokenBatch, cached_step, plan
from distill.training.world import join

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PASSAGE_LENGTH, QUERY_LENGTH, SPECIAL = 128, 32, 2
REGULARIZER_WEIGHT = 1e-3


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    for name, default in (
        ("queries", 32),
        ("passages", 8),
        ("tokens", 92),
        ("layers", 6),
        ("hidden", 384),
        ("vocabulary", 30522),
        ("repeats", 5),
        ("threads", torch.get_num_threads()),
        ("chunk-tokens", 4096),
        ("peer-texts", 32),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--active", type=int, default=300, help="active terms per passage; 0: every term")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--small", action="store_true", help="a small shape for a quick check")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    if args.small:
        args.queries, args.passages, args.layers, args.chunk_tokens = 8, 4, 2, 1024
    torch.set_num_threads(args.threads)
    return args


def make_model(args, folder: Path) -> Path:
    """Save a random BertForMaskedLM with about `args.active` active terms per passage, and a word-level tokenizer."""
    torch.manual_seed(0)
    tokenizer = BertTokenizer(
        vocab={
            word: i
            for i, word in enumerate(
                ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(args.vocabulary - 5))]
            )
        }
    )
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 32,
            intermediate_size=4 * args.hidden,
            hidden_dropout_prob=args.dropout,
            attention_probs_dropout_prob=args.dropout,
        )
    ).eval()
    _, passages, _ = make_batch(args, 1)
    with torch.no_grad():
        maxima = torch.stack([model(torch.from_numpy(text)[None]).logits[0].max(0).values for text in passages[:8]])
        share = (args.active or args.vocabulary) / args.vocabulary
        shift = maxima.min() - 1 if share == 1 else torch.quantile(maxima, 1 - share, dim=1).mean()
        model.get_output_embeddings().bias.sub_(shift)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_batch(args, times: int):
    """Random token ids of `times` batches of queries and passages, with labels [queries, passages]."""
    rng = np.random.default_rng(0)

    def texts(count: int, mean: int, longest: int) -> list[np.ndarray]:
        lengths = np.clip(rng.normal(mean, mean / 4, count), 4, longest).astype(int) - SPECIAL
        return [rng.integers(5, args.vocabulary, length) for length in lengths]

    queries = args.queries * times
    return (
        texts(queries, 10, QUERY_LENGTH),
        texts(queries * args.passages, args.tokens, PASSAGE_LENGTH),
        torch.from_numpy(rng.normal(size=(queries, args.passages)).astype(np.float32)) * 3,
    )


class Ours:
    """Our step with DeepSpeed: representations, objective, backward, AdamW."""

    def __init__(self, args, model: Path, precision: str = "fp32", budget_gib: float = 0.0, times: int = 1):
        from transformers import AutoTokenizer

        student = SpladeStudent(
            BertForMaskedLM.from_pretrained(model),
            AutoTokenizer.from_pretrained(model),
            query_max_length=QUERY_LENGTH,
            passage_max_length=PASSAGE_LENGTH,
        )
        set_dropout(student, args.dropout)
        self.train = config.Train.model_validate(
            {
                "losses": [{"kind": "margin-mse"}],
                "precision": precision,
                "lr": 1e-5,
                "query_regularizers": [{"kind": "flops", "weight": REGULARIZER_WEIGHT, "ramp": "constant"}],
                "passage_regularizers": [{"kind": "flops", "weight": REGULARIZER_WEIGHT, "ramp": "constant"}],
            }
        )
        self.world = join()
        self.engine = Engine(student, self.train, self.world, precision)
        queries, passages, labels = make_batch(args, times)
        self.labels = labels.to(DEVICE)
        self.sides = (TokenBatch(queries, QUERY_LENGTH, SPECIAL), TokenBatch(passages, PASSAGE_LENGTH, SPECIAL))
        kept_tokens = 0.0
        if budget_gib:
            per_token = profiling.graph_bytes_per_token(self.engine, PASSAGE_LENGTH, args.chunk_tokens)
            kept_tokens = budget_gib * 2**30 / per_token
        self.plan = plan(self.sides, args.chunk_tokens, self.world, kept_tokens)

    def __call__(self) -> None:
        goal = partial(
            objective, self.train, supervision=Supervision(self.labels, GlobalSlice(0, len(self.labels))), step=1
        )
        self.last = cached_step(self.engine, self.sides, self.plan, goal, lambda out_of_memory: None)
        self.engine.step(1.0)

    def mfu(self, seconds: list[float]) -> float:
        """Model FLOP utilisation: operations of a plain step on these tokens, as a share of the device's peak."""
        needed = profiling.flops_per_token(self.engine.student) * self.last.tokens
        return needed / statistics.median(seconds) / peak_flops(DEVICE, DTYPES[self.engine.precision])

    def close(self) -> None:
        self.engine.close()


class Plain(Ours):
    """The same chunks and objective without a cache: every graph is kept, with one backward through all of them."""

    def __call__(self) -> None:
        goal = partial(
            objective, self.train, supervision=Supervision(self.labels, GlobalSlice(0, len(self.labels))), step=1
        )
        with self.engine.accumulating():
            self.engine.backward(goal(*(self.encode(side) for side in (0, 1))).total)
        self.engine.step(1.0)

    def encode(self, side: int) -> SparseReps:
        texts, chunks = self.sides[side], [planned.chunk for planned in self.plan if planned.side == side]
        inputs = [
            self.engine.student.assemble([texts.ids[row] for row in chunk.rows], texts.max_length) for chunk in chunks
        ]
        reps = SparseReps.cat([self.engine.encode(ids.to(DEVICE), mask.to(DEVICE)) for ids, mask in inputs])
        return reps.take(torch.from_numpy(np.argsort(np.concatenate([chunk.rows for chunk in chunks]))).to(DEVICE))


class Peer:
    """The same step in sentence-transformers: cached (`CachedSpladeLoss`) or plain (`SpladeLoss`)."""

    def __init__(self, args, model: Path, cached: bool, precision: str = "fp32", times: int = 1):
        transformer = Transformer(str(model), transformer_task="fill-mask", max_seq_length=PASSAGE_LENGTH)
        encoder = SparseEncoder(modules=[transformer, SpladePooling("max")], device=str(DEVICE)).train()
        kind = partial(losses.CachedSpladeLoss, mini_batch_size=args.peer_texts) if cached else losses.SpladeLoss
        self.loss = kind(
            encoder,
            losses.SparseMarginMSELoss(encoder),
            document_regularizer_weight=REGULARIZER_WEIGHT,
            query_regularizer_weight=REGULARIZER_WEIGHT,
        )
        self.optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-5)
        queries, passages, labels = make_batch(args, times)
        self.labels = labels.to(DEVICE)
        columns = [queries, *(passages[i :: args.passages] for i in range(args.passages))]
        self.columns = [features(column) for column in columns]
        self.half = precision == "bf16"

    def __call__(self) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.half):
            parts = self.loss(copy.copy(self.columns), self.labels)
        sum(parts.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def close(self) -> None:
        pass


def features(texts: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Pad a batch [n, L] as sentence-transformers' collator does."""
    rows = [np.concatenate([[2], text, [3]]) for text in texts]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    input_ids = torch.from_numpy(ids).to(DEVICE)
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}


def report(figure: str, args, unit: str, ours: float, peer: float, ratio: float, **more) -> None:
    """Print one JSON line. `ratio`: ours / peer."""
    shape = (
        f"{args.queries} queries x {args.passages} passages of {args.tokens} tokens, {args.layers} layers, "
        f"hidden {args.hidden}, vocabulary {args.vocabulary}"
    )
    print(
        json.dumps(
            {
                "figure": figure,
                "shape": shape,
                "active_terms": args.active or args.vocabulary,
                "dropout": args.dropout,
                "chunk_tokens": args.chunk_tokens,
                "device": device_name(args.threads),
                "unit": unit,
                "ours": round(ours, 3),
                "peer": round(peer, 3),
                "ours/peer": round(ratio, 3),
                "peer/ours": round(1 / ratio, 2),
                **more,
            }
        ),
        flush=True,
    )
