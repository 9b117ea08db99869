"""Recipe files: one YAML file <-> one `distill.config.Recipe`, with dotted overrides.

Errors name the file, the field and, for a misspelt field, the nearest valid name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distill.config import Recipe
from distill.config.base import nearest
from distill.errors import RecipeError
from distill.recipe.errors import describe


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file and apply `overrides`: `dotted.path=value`, the value written as in YAML, or `~dotted.path`,
    which takes a part away.

    Raises `RecipeError`, naming the file, the field and, for a misspelt field, the nearest valid name.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise RecipeError(f"{path}: has {path.stat().st_size:,} bytes; a recipe has a few thousand")
        tree = _plain_tree(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; `distill init {path}` writes a recipe for the data in it") from None
    except PermissionError:
        raise RecipeError(f"{path}: cannot be read (permission denied)") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except _UNREADABLE as error:
        raise RecipeError(f"{path}: not valid YAML: {_fault(error)}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: not a recipe, which is a mapping of sections (data, teachers, student, ...)")
    for override in overrides:
        _apply_override(tree, override)
    return parse_recipe(tree, origin=str(path))


def parse_recipe(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a tree of plain values. Raises `RecipeError`, whose lines begin with `origin`."""
    try:
        return Recipe.model_validate(tree)
    except OverflowError as error:
        raise RecipeError(f"{origin}: a number is too large: {error}") from None
    except ValidationError as error:
        raise RecipeError("\n".join(f"{origin}: {line}" for line in describe(error))) from None


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default written out; `parse_recipe` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_LARGEST = 1 << 20  # bytes of a recipe
_DEEPEST, _MOST = 30, 100_000  # levels, and values with aliases written out
_MOST_MERGED = 2000  # fields of a section after merges
# an out-of-range date or number and a wrong tag are a ValueError, deep nesting is a RecursionError
_UNREADABLE = (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError, OverflowError, TypeError, AttributeError)


def _plain_tree(text: str) -> Any:
    """Parse YAML. Raises `ValueError` for a tree that contains itself, is too deep, or grows too large by aliases."""
    tree = yaml.load(text, _Loader)
    left = _MOST

    def walk(node: Any, above: tuple[int, ...]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it has more than {_MOST:,} values, aliases written out")
        if not isinstance(node, dict | list):
            return
        if id(node) in above:
            raise ValueError("an alias stands inside what it names")
        if len(above) >= _DEEPEST:
            raise ValueError(f"it is nested in more than {_DEEPEST} levels")
        for child in node.values() if isinstance(node, dict) else node:
            walk(child, (*above, id(node)))

    walk(tree, ())
    return tree


def _fault(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else f"{str(error)[:500]}"


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-5` is a number (YAML 1.1 requires `1.0e-5`) and a repeated field is an error."""

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        if self.flow_level > _DEEPEST:  # the scanner takes time for each open bracket at every token
            raise RecursionError
        super().fetch_flow_collection_start(token_class)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_MERGED:  # sections that merge each other grow exponentially
            raise yaml.constructor.ConstructorError(None, None, "too many fields are merged (<<)", node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"field {name!r} is repeated", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    if override.startswith("~"):
        return _remove(tree, override)
    path, separator, value = override.partition("=")
    if not separator or not path:
        raise RecipeError(
            f"override {override!r}: write it as dotted.path=value, e.g. train.lr=1e-5, or as ~dotted.path to take a "
            "part away"
        )
    *parents, leaf = path.split(".")
    node: Any = tree
    for parent in parents:
        key = _key(node, parent, override)
        child = node.get(key) if isinstance(node, dict) else node[key]
        if child is None:
            child = node[key] = {}
        node = _section(child, parent, override)
    try:
        node[_key(node, leaf, override)] = _plain_tree(value)
    except _UNREADABLE as error:
        raise RecipeError(f"override {override!r:.200}: the value is not valid YAML: {_fault(error)}") from None


def _remove(tree: dict[str, Any], override: str) -> None:
    """Take a named part or an entry of a list away: `~teachers.cross-encoder`."""
    path = override[1:]
    if not path or "=" in path:
        raise RecipeError(f"override {override!r}: name the part to take away alone, e.g. ~teachers.cross-encoder")
    *parents, leaf = path.split(".")
    node: Any = tree
    for parent in parents:
        key = _key(node, parent, override)
        node = _section(node.get(key) if isinstance(node, dict) else node[key], parent, override)
    key = _key(node, leaf, override)
    if isinstance(node, dict) and key not in node:
        raise RecipeError(f"override {override!r}: the recipe has no {path!r} to take away{nearest(leaf, list(node))}")
    del node[key]


def _section(node: Any, name: str, override: str) -> Any:
    if not isinstance(node, dict | list):
        raise RecipeError(f"override {override!r}: {name!r} is not a section")
    return node


def _key(node: dict[str, Any] | list[Any], name: str, override: str) -> str | int:
    """Return the key of a section's field or, in a list, the index of an entry, from 0."""
    if isinstance(node, dict):
        return name
    if not name.isdecimal() or int(name) >= len(node):
        raise RecipeError(
            f"override {override!r}: the list has no entry {name!r}; entries are numbered from 0 to {len(node) - 1}"
        )
    return int(name)
