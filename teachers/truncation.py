"""What teachers do not read: the share of pairs, or of single texts, that their maximum length cuts.

Pairs are judged positives, which exist before candidates are mined and matter most.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.run.truncation import Truncation
from distill.store.texts import TextStore
from distill.store.token_counts import TokenCounts, count_sides, sample_positives, text_lengths
from distill.store.tokens import token_ids
from distill.student.base import special_tokens
from distill.student.text_reader import longest_dense_input, text_reader
from teachers.identity import llm_template
from teachers.models import load_tokenizer, loading
from teachers.pairs import pair_layout
from teachers.spec import TeacherSpec


def truncation(spec: TeacherSpec, seed: int) -> list[Truncation]:
    """Count what a teacher with a model reads. Raises `TeacherError` or `StudentError` if it cannot be loaded."""
    return _of_texts(spec, seed) if spec.config.stores_vectors else _of_pairs(spec, seed)


def _of_texts(spec: TeacherSpec, seed: int) -> list[Truncation]:
    reader = loading(spec.name, spec.model.name, lambda: text_reader(spec.model))
    special = sum(map(len, special_tokens(reader.tokenizer)))
    sides = count_sides(spec.folder, reader.tokenizer, seed, reader.prompts, {"query": special, "passage": special})
    figures = []
    for side, kinds in sides.items():
        limit = reader.limits[side]
        length = spec.config.max_length if limit is None else min(spec.config.max_length, limit)
        figures += [
            counts.truncation(_reader(spec), texts, _field(spec), length, limit) for texts, counts in kinds.items()
        ]
    return figures


def _of_pairs(spec: TeacherSpec, seed: int) -> list[Truncation]:
    tokenizer, model = load_tokenizer(spec.name, spec.model), spec.model
    split, query_rows, passage_rows, total = sample_positives(spec.folder, seed)
    queries, passages = TextStore.open(spec.folder.queries(split)), TextStore.open(spec.folder.passages)
    if spec.config.kind == "llm":
        lengths = _prompt_lengths(spec, tokenizer, queries.texts(query_rows), passages.texts(passage_rows))
        length, limit = spec.config.max_length, longest_dense_input(model)
    else:
        lengths = text_lengths(queries, query_rows, tokenizer) + text_lengths(passages, passage_rows, tokenizer)
        lengths = lengths + pair_layout(tokenizer).specials
        limit = min(filter(None, (longest_dense_input(model), tokenizer.model_max_length)))
        length = min(spec.config.max_length, tokenizer.model_max_length)
    counts = TokenCounts(lengths, total)
    return [counts.truncation(_reader(spec), f"{split} pairs of query and positive", _field(spec), length, limit)]


def _prompt_lengths(spec: TeacherSpec, tokenizer: Any, queries: list[str], passages: list[str]) -> np.ndarray:
    """Number of tokens of the filled-in templates, int64 [n]."""
    before, rest = llm_template(spec).split("{query}")
    between, after = rest.split("{passage}")
    prompts = [f"{before}{query}{between}{passage}{after}" for query, passage in zip(queries, passages, strict=True)]
    special = len(tokenizer("a")["input_ids"]) - len(token_ids(tokenizer, ["a"])[0])
    return np.fromiter(map(len, token_ids(tokenizer, prompts)), np.int64, len(prompts)) + special


def _reader(spec: TeacherSpec) -> str:
    return f"teacher {spec.name}"


def _field(spec: TeacherSpec) -> str:
    return f"teachers.{spec.name}.max_length"
