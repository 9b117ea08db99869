"""A calibrated start: an MLM head for a backbone without one, so that the untrained student is a fair retriever.

Three things are set, all inside the architecture's own head (dense, activation, LayerNorm, tied decoder), so that the
saved model is a plain masked language model:
- the dense layer maps a token's final hidden state to a code that selects its own word from the decoder (ridge
  regression in closed form), so that a text's own words come first and words of similar meaning next;
- the LayerNorm's gain sets the margin of a text's own words above the level below which a term is inactive;
- each term's bias is minus that level, measured on passages and raised for common words: weights grow with IDF.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from distill import config
from distill.errors import StudentError

# Mean and standard deviation of the dense layer's outputs: there GELU and ReLU are the identity, and the LayerNorm
# removes the mean again.
LIFT, SPREAD = 4.0, 0.5
HIDDEN_RIDGE = 0.01  # times the mean variance of the hidden states
DECODER_RIDGE = 1.0  # times the mean variance of the decoder's rows; less whitens more and helps shallow students
BATCH_TOKENS = 8192  # padded tokens per batch
BLOCK_LOGITS = 1 << 26  # logits in memory at a time


@dataclass(frozen=True)
class Tokens:
    """All tokens of the calibration texts, text after text."""

    hidden: Tensor  # float32 [T, H]: the MLM head's input
    ids: Tensor  # int64 [T]
    word: Tensor  # bool [T]: not a special token
    lengths: list[int]  # tokens of each of the N texts, at least 1


@dataclass(frozen=True)
class Levels:
    """Statistics of each term's maximum logit per text, over the calibration texts; all [V]."""

    silence: Tensor  # s_v: exceeded in a given share of the texts without the term
    occurring: Tensor  # o_v: mean over the texts with the term (0 for a term in no text)
    texts_with: Tensor  # n_v: number of texts with the term


def calibrate_head(
    mlm: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[str],
    cfg: config.CalibratedStart,
    max_length: int = 128,
    stand_ins: Tensor | None = None,
) -> None:
    """Set the MLM head of `mlm` in place, measured on `texts`: passages, cut to `max_length` tokens.

    `stand_ins`, int64 [V]: the term that a token is to activate, instead of its own (`flows`: `flow`).

    With hidden states h_t, words v(t) and the decoder's rows e_v, the dense layer A is the ridge solution of
    e_v · A (h_t − h̄) ≈ 1 if v = v(t) else 0, over all tokens t and terms v:
    A = (cov(e) + μI)⁻¹ cov(e_v(t), h_t) (cov(h) + λI)⁻¹. The LayerNorm normalises the codes A (h_t − h̄).

    Let m_v(x) be term v's maximum logit in text x; s_v the level that m_v exceeds in a share 1 − percentile/100 of the
    texts without v; o_v its mean over the texts with v; N the number of texts and n_v of those with v. The LayerNorm's
    gain makes the mean of max(0, m_v(x) − s_v) over the words of all texts equal to `margin`; the bias is
    b_v = −max(s_v, o_v − idf_scale · max(0, ln((N − n_v + ½) / (n_v + ½)))): a common word must stand out to count.
    An unseen text then has about V · (1 − percentile/100) active terms besides its own. Special tokens are inactive.

    Raises `StudentError` for a head of another layout than BERT's and its relatives', for texts without words, and
    for a backbone whose final hidden states do not distinguish words.
    """
    dense, norm, decoder = _layout(mlm)
    training = mlm.training
    with torch.no_grad():
        tokens = _encode(mlm.eval(), tokenizer, texts, max_length)
        if stand_ins is not None:
            tokens = replace(tokens, ids=stand_ins.to(tokens.ids.device)[tokens.ids])
        _set_dense(dense, decoder.weight, tokens)
        norm.weight.fill_(1.0)
        norm.bias.zero_()
        codes = norm(F.gelu(dense(tokens.hidden)))  # [T, D]
        levels, height = _levels(codes, decoder.weight, tokens, cfg.percentile / 100)
        if height <= 0:
            raise StudentError(
                f"student.start: {type(mlm).__name__} cannot be calibrated: its final hidden states do not distinguish "
                "the words of the passages; use a checkpoint with a trained MLM head"
            )
        gain = cfg.margin / height
        norm.weight.fill_(gain)
        idf = torch.log((len(texts) - levels.texts_with + 0.5) / (levels.texts_with + 0.5)).clamp(min=0)
        common = torch.where(levels.texts_with > 0, gain * levels.occurring - cfg.idf_scale * idf, -torch.inf)
        level = torch.maximum(gain * levels.silence, common)
        level[tokenizer.all_special_ids] = level.max() + 10 * cfg.margin
        decoder.bias.copy_(-level)
    mlm.train(training)


def _layout(mlm: PreTrainedModel) -> tuple[nn.Linear, nn.LayerNorm, nn.Linear]:
    """The head's dense layer, LayerNorm and decoder, found by type: names differ between architectures."""
    decoder = mlm.get_output_embeddings()
    body = set(mlm.base_model.modules())
    head = [module for module in mlm.modules() if module not in body and module is not decoder]
    dense = [module for module in head if isinstance(module, nn.Linear) and module.bias is not None]
    norms = [module for module in head if isinstance(module, nn.LayerNorm) and module.bias is not None]
    if decoder is None or decoder.bias is None or len(dense) != 1 or len(norms) != 1:
        raise StudentError(
            f"student.start: the MLM head of {type(mlm).__name__} cannot be calibrated: it does not consist of a dense "
            "layer, a LayerNorm and a decoder, each with a bias; use a checkpoint with a trained MLM head"
        )
    return dense[0], norms[0], decoder


def _encode(mlm: PreTrainedModel, tokenizer: Any, texts: Sequence[str], max_length: int) -> Tokens:
    """Encode the texts in batches of similar length, and keep the hidden states of the real tokens."""
    if not any(text.strip() for text in texts):
        raise StudentError("student.start: a calibrated start needs passages to calibrate on, but none has any words")
    rows = tokenizer(list(texts), truncation=True, max_length=max_length, return_special_tokens_mask=True)
    words = torch.tensor([not special for row in rows["special_tokens_mask"] for special in row])
    by_length = sorted(range(len(texts)), key=lambda i: len(rows["input_ids"][i]))
    hidden: list[Tensor] = [torch.empty(0)] * len(texts)
    for batch in _batches(by_length, [len(row) for row in rows["input_ids"]]):
        padded = tokenizer.pad({"input_ids": [rows["input_ids"][i] for i in batch]}, return_tensors="pt")
        padded = padded.to(mlm.device)
        states = mlm.base_model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])[0]
        for i, text, mask in zip(batch, states, padded["attention_mask"].bool(), strict=True):
            hidden[i] = text[mask].float()
    lengths = [len(row) for row in rows["input_ids"]]
    ids = torch.tensor([token for row in rows["input_ids"] for token in row])
    return Tokens(torch.cat(hidden), ids.to(mlm.device), words.to(mlm.device), lengths)


def _batches(by_length: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Batches of at most `BATCH_TOKENS` padded tokens; `by_length`: texts in ascending order of length."""
    batch: list[int] = []
    for i in by_length:
        if batch and (len(batch) + 1) * lengths[i] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def _set_dense(dense: nn.Linear, rows: Tensor, tokens: Tokens) -> None:
    """Set the dense layer to the ridge solution; `rows`: the decoder's [V, D]."""
    hidden = tokens.hidden[tokens.word].double()  # [T, H]
    rows = rows.double()
    own = rows[tokens.ids[tokens.word]]  # [T, D]
    mean = hidden.mean(0)
    hidden, own, rows = hidden - mean, own - own.mean(0), rows - rows.mean(0)
    ridged = [
        covariance + ridge * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        for covariance, ridge in (
            (hidden.T @ hidden / len(hidden), HIDDEN_RIDGE),
            (rows.T @ rows / len(rows), DECODER_RIDGE),
        )
    ]
    to_own = torch.linalg.solve(ridged[0], hidden.T @ own / len(hidden))  # [H, D]
    transform = torch.linalg.solve(ridged[1], to_own.T)  # [D, H]
    transform *= SPREAD / (hidden @ transform.T).std()
    dense.weight.copy_(transform)
    dense.bias.copy_(LIFT - transform @ mean)


def _levels(codes: Tensor, rows: Tensor, tokens: Tokens, percentile: float) -> tuple[Levels, float]:
    """The levels of all terms, and the mean height of the texts' own words above their term's silence.

    `codes` [T, D] of the tokens; `rows`: the decoder's [V, D].
    """
    texts = len(tokens.lengths)
    text_of = torch.repeat_interleave(torch.arange(texts), torch.tensor(tokens.lengths)).to(codes.device)  # [T]
    parts: list[Levels] = []
    height = torch.zeros((), dtype=torch.float64)
    size = max(1, BLOCK_LOGITS // max(texts, len(codes)))
    for first in range(0, len(rows), size):
        logits = torch.stack([part.amax(0) for part in (codes @ rows[first : first + size].T).split(tokens.lengths)])
        here = tokens.word & (tokens.ids >= first) & (tokens.ids < first + size)
        has = torch.zeros_like(logits, dtype=torch.bool)  # [N, block]
        has[text_of[here], tokens.ids[here] - first] = True
        texts_with = has.sum(0)
        # the k-th largest maximum among the texts without the term, k counted from 0
        k = ((1 - percentile) * (texts - texts_with)).long().clamp(max=texts - 1)
        without = logits.masked_fill(has, -torch.inf).topk(int(k.max()) + 1, dim=0).values
        silence = without.gather(0, k[None])[0]
        silence = torch.where(texts_with < texts, silence, logits.amin(0))  # a term in every text has no such level
        occurring = (logits * has).sum(0) / texts_with.clamp(min=1)
        height += ((logits - silence).clamp(min=0) * has).sum().double().cpu()
        parts.append(Levels(silence, occurring, texts_with))
    levels = Levels(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("silence", "occurring", "texts_with"))
    )
    return levels, float(height / levels.texts_with.sum())
