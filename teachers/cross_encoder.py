"""Cross-encoders: any `AutoModelForSequenceClassification` with one label (its logit) or two.

With two labels the score is `logit[1] - logit[0]`, the log-odds of "relevant", which is what a single logit is.
Texts come tokenised from the stores; batches are length-sorted with a token budget, and unpadded where GPU and model
allow it; products run in the precision of the execution record, the classification head always in float32, because
bfloat16 logits would tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distill import config
from distill.config import resolve_model
from distill.data.layout import RunFolder
from distill.data.tokens import TokenStore, token_key
from distill.errors import TeacherError
from teachers.base import Pairs, Teacher, Work
from teachers.execution import Execution
from teachers.first_token import first_token_only
from teachers.folds import FoldedTeacher
from teachers.identity import check_labels, fold_folders
from teachers.inference import heads_in_float32, run_batches
from teachers.models import load_tokenizer, loading, pair_stores
from teachers.pairs import assemble_pairs, pair_layout, pair_lengths
from teachers.unpadded import drop_padding, kernel_serves, pack


def prepare(name: str, cfg: config.Teacher, folder: RunFolder, splits: Sequence[str]) -> None:
    tokenizer = load_tokenizer(name, cfg.model, cfg.revision)
    pair_layout(tokenizer)  # refuses a tokenizer without a fixed template
    pair_stores(folder, tokenizer, cfg.max_length, splits)


def open_teacher(name: str, cfg: config.Teacher, folder: RunFolder, execution: Execution) -> Teacher:
    if cfg.fine_tune is None:
        return CrossEncoderTeacher(name, cfg.model, cfg.revision, cfg.max_length, folder, execution)
    models = [
        CrossEncoderTeacher(name, str(path), None, cfg.max_length, folder, execution)
        for path in fold_folders(name, cfg, folder)
    ]
    return FoldedTeacher(name, models, folder)


class CrossEncoderTeacher:
    """Scores pairs with one sequence-classification model."""

    def __init__(
        self, name: str, model: str, revision: str | None, max_length: int, folder: RunFolder, execution: Execution
    ):
        from transformers import AutoModelForSequenceClassification

        self.name, self.execution, self._folder, self.work = name, execution, folder, Work()
        execution.apply_threads()
        tokenizer = load_tokenizer(name, model, revision)
        self.max_length = min(max_length, tokenizer.model_max_length)
        self._layout, self._key = pair_layout(tokenizer), token_key(tokenizer)
        self._model, report = loading(
            name,
            model,
            lambda: AutoModelForSequenceClassification.from_pretrained(
                resolve_model(model), revision=revision, dtype=torch.float32, output_loading_info=True
            ),
        )
        if report["missing_keys"]:
            raise TeacherError(
                f"teacher {name!r}: {model!r} has no trained classification head (missing: "
                f"{', '.join(sorted(report['missing_keys'])[:3])}); give it a fine_tune section, or "
                "name a cross-encoder"
            )
        check_labels(name, model, self._model.config.num_labels)
        self._model.eval().requires_grad_(False)
        self._first_position: int | None = None  # None: batches are padded
        if first_token_only(self._model) and kernel_serves(self._model, execution):
            self._first_position = drop_padding(self._model)
        self._model.to(execution.device)
        if execution.precision != "float32":
            heads_in_float32(self._model, execution.device)
        self._stores: dict[str, TokenStore] = {}
        self._lengths: dict[str, np.ndarray] = {}

    def score(self, pairs: Pairs) -> np.ndarray:
        """float32 [n] logits."""
        queries, passages = f"queries.{pairs.split}", "passages"
        lengths = pair_lengths(
            self._layout,
            self._length(queries)[pairs.query_rows],
            self._length(passages)[pairs.passage_rows],
            self.max_length,
        )

        def inputs(batch: np.ndarray) -> dict[str, Any]:
            padded = assemble_pairs(
                self._layout,
                self._store(queries).take(pairs.query_rows[batch]),
                self._store(passages).take(pairs.passage_rows[batch]),
                self.max_length,
            )
            return padded if self._first_position is None else pack(padded, self._first_position)

        scores, self.execution = run_batches(self._logits, inputs, lengths, self.execution, self.work)
        return scores

    def _logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        logits = self._model(**inputs).logits.float()  # [b, 1 or 2]
        return logits[:, -1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]

    def _store(self, name: str) -> TokenStore:
        if name not in self._stores:
            self._stores[name] = TokenStore.open(self._folder.tokens(self._key, name))
        return self._stores[name]

    def _length(self, name: str) -> np.ndarray:
        if name not in self._lengths:
            self._lengths[name] = self._store(name).lengths
        return self._lengths[name]
