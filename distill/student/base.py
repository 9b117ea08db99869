"""What training, mining and evaluation ask of a student, of whatever kind.

`SpladeStudent` and `CsrStudent` are such, and so is a class of one's own (`student: {kind: custom}`).
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

from distill import config
from distill.errors import StudentError
from distill.student.head import SparseReps

Side = Literal["query", "passage"]
# Of the very batch: detached representations, dL/dvalues [nnz] and, where they have vectors, dL/dvectors [B, E]
Cached = tuple[SparseReps, Tensor] | tuple[SparseReps, Tensor, Tensor]


class Student(nn.Module, ABC):
    """A model that gives texts sparse representations.

    `query_max_length`, `passage_max_length` (tokens, special ones counted), `top_k` (terms that encoding keeps of a
    text) and `prompts` (prefixes of `query` and `document`) are what encoding goes by; they are saved with it.
    """

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
        self._prefix, self._suffix = _special_tokens(tokenizer)

    # ------------------------------------------------------------------------------------ what a kind must have

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many terms a representation can have."""

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The transformers model that does the work: its layers are checkpointed, its dropout sped up."""

    @abstractmethod
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, cached: Cached | None = None, side: Side = "passage"
    ) -> SparseReps | Tensor:
        """Token ids and mask [B, L] to representations.

        With `cached`, the second pass of the cached step: the scalar sum(dL/dvalues · values), and the same of the
        vectors where there are any. Its backward must be the loss's. The entries are those of the cached
        representations.
        """

    def save(self, folder: Path) -> None:
        """Write into an empty folder all that `load` needs, best as `sentence_transformers.SparseEncoder` reads it.

        Of SPLADE students `distill.student.checkpoint` does it, of all others they themselves; so with `load`.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no `save`")

    @classmethod
    def load(cls, folder: Path) -> Student:
        """From what `save` wrote, in float32."""
        raise NotImplementedError(f"{cls.__qualname__} has no `load`")

    # ------------------------------------------------------------------------------------ what a kind may change

    @classmethod
    def start(cls, cfg: Any, texts: Sequence[str]) -> Student:
        """The untrained student of a recipe's section `student: {kind: custom}`; `texts`: passages to measure on."""
        raise NotImplementedError(f"{cls.__qualname__} has no `start`")

    def rate(self, name: str, train: config.Train) -> float:
        """The peak learning rate of a parameter, by its name."""
        return train.lr

    @property
    def forward_weights(self) -> int:
        """Weights that multiply each token in the forward only: a sparse backward costs next to nothing."""
        return 0

    def trains(self, side: Side) -> bool:
        """Whether the representations of a side carry gradient."""
        return True

    def counters(self) -> dict[str, Tensor]:
        """Tensors besides the parameters that training changes, by name: part of a checkpoint."""
        return {}

    def count(self, fired: Tensor) -> None:
        """After an update: how many texts of the global batch had each term, int64 [V]."""

    def term_names(self) -> list[str | None]:
        """A name a term [V], None where it has none."""
        names = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        return [*names, *[None] * (self.vocab_size - len(names))][: self.vocab_size]

    # ------------------------------------------------------------------------------------ token ids to model inputs

    def max_length(self, side: Side) -> int:
        return self.query_max_length if side == "query" else self.passage_max_length

    def special_tokens(self, side: Side) -> int:
        """How many special tokens `assemble` adds to a text."""
        return sum(map(len, self._frame(side)))

    def _frame(self, side: Side) -> tuple[np.ndarray, np.ndarray]:
        """Special tokens before and after a text."""
        return self._prefix, self._suffix

    def assemble(self, ids: Sequence[np.ndarray], max_length: int, side: Side = "passage") -> tuple[Tensor, Tensor]:
        """Token ids of texts, without special tokens, to `input_ids` and `attention_mask` int64 [B, L].

        Special tokens are added as the tokenizer does (none for a table to look up), texts cut to `max_length` tokens
        with them, and padded on the right to the longest.
        """
        prefix, suffix = self._frame(side)
        room = max_length - len(prefix) - len(suffix)
        if room < 0:
            raise StudentError(f"a maximum length of {max_length} leaves no room for the special tokens")
        rows = [np.concatenate([prefix, text[:room], suffix]) for text in ids]
        length = max(map(len, rows), default=0)
        input_ids = np.full((len(rows), length), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = row
            attention_mask[i, : len(row)] = 1
        return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def _special_tokens(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the tokenizer puts before and after a text, found by encoding one."""
    with_special = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return (
                np.array(with_special[:start], dtype=np.int64),
                np.array(with_special[start + len(plain) :], dtype=np.int64),
            )
    raise StudentError(f"cannot tell which special tokens {type(tokenizer).__name__} adds")
