"""Cross-encoders: any `AutoModelForSequenceClassification` with one label (its logit) or two.

With two labels the score is `logit[1] - logit[0]`, the log-odds of "relevant", which is what a single logit is.
Texts come tokenised from the stores. Batches are sorted by length under a token budget, and unpadded if GPU and model
allow it. Products run in the precision of the execution record, the classification head always in float32, because
bfloat16 logits would tie.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distill.errors import TeacherError
from distill.run.model_ref import ModelRef
from distill.store.tokens import TokenStore, token_key
from teachers.base import Pairs, Teacher, Work
from teachers.execution import Execution
from teachers.first_token import first_token_only
from teachers.folds import FoldedTeacher
from teachers.identity import check_labels, fold_folders
from teachers.inference import body_in_bfloat16, heads_in_float32, run_batches
from teachers.models import load_tokenizer, loading, pair_stores
from teachers.pairs import join_pairs, pair_layout, pair_lengths
from teachers.spec import TeacherSpec
from teachers.unpadded import drop_padding, kernel_serves, packed


def prepare(spec: TeacherSpec, splits: Sequence[str]) -> None:
    tokenizer = load_tokenizer(spec.name, spec.model)
    pair_layout(tokenizer)  # refuses a tokenizer without a fixed template
    pair_stores(spec.folder, tokenizer, spec.config.max_length, splits)


def open_teacher(spec: TeacherSpec, execution: Execution) -> Teacher:
    if spec.config.fine_tune is None:
        return CrossEncoderTeacher(spec, spec.model, execution)
    models = [CrossEncoderTeacher(spec, ModelRef.parse(str(path)), execution) for path in fold_folders(spec)]
    return FoldedTeacher(spec.name, models, spec.folder)


class CrossEncoderTeacher:
    """Scores pairs with one sequence-classification model: the recipe's, or one of its fine-tuned folds."""

    def __init__(self, spec: TeacherSpec, model: ModelRef, execution: Execution):
        from transformers import AutoModelForSequenceClassification

        self.name, self.execution, self._folder, self.work = spec.name, execution, spec.folder, Work()
        execution.apply_threads()
        tokenizer = load_tokenizer(spec.name, model)
        self.max_length = min(spec.config.max_length, tokenizer.model_max_length)
        self._layout, self._key = pair_layout(tokenizer), token_key(tokenizer)
        self._model, report = loading(
            spec.name,
            model.name,
            lambda: AutoModelForSequenceClassification.from_pretrained(
                model.location, revision=model.revision, dtype=torch.float32, output_loading_info=True
            ),
        )
        if report["missing_keys"]:
            raise TeacherError(
                f"teacher {spec.name!r}: {model.name!r} has no trained classification head (missing: "
                f"{', '.join(sorted(report['missing_keys'])[:3])}); give it a fine_tune section, or "
                "name a cross-encoder"
            )
        check_labels(spec.name, model.name, self._model.config.num_labels)
        self._model.eval().requires_grad_(False)
        self._first_position: int | None = None  # position id of a packed batch's first token; None: batches are padded
        if first_token_only(self._model) and kernel_serves(self._model, execution):
            self._first_position = drop_padding(self._model)
        self._model.to(execution.device)
        self._autocast = True
        if execution.precision != "float32":
            heads_in_float32(self._model, execution.device)
            if execution.device == "cuda" and execution.precision == "bfloat16":
                self._autocast = not body_in_bfloat16(self._model)
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
            joined = join_pairs(
                self._layout,
                self._store(queries).take_ragged(pairs.query_rows[batch]),
                self._store(passages).take_ragged(pairs.passage_rows[batch]),
                self.max_length,
            )
            if self._first_position is None:
                return joined.padded(self._layout)
            return packed(joined.ids, joined.type_ids, joined.lengths, self._first_position)

        scores, self.execution = run_batches(self._logits, inputs, lengths, self.execution, self.work)
        return scores

    def _logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        with contextlib.nullcontext() if self._autocast else torch.autocast(self.execution.device, enabled=False):
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
