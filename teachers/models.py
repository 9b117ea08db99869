"""Loading what a teacher needs: its tokenizer, its weights, the token stores of its texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from distill.config import resolve_model
from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.data.tokens import build_token_store, token_key
from distill.errors import TeacherError

T = TypeVar("T")
_MIN_STORED_TOKENS = 512  # see pair_stores


def load_config(name: str, model: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    return loading(name, model, lambda: AutoConfig.from_pretrained(resolve_model(model), revision=revision))


def load_tokenizer(name: str, model: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return loading(name, model, lambda: AutoTokenizer.from_pretrained(resolve_model(model), revision=revision))


def loading(name: str, model: str, load: Callable[[], T]) -> T:
    """Call `load`; what goes wrong with a model's files becomes a `TeacherError` naming teacher and model."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for each of many workers
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0]
        raise TeacherError(f"teacher {name!r}: cannot load {model!r}: {first}") from error


def pair_stores(folder: RunFolder, tokenizer: Any, max_length: int, splits: Sequence[str]) -> None:
    """Make the token stores that a ranker reading pairs needs. Idempotent.

    A text is kept to 512 tokens at least: teachers of different lengths then share a store, and only a query longer
    than that could be cut otherwise than the tokenizer would.
    """
    keep = max(max_length, _MIN_STORED_TOKENS) if tokenizer.truncation_side == "right" else 1 << 30
    key = token_key(tokenizer)
    build_token_store(TextStore.open(folder.passages), tokenizer, folder.tokens(key, "passages"), keep)
    for split in splits:
        store = f"queries.{split}"
        build_token_store(TextStore.open(folder.queries(split)), tokenizer, folder.tokens(key, store), keep)
