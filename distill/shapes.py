"""Shapes of models and the operations that they take, from a config.json at hand or from what the recipe declares.

A matrix product takes two operations a weight and token; attention's own products four for each of a token's
neighbours, itself included, and channel. Embeddings, norms and activations are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.config import ModelShape, Recipe, Teacher, resolve_model
from distill.data.files import read_json


def shape_of(recipe: Recipe, *names: str | None) -> ModelShape | None:
    """The shape of the first of these models that is declared in `data.sizes.models`, or whose config.json is at hand
    (a path, a package, the hub's cache); None where there is none."""
    declared = recipe.data.sizes.models if recipe.data.sizes else {}
    for name in names:
        if name in declared:
            return declared[name]
    for name in names:
        if name is not None and (config := _config(name)) is not None and (shape := _shape(config)) is not None:
            return shape
    follows = recipe.follows
    if follows and follows.model and str(follows.checkpoint) in names:  # not saved yet
        return _cut(shape_of(recipe, follows.model), recipe.student.layers)
    return None


def teacher_shape(recipe: Recipe, teacher: Teacher) -> ModelShape | None:
    """A teacher's shape; an own class is known by its import path, or by a model that its options name."""
    shape = shape_of(recipe, teacher.model, teacher.cls, *(str(value) for value in teacher.options.values()))
    return _cut(shape, teacher.fine_tune and teacher.fine_tune.layers)


def student_shape(recipe: Recipe) -> ModelShape | None:
    return _cut(shape_of(recipe, recipe.student.model), recipe.student.layers)


def _cut(shape: ModelShape | None, layers: int | None) -> ModelShape | None:
    return shape.model_copy(update={"layers": layers}) if shape and layers else shape


def student_head_flops(recipe: Recipe, shape: ModelShape) -> float:
    """`head_flops` of a SPLADE student; others have no product over the vocabulary."""
    return head_flops(shape) if recipe.student.kind == "splade" else 0.0


def weights(shape: ModelShape) -> float:
    """Weights of the layers' matrices."""
    attention, feed_forward = shape.attention or shape.hidden, shape.feed_forward or 4 * shape.hidden
    return float(shape.layers) * (
        4 * shape.hidden * attention + (3 if shape.gated else 2) * shape.hidden * feed_forward
    )


def parameters(shape: ModelShape) -> float:
    """The layers' weights, and the embeddings'."""
    return weights(shape) + float(shape.vocabulary or 0) * shape.hidden


def forward_flops(shape: ModelShape, length: float) -> float:
    """Operations of the layers for each token of a text of `length` tokens."""
    return 2 * weights(shape) + 4 * length * shape.layers * (shape.attention or shape.hidden)


def head_flops(shape: ModelShape) -> float:
    """Operations of the product over the vocabulary, for each token; 0 where the vocabulary isn't known."""
    return 2.0 * shape.hidden * (shape.vocabulary or 0)


def _config(name: str) -> dict[str, Any] | None:
    path = Path(resolve_model(name)) / "config.json"
    if not path.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(name, "config.json")
        except HFValidationError:  # a path, or an option that is no model
            return None
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    return read_json(path)


def _shape(config: dict[str, Any]) -> ModelShape | None:
    def first(*fields: str) -> Any:
        return next((config[field] for field in fields if config.get(field)), None)

    layers, hidden = first("num_hidden_layers", "n_layers", "num_layers"), first("hidden_size", "dim", "d_model")
    if not (layers and hidden):
        return None
    heads, channels = first("num_attention_heads", "n_heads", "num_heads"), first("d_kv", "head_dim")
    return ModelShape(
        layers=layers,
        hidden=hidden,
        attention=heads * channels if heads and channels else None,
        feed_forward=first("intermediate_size", "hidden_dim", "d_ff"),
        vocabulary=first("vocab_size"),
        gated=config.get("model_type") in ("modernbert", "llama", "qwen2", "qwen3", "mistral", "gemma"),
    )
