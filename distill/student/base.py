"""The interface of every student, used by training, mining and evaluation.

It is implemented by `SpladeStudent`, `CsrStudent` and user-defined classes (`student: {kind: custom}`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill import config
from distill.errors import StudentError
from distill.sparse.reps import RepsGradient, SparseReps

Side = Literal["query", "passage"]


class Student(nn.Module, ABC):
    """A model that encodes texts into sparse representations.

    Encoding settings, saved with the model: `query_max_length` and `passage_max_length` (tokens, special tokens
    included), `top_k` (number of terms kept per text) and `prompts` (prefixes of `query` and `document`).

    `host_mask`: whether `encode` and `surrogate` take the attention mask on the host although the token ids are on a
    GPU. What depends on lengths is then known without waiting for the device; other students get both on the device.
    """

    host_mask = False

    def __init__(
        self,
        tokenizer: Any,
        *,
        query_max_length: int,
        passage_max_length: int,
        top_k: int | None = None,
        prompts: Mapping[str, str] = MappingProxyType({}),
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.query_max_length, self.passage_max_length = query_max_length, passage_max_length
        self.top_k = top_k
        self.prompts = dict(prompts)
        self._prefix, self._suffix = special_tokens(tokenizer)

    # --------------------------------------------------------------------------------- required of every subclass

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of terms in the vocabulary."""

    @property
    @abstractmethod
    def backbone(self) -> PreTrainedModel:
        """The underlying transformers model, whose layers may be checkpointed and whose dropout is replaced."""

    @abstractmethod
    def encode(self, input_ids: Tensor, attention_mask: Tensor, side: Side = "passage") -> SparseReps:
        """Encode token ids with their mask, int64 [B, L] each, into representations; differentiable."""

    @abstractmethod
    def surrogate(
        self, input_ids: Tensor, attention_mask: Tensor, side: Side, reps: SparseReps, gradient: RepsGradient
    ) -> Tensor:
        """Second pass of the cached step: return a scalar whose backward equals that of a loss with `gradient`.

        `reps`: the detached representations of the first pass over the same inputs. The scalar is
        sum(dL/dvalues · values) at the entries of `reps`, plus the same sum over the vectors if there are any.
        """

    def forward(self, input_ids: Tensor, attention_mask: Tensor, side: Side = "passage") -> SparseReps:
        return self.encode(input_ids, attention_mask, side)

    def save(self, folder: Path) -> None:
        """Write into an empty folder everything that `load` needs, ideally readable by `SparseEncoder(folder)`.

        SPLADE students are saved and loaded by `distill.student.checkpoint`; every other kind implements both methods.
        """
        raise NotImplementedError(f"{type(self).__qualname__} does not implement `save`")

    @classmethod
    def load(cls, folder: Path) -> Student:
        """Load what `save` wrote, in float32."""
        raise NotImplementedError(f"{cls.__qualname__} does not implement `load`")

    # -------------------------------------------------------------------------------------- optional in a subclass

    @classmethod
    def start(cls, cfg: Any, texts: Sequence[str]) -> Student:
        """Build the untrained student from the recipe's section `student: {kind: custom}`.

        `texts`: passages to calibrate on.
        """
        raise NotImplementedError(f"{cls.__qualname__} does not implement `start`")

    def begin_training(self, cfg: Any) -> None:
        """Apply the training settings of the recipe's section `student`: frozen parameters, own losses."""

    def own_losses(self, queries: SparseReps, passages: SparseReps, total: int) -> dict[str, Tensor]:
        """Weighted losses that only this kind of student has, by name.

        Each is the value of the global batch of `total` queries, the same on every process
        (`distill.sum_over_processes`).
        """
        return {}

    def learning_rate(self, name: str, train: config.Train) -> float:
        """Peak learning rate of the parameter `name`."""
        return train.lr

    @property
    def forward_weights(self) -> int:
        """Number of weights that multiply each token only in the forward: their sparse backward costs next to none."""
        return 0

    def trains(self, side: Side) -> bool:
        """Whether the representations of a side carry gradient."""
        return True

    partitionable = False  # whether ZeRO-3 may partition the weights: needs every weight to be used in its own module

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors that training changes besides the parameters, by name; saved in checkpoints."""
        return {}

    def record_activations(self, texts_with: Tensor) -> None:
        """Take note, after an update, of the number of texts of the global batch with each term: int64 [V]."""

    def term_names(self) -> list[str | None]:
        """One name per term [V]; None for a term without a name."""
        names = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        return [*names, *[None] * (self.vocab_size - len(names))][: self.vocab_size]

    # ------------------------------------------------------------------------------------ token ids to model inputs

    def max_length(self, side: Side) -> int:
        """Maximum number of tokens per text, special tokens included."""
        return self.query_max_length if side == "query" else self.passage_max_length

    def special_tokens(self, side: Side) -> int:
        """Number of special tokens that `assemble` adds to a text."""
        return sum(map(len, self._frame(side)))

    def _frame(self, side: Side) -> tuple[np.ndarray, np.ndarray]:
        """Special tokens before and after a text."""
        return self._prefix, self._suffix

    def assemble(self, ids: Sequence[np.ndarray], max_length: int, side: Side = "passage") -> tuple[Tensor, Tensor]:
        """Build `input_ids` and `attention_mask`, int64 [B, L], from token ids without special tokens.

        Special tokens are added as the tokenizer does (none for inference-free queries), texts are cut to `max_length`
        tokens in all, and padded on the right to the longest.
        """
        prefix, suffix = self._frame(side)
        room = max_length - len(prefix) - len(suffix)
        if room < 0:
            raise StudentError(
                f"a maximum length of {max_length} leaves no room for {len(prefix) + len(suffix)} special tokens; "
                f"raise student.{side}_max_length"
            )
        texts = [text[:room] for text in ids]
        ends = len(prefix) + np.fromiter(map(len, texts), np.int64, len(texts))[:, None]  # [B, 1], without the suffix
        column = np.arange(int(ends.max(initial=0)) + len(suffix) if texts else 0)
        input_ids = np.full((len(texts), len(column)), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        input_ids[:, : len(prefix)] = prefix
        if texts:
            input_ids[(column >= len(prefix)) & (column < ends)] = np.concatenate(texts)
            input_ids[np.arange(len(texts))[:, None], ends + np.arange(len(suffix))] = suffix
        attention_mask = (column < ends + len(suffix)).astype(np.int64)
        return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def check_max_lengths(cfg: config.Student | config.CsrStudent, longest: int | None) -> None:
    """Raise `StudentError` for a maximum length above `longest`, the model's own limit (None: no limit).

    A length that is still `auto` will be chosen within the limit.
    """
    for field, length in (
        ("query_max_length", cfg.query_max_length),
        ("passage_max_length", cfg.passage_max_length),
    ):
        if longest is not None and length != config.AUTO and length > longest:
            raise StudentError(f"student.{field} is {length}, but {cfg.model!r} takes at most {longest}; lower it")


def special_tokens(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Special tokens that the tokenizer puts before and after a text, found by encoding one."""
    with_special = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return (
                np.array(with_special[:start], dtype=np.int64),
                np.array(with_special[start + len(plain) :], dtype=np.int64),
            )
    raise StudentError(
        f"cannot tell which special tokens {type(tokenizer).__name__} adds: with them, the token ids of 'a' do not "
        "contain those without; use a model with another tokenizer"
    )
