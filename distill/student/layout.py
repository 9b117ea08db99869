"""The layout of a SPLADE checkpoint: a plain encoder, or a `Router` with a query table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding

from distill.errors import StudentError
from distill.run.model_ref import ModelRef, loading


class UnsupportedCheckpoint(StudentError):
    """The checkpoint exists but cannot be loaded as a `SpladeStudent`."""


@dataclass(frozen=True)
class Parts:
    """Subfolders of a checkpoint's modules; "" is the checkpoint's own folder."""

    transformer: str = ""
    pooling: str | None = None
    table: str | None = None  # of queries: alone, or after transformer and pooling
    inference_free: bool = False  # queries are weighted by the table alone


def read_parts(name: str, revision: str | None = None) -> Parts:
    """Read the layout of a path or hub name.

    Raises `UnsupportedCheckpoint` for a checkpoint that cannot be loaded as a `SpladeStudent`.
    """
    modules = ModelRef.parse(name, revision).read_json("modules.json")
    if modules is None:
        return Parts()
    if (parts := router_parts(name, revision)) is not None:
        return parts
    kinds = {module["path"]: _kind(module["type"]) for module in modules}
    if list(kinds.values()) != ["Transformer", "SpladePooling"]:
        raise UnsupportedCheckpoint(
            f"{name}: not a SPLADE checkpoint: its modules are {', '.join(kinds.values())}, "
            "not Transformer and SpladePooling"
        )
    return Parts(*kinds)


def router_parts(name: str, revision: str | None = None) -> Parts | None:
    """As `read_parts`, for a checkpoint with a `Router`; None for any other checkpoint."""
    ref = ModelRef.parse(name, revision)
    modules = ref.read_json("modules.json")
    if modules is None or [_kind(module["type"]) for module in modules] != ["Router"]:
        return None
    router = ref.read_json(Router.config_file_name)
    if router is None:
        raise UnsupportedCheckpoint(f"{name}: not a SPLADE checkpoint: its {Router.config_file_name} is missing")
    kinds, routes = {path: _kind(type_) for path, type_ in router["types"].items()}, router["structure"]
    if set(routes) == {"query", "document"}:
        (*model, table), document = routes["query"], routes["document"]
        expected = ["Transformer", "SpladePooling", "SparseStaticEmbedding"]
        if [kinds[path] for path in (*document, table)] == expected and (not model or _same(ref, model, document)):
            transformer, pooling = document
            return Parts(transformer, pooling, table, inference_free=not model)
    modules_by_route = "; ".join(
        f"{route}: {' + '.join(kinds[path] for path in paths)}" for route, paths in routes.items()
    )
    raise UnsupportedCheckpoint(
        f"{name}: not a SPLADE checkpoint: its routes are {modules_by_route}, not a table for queries and "
        "Transformer + SpladePooling for documents"
    )


def _same(ref: ModelRef, query: list[str], document: list[str]) -> bool:
    """Whether both routes share the transformer and have poolings with equal settings."""
    poolings = [ref.read_json(f"{path}/config.json") for path in (query[-1], document[-1])]
    return len(query) == 2 and query[0] == document[0] and poolings[0] == poolings[1]


def load_table(
    name: str, revision: str | None, parts: Parts, tokenizer: Any, vocab_size: int
) -> SparseStaticEmbedding | None:
    """Load the query table, None if the checkpoint has none.

    Raises `StudentError` for a table that cannot be loaded or has another vocabulary than the masked language model.
    """
    if parts.table is None:
        return None
    with loading(f"{name}: its query table ({parts.table})", StudentError):
        static = SparseStaticEmbedding.load(name, subfolder=parts.table, revision=revision)
    if static.num_dimensions != vocab_size or static.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise StudentError(
            f"{name}: its query table ({parts.table}) has another vocabulary than its masked language model"
        )
    return static


def inside(folder: str, file: str) -> str:
    """Path of a file in a subfolder of a checkpoint."""
    return f"{folder}/{file}" if folder else file


def _kind(type_: str) -> str:
    """A module's class name; older checkpoints call `Transformer` `MLMTransformer`."""
    return type_.rsplit(".", 1)[-1].replace("MLMTransformer", "Transformer")
