"""`rounds`: mining, scoring, labelling and training again, from the last round's student.

The recipe as it stands is the first round. Each entry of `rounds` adds a round and lists its differences from the
recipe as a JSON merge patch (RFC 7396): sections are merged field by field, lists are replaced, and null removes a
field. The model `round:previous` is the checkpoint of the round before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.config.base import Section

PREVIOUS = "round:previous"
SHARED = ("name", "run_dir", "data", "bm25", "rounds", "follows")  # fields that a round cannot change


class Follows(Section):
    """The run that a recipe is a further round of. The program writes it into the recipe of each further round."""

    run: Path
    """Folder of the first round, whose data and fine-tuned teachers all rounds use."""
    checkpoint: Path
    """Student saved by the round before."""
    model: str | None = None
    """Model from which that student was started, and whose shape it has."""


def merged(tree: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return `tree` with a JSON merge patch applied; neither argument is changed."""
    result = dict(tree)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def with_previous(tree: Any, checkpoint: str) -> Any:
    """Return `tree` with `round:previous` replaced, wherever it names a `model`, by the path of a checkpoint."""
    if isinstance(tree, dict):
        replaced = {"model": checkpoint, "revision": None} if tree.get("model") == PREVIOUS else {}
        return {key: with_previous(value, checkpoint) for key, value in tree.items()} | replaced
    return [with_previous(value, checkpoint) for value in tree] if isinstance(tree, list) else tree
