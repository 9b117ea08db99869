"""Where the parts of a SPLADE checkpoint lie: a plain encoder, or a `Router` with a table for queries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, get_cached_repo_tree, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
)
from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding

from distill.config import missing_folder
from distill.errors import StudentError


class NotCached(StudentError):
    """A file that the hub may have is not on this machine, and the hub cannot be asked."""


class OtherLayout(StudentError):
    """The checkpoint is there, and none that a `SpladeStudent` can be."""


@dataclass(frozen=True)
class Parts:
    """Folders of the modules inside a checkpoint; the checkpoint's own is ""."""

    transformer: str = ""
    pooling: str | None = None
    table: str | None = None  # queries: alone, or after transformer and pooling
    inference_free: bool = False  # the table alone


def read_parts(name: str, revision: str | None = None) -> Parts:
    """Of a path or hub name. Raises `OtherLayout` where it is none that a `SpladeStudent` can be."""
    modules = read_json(name, "modules.json", revision)
    if modules is None:
        return Parts()
    if (parts := router_parts(name, revision)) is not None:
        return parts
    kinds = {module["path"]: _kind(module["type"]) for module in modules}
    if list(kinds.values()) != ["Transformer", "SpladePooling"]:
        raise OtherLayout(
            f"{name}: not a SPLADE checkpoint: its modules are {', '.join(kinds.values())}, "
            "not Transformer and SpladePooling"
        )
    return Parts(*kinds)


def router_parts(name: str, revision: str | None = None) -> Parts | None:
    """The same, None where the checkpoint is not laid out by a `Router`."""
    modules = read_json(name, "modules.json", revision)
    if modules is None or [_kind(module["type"]) for module in modules] != ["Router"]:
        return None
    router = read_json(name, Router.config_file_name, revision)
    if router is None:
        raise OtherLayout(f"{name}: not a SPLADE checkpoint: its {Router.config_file_name} is missing")
    kinds, routes = {place: _kind(type_) for place, type_ in router["types"].items()}, router["structure"]
    if set(routes) == {"query", "document"}:
        (*model, table), document = routes["query"], routes["document"]
        if [kinds[place] for place in (*document, table)] == [
            "Transformer",
            "SpladePooling",
            "SparseStaticEmbedding",
        ] and (not model or _alike(name, revision, model, document)):
            return Parts(*document, table=table, inference_free=not model)
    said = "; ".join(f"{route}: {' + '.join(kinds[place] for place in places)}" for route, places in routes.items())
    raise OtherLayout(
        f"{name}: not a SPLADE checkpoint: its routes are {said}, not a table for queries and "
        "Transformer + SpladePooling for documents"
    )


def _alike(name: str, revision: str | None, query: list[str], document: list[str]) -> bool:
    """Whether both routes have one transformer, and poolings of the same settings."""
    poolings = [read_json(name, f"{place}/config.json", revision) for place in (query[-1], document[-1])]
    return len(query) == 2 and query[0] == document[0] and poolings[0] == poolings[1]


def load_table(
    name: str, revision: str | None, parts: Parts, tokenizer: Any, vocab_size: int
) -> SparseStaticEmbedding | None:
    """The module with the query table, None where there is none; it must share the masked language model's words."""
    if parts.table is None:
        return None
    try:
        static = SparseStaticEmbedding.load(name, subfolder=parts.table, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StudentError(f"{name}: its query table ({parts.table}) cannot be loaded: {error}") from None
    if static.num_dimensions != vocab_size or static.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise StudentError(f"{name}: its query table has another vocabulary than its masked language model")
    return static


def read_json(name: str, file: str, revision: str | None) -> Any:
    """A JSON file of a checkpoint, None where that has none.

    Raises `StudentError` for a file that is damaged, and where the hub does not say whether there is one.
    """
    path = Path(name, file)
    if not Path(name).is_dir():
        path = _from_hub(name, file, revision)
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudentError(f"{name!r} cannot be loaded: its {file} is not valid JSON: {error}") from None


def _from_hub(name: str, file: str, revision: str | None) -> Path | None:
    if (missing := missing_folder(name)) is not None:
        raise StudentError(missing)
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except LocalEntryNotFoundError:  # an `EntryNotFoundError`, but the hub was not asked
        if _known_missing(name, file, revision):
            return None
        raise NotCached(
            f"{name!r} cannot be loaded: its {file}, if it has one, is not in this machine's cache, and "
            f"the hub cannot be asked; run `hf download {name}` where it can be"
        ) from None
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise StudentError(f"{name!r} cannot be loaded: no such folder, and not a name on the hub: {error}") from None
    except (HTTPError, OSError, ValueError) as error:
        raise StudentError(f"{name!r} cannot be loaded from the hub: {error}") from None


def _known_missing(name: str, file: str, revision: str | None) -> bool:
    """Whether the cache has it from the hub that a model has no such file."""
    if try_to_load_from_cache(name, file, revision=revision) is _CACHED_NO_EXIST:
        return True
    try:
        return all(entry.path != file for entry in get_cached_repo_tree(name, revision=revision))
    except CachedRepoTreeNotFoundError:
        return False


def inside(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _kind(type_: str) -> str:
    """A module's class; the masked language model's has had two names."""
    return type_.rsplit(".", 1)[-1].replace("MLMTransformer", "Transformer")
