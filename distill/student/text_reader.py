"""How a saved encoder reads texts: tokenizer, prompts and maximum lengths, read without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.errors import NotCached
from distill.run.model_ref import ModelRef
from distill.student.layout import inside, router_parts
from distill.student.model import load_tokenizer

_PASSAGE_PROMPTS = ("document", "passage", "corpus")  # names that sentence-transformers tries, in order


@dataclass(frozen=True)
class TextReader:
    """Tokenizer, and prompts and maximum lengths (None: no limit) of the sides `query` and `passage`."""

    tokenizer: Any
    prompts: dict[str, str]
    limits: dict[str, int | None]


def text_reader(model: ModelRef) -> TextReader:
    """Open a checkpoint of sentence-transformers. Raises `StudentError` if its tokenizer cannot be loaded."""
    router = router_parts(model.location, model.revision)
    modules = read_settings(model, "modules.json")
    folder = router.transformer if router is not None else modules[0]["path"] if modules else ""
    lengths = read_settings(model, inside(folder, "sentence_bert_config.json"))
    longest = longest_dense_input(model, folder)
    return TextReader(
        load_tokenizer(model.location, model.revision, bool(lengths.get("do_lower_case")), folder),
        _prompts(read_settings(model, "config_sentence_transformers.json")),
        {"query": lengths.get("query_length") or longest, "passage": lengths.get("document_length") or longest},
    )


def longest_dense_input(model: ModelRef, folder: str = "") -> int | None:
    """Maximum number of tokens that sentence-transformers lets a model read; None if nothing limits it."""
    stated = read_settings(model, inside(folder, "sentence_bert_config.json")).get("max_seq_length")
    if stated is not None:
        return stated
    limits = (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length"))
    found = [read_settings(model, inside(folder, file)).get(field) for file, field in limits]
    return min((limit for limit in found if limit is not None), default=None)


def read_settings(model: ModelRef, file: str) -> Any:
    """Read a JSON file of the model; empty if it has none, or none on this machine without a connection."""
    try:
        return model.read_json(file) or {}
    except NotCached:
        return {}


def _prompts(settings: dict[str, Any]) -> dict[str, str]:
    prompts: dict[str, str] = settings.get("prompts") or {}
    default = prompts.get(settings.get("default_prompt_name") or "", "")
    passage = next((prompts[name] for name in _PASSAGE_PROMPTS if prompts.get(name)), default)
    return {"query": prompts.get("query") or default, "passage": passage}
