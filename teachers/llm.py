"""Causal language models as rerankers: log-odds of "yes" over "no" after a prompt with the query and the passage.

The prompt is tokenised whole, because its pieces tokenised separately would not join to the same tokens. A prompt that
is too long loses the passage's last tokens, never the template's. Inputs are padded on the right and the head reads
only each prompt's last token, so no `[batch, length, vocabulary]` logits are computed and positions need no correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distill.errors import TeacherError
from distill.store.texts import TextStore
from teachers.base import Pairs, Work
from teachers.execution import Execution
from teachers.identity import llm_answers, llm_template
from teachers.inference import run_batches
from teachers.models import load_tokenizer, loading
from teachers.spec import TeacherSpec

_PROMPTS = 2048  # tokenised at once


def prepare(spec: TeacherSpec, splits: Sequence[str]) -> None:
    tokenizer = load_tokenizer(spec.name, spec.model)
    if not tokenizer.is_fast:
        raise TeacherError(
            f"teacher {spec.name!r}: {spec.model.name!r} has no fast tokenizer, which is needed to truncate passages "
            "inside the prompt"
        )
    for word in llm_answers(spec):
        _token_id(spec.name, tokenizer, word)


def open_teacher(spec: TeacherSpec, execution: Execution) -> LlmTeacher:
    return LlmTeacher(spec, execution)


class LlmTeacher:
    def __init__(self, spec: TeacherSpec, execution: Execution):
        from transformers import AutoModelForCausalLM

        model = spec.model
        self.name, self.execution, self._folder, self.work = spec.name, execution, spec.folder, Work()
        self.max_length = spec.config.max_length
        execution.apply_threads()
        self._before, rest = llm_template(spec).split("{query}")
        self._between, self._after = rest.split("{passage}")
        self._tokenizer = load_tokenizer(spec.name, model)
        self._yes, self._no = (_token_id(spec.name, self._tokenizer, word) for word in llm_answers(spec))
        self._model = loading(
            spec.name,
            model.name,
            lambda: AutoModelForCausalLM.from_pretrained(
                model.location, revision=model.revision, dtype=execution.dtype
            ),
        )
        self._model.eval().requires_grad_(False).to(execution.device)
        self._last = torch.zeros(0, dtype=torch.int64)  # [b] position of each prompt's last token
        self._read_answers_at_last_token()
        self._passages = TextStore.open(spec.folder.passages)

    def score(self, pairs: Pairs) -> np.ndarray:
        """float32 [n]: logit of "yes" minus logit of "no"."""
        queries = TextStore.open(self._folder.queries(pairs.split))
        prompts: list[np.ndarray] = []
        for start in range(0, len(pairs), _PROMPTS):
            part = pairs.take(np.arange(start, min(start + _PROMPTS, len(pairs))))
            prompts += self._tokenise(queries.texts(part.query_rows), self._passages.texts(part.passage_rows))
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        scores, self.execution = run_batches(
            self._log_odds, lambda batch: _pad([prompts[i] for i in batch]), lengths, self.execution, self.work
        )
        return scores

    def _tokenise(self, queries: list[str], passages: list[str]) -> list[np.ndarray]:
        """Token ids of each prompt, with the passage truncated so that it fits."""
        heads = [f"{self._before}{query}{self._between}" for query in queries]
        texts = [f"{head}{passage}{self._after}" for head, passage in zip(heads, passages, strict=True)]
        encoded = self._tokenizer(texts, truncation=False, return_offsets_mapping=True, verbose=False)
        prompts = []
        for head, passage, ids, offsets in zip(
            heads, passages, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            ids, spans = np.array(ids, np.int64), np.array(offsets).reshape(-1, 2)  # [l], [l, 2] characters
            excess = len(ids) - self.max_length
            if excess > 0:
                start, stop = len(head), len(head) + len(passage)
                inside = np.flatnonzero((spans[:, 0] >= start) & (spans[:, 1] <= stop) & (spans[:, 1] > spans[:, 0]))
                if len(inside) < excess:
                    raise TeacherError(
                        f"teacher {self.name!r}: the template and the query {head[-60:]!r} without a passage are "
                        f"longer than max_length {self.max_length}; raise max_length"
                    )
                ids = np.delete(ids, inside[len(inside) - excess :])
            prompts.append(ids)
        return prompts

    def _log_odds(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        self._last = mask.sum(1) - 1
        # tokens attend to those before them, and padding comes after the last that is read: a GPU, whose fast attention
        # takes no mask, needs none
        unmasked = None if ids.is_cuda else mask
        logits = self._model(input_ids=ids, attention_mask=unmasked, use_cache=False).logits[:, 0].float()  # [b, 2]
        return logits[:, 0] - logits[:, 1]

    def _read_answers_at_last_token(self) -> None:
        """Replace the head by its two rows of the answers, in float32; a copy of all rows may take gigabytes."""
        whole = self._model.get_output_embeddings()
        answers, biased = [self._yes, self._no], getattr(whole, "bias", None) is not None
        head = _Float32Linear(whole.weight.shape[1], 2, biased, whole.weight.device).requires_grad_(False)
        head.weight.copy_(whole.weight[answers])
        if biased:
            head.bias.copy_(whole.bias[answers])
        self._model.set_output_embeddings(head)

        def last_token(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            hidden = args[0]  # [b, l, h]
            return (hidden[torch.arange(len(hidden), device=hidden.device), self._last][:, None].float(),)

        head.register_forward_pre_hook(last_token)


class _Float32Linear(torch.nn.Linear):
    """A linear layer in float32, also inside an autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input)


def _pad(prompts: list[np.ndarray]) -> dict[str, np.ndarray]:
    lengths = np.array([len(prompt) for prompt in prompts])
    inside = np.arange(lengths.max()) < lengths[:, None]  # [b, l]
    ids = np.zeros(inside.shape, np.int64)
    ids[inside] = np.concatenate(prompts)
    return {"input_ids": ids, "attention_mask": inside.astype(np.int64)}


def _token_id(name: str, tokenizer: Any, word: str) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise TeacherError(
            f"teacher {name!r}: the answer {word!r} is {len(ids)} tokens long; set options.yes and "
            "options.no to words of one token each"
        )
    return ids[0]
