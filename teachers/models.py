"""Load what a teacher needs: its tokenizer, its weights, the token stores of its texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from distill.errors import TeacherError
from distill.run import model_ref
from distill.run.layout import RunFolder
from distill.run.model_ref import ModelRef
from distill.store.texts import TextStore
from distill.store.tokens import build_token_store, token_key

T = TypeVar("T")
_MIN_STORED_TOKENS = 512  # see pair_stores


def load_config(name: str, model: ModelRef) -> Any:
    from transformers import AutoConfig

    return loading(name, model.name, lambda: AutoConfig.from_pretrained(model.location, revision=model.revision))


def load_tokenizer(name: str, model: ModelRef) -> Any:
    from transformers import AutoTokenizer

    return loading(name, model.name, lambda: AutoTokenizer.from_pretrained(model.location, revision=model.revision))


def loading(name: str, model: str, load: Callable[[], T]) -> T:
    """Call `load`, turning errors about a model's files into a `TeacherError` that names the teacher and the model."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # otherwise every worker draws one
    with model_ref.loading(f"teacher {name!r}: {model!r}", TeacherError):
        return load()


def pair_stores(folder: RunFolder, tokenizer: Any, max_length: int, splits: Sequence[str]) -> None:
    """Build the token stores that a teacher of pairs reads. Idempotent.

    Texts keep at least 512 tokens, so that teachers with different maximum lengths share a store. Only a query longer
    than that could be truncated differently than by the tokenizer itself.
    """
    keep = max(max_length, _MIN_STORED_TOKENS) if tokenizer.truncation_side == "right" else 1 << 30
    key = token_key(tokenizer)
    build_token_store(TextStore.open(folder.passages), tokenizer, folder.tokens(key, "passages"), keep)
    for split in splits:
        store = f"queries.{split}"
        build_token_store(TextStore.open(folder.queries(split)), tokenizer, folder.tokens(key, store), keep)
