"""A start that counts words: the untrained student learns BM25's vectors of its own passages.

What a calibrated or pretrained MLM head says of a text knows meaning, but not how often a word occurs, how long the
text is, or that two word forms are one word. BM25 knows all that in closed form (`LexicalVectors`), so it is learnt
before the first step of distillation, without queries, judgements or teachers: a text's target is the term-wise maximum
of its BM25 vector and a share of its own representation at the outset, which keeps the expansion terms.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from distill.config import LexicalStart
from distill.progress import progress
from distill.retrieval.lexical import LexicalVectors
from distill.sparse.reps import SparseReps
from distill.store.texts import TextStore
from distill.student.model import SpladeStudent

log = logging.getLogger(__name__)

WARMUP = 0.1  # share of the steps in which the learning rate grows linearly from 0
SAMPLE = 16  # passages: held out to see whether the loss falls, and on which the scale is measured

Side = Literal["query", "passage"]


def learn_lexical_vectors(
    student: SpladeStudent, vectors: LexicalVectors, passages: TextStore, cfg: LexicalStart, seed: int
) -> None:
    """Train `student` in place on passages and, encoded as queries, excerpts of passages; one optimizer step per batch.

    The loss of a side is ‖y − z‖² / ‖z‖² over the batch, for representations y [B, V] and z_v = max(α · b_v, β · y⁰_v):
    b the BM25 vectors, y⁰ the student's representations at the outset, β `cfg.head_share`, and α the scale at which b
    has the mean norm of y⁰. Queries that have a table are not learnt. If the loss on passages that were held out does
    not fall, the student stays as it was, with a warning.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(passages.collection_size)[: cfg.passages]
    held_out, rows = np.split(rows, [min(SAMPLE, len(rows) // 4)])
    steps = -(-len(rows) * cfg.epochs // cfg.batch_size)
    lesson = _Lesson.of(student, vectors, passages.texts(np.sort(rows[:SAMPLE])), cfg.head_share)
    examination = [(side, texts) for side, texts in lesson.sides(passages.texts(np.sort(held_out)), rng) if texts]
    before = lesson.loss(student, examination)
    optimizer = torch.optim.AdamW(_groups(student, cfg), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    student.eval()  # without dropout
    with progress("lexical start", steps, "steps") as advance:
        for batch in _batches(rows, cfg.batch_size, steps, rng):
            optimizer.zero_grad()
            total = 0.0
            for side, texts in lesson.sides(passages.texts(np.sort(batch)), rng):
                loss = lesson.side_loss(student, side, texts)
                loss.backward()
                total += loss.item()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance(1, f"loss {total:.3f}")
    after = lesson.loss(student, examination)
    if examination and not after < before:
        student.load_state_dict(lesson.outset.state_dict())
        log.warning(
            "student.lexical_start: the loss on held-out passages did not fall (%.3f, then %.3f): the student starts "
            "from its MLM head alone; lower lr, head_lr and bias_lr, or raise passages or epochs",
            before,
            after,
        )


@dataclass(frozen=True)
class _Lesson:
    """What a student is to learn of a text."""

    outset: SpladeStudent
    vectors: LexicalVectors
    head_share: float
    scale: float  # of the BM25 vectors

    @classmethod
    def of(cls, student: SpladeStudent, vectors: LexicalVectors, texts: Sequence[str], head_share: float) -> _Lesson:
        """`texts`: passages on which the scale is measured."""
        outset = copy.deepcopy(student).eval()
        lexical = vectors.texts(_seen(student, texts, "passage"))
        with torch.no_grad():
            own = _encode(outset, texts, "passage").to_dense().norm(dim=1).mean()
        norm = np.sqrt(np.asarray(lexical.multiply(lexical).sum(axis=1))).mean() if texts else 0.0
        return cls(outset, vectors, head_share, float(own) / max(float(norm), 1e-9))

    def sides(self, texts: list[str], rng: np.random.Generator) -> list[tuple[Side, list[str]]]:
        """The texts as passages and, if queries are encoded by the model alone, excerpts of them as queries."""
        excerpts: list[tuple[Side, list[str]]] = [("query", [_excerpt(text, rng) for text in texts])]
        return [("passage", texts), *(excerpts if self.outset.table is None else [])]

    def side_loss(self, student: SpladeStudent, side: Side, texts: list[str]) -> Tensor:
        """Relative squared error of one side, halved if there are two."""
        lexical = self.vectors.texts(_seen(student, texts, side))
        lexical.resize((len(texts), student.vocab_size))  # padding rows of the embeddings, if any
        with torch.no_grad():
            own = _encode(self.outset, texts, side).to_dense()  # [B, V]
        target = torch.maximum(torch.from_numpy(lexical.toarray()).to(own) * self.scale, own * self.head_share)
        got = _encode(student, texts, side).to_dense()
        share = 0.5 if self.outset.table is None else 1.0
        return share * (got - target).square().sum() / target.square().sum().clamp(min=1e-9)

    @torch.no_grad()
    def loss(self, student: SpladeStudent, examination: list[tuple[Side, list[str]]]) -> float:
        return sum(self.side_loss(student, side, texts).item() for side, texts in examination)


def _groups(student: SpladeStudent, cfg: LexicalStart) -> list[dict[str, object]]:
    """Parameters by learning rate: the head's bias, one number per term, moves far; the encoder little."""
    groups: dict[float, list[Tensor]] = {}
    body = f"mlm.{student.mlm.base_model_prefix}."
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and not name.startswith("table."):
            rate = cfg.bias_lr if parameter is student.head.bias else cfg.lr if name.startswith(body) else cfg.head_lr
            groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rates: linear warm-up, then linear decay to 0."""
    return min(1.0, (step + 1) / max(1.0, WARMUP * steps)) * max(0.0, 1 - step / max(steps, 1))


def _batches(rows: np.ndarray, size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`steps` batches of rows, a new order in every pass."""
    pool = rows[:0]
    for _ in range(steps):
        if len(pool) < size:
            pool = np.concatenate([pool, rng.permutation(rows)])
        yield pool[:size]
        pool = pool[size:]


def _excerpt(text: str, rng: np.random.Generator) -> str:
    """Some consecutive words of a text, as many as a query may have."""
    words = text.split()
    fewest, most = LexicalStart.excerpt_words
    length = int(rng.integers(fewest, most + 1))
    first = int(rng.integers(max(1, len(words) - length + 1)))
    return " ".join(words[first : first + length])


def _seen(student: SpladeStudent, texts: Sequence[str], side: Side) -> list[str]:
    """Cut texts where the student cuts them."""
    room = student.max_length(side) - student.special_tokens(side)
    tokens = student.tokenizer(
        list(texts), add_special_tokens=False, truncation=True, max_length=room, return_offsets_mapping=True
    )
    return [
        text[: offsets[-1][1]] if offsets else "" for text, offsets in zip(texts, tokens["offset_mapping"], strict=True)
    ]


def _encode(student: SpladeStudent, texts: Sequence[str], side: Side) -> SparseReps:
    prefix = student.prompts.get("query" if side == "query" else "document", "")
    ids = student.tokenizer([prefix + text for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
    device = next(student.parameters()).device
    input_ids, mask = student.assemble([np.asarray(row) for row in ids], student.max_length(side), side)
    return student(input_ids.to(device), mask.to(device), side=side)
