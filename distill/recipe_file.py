"""Recipe files: one YAML file <-> one `distill.config.Recipe`, with dotted overrides.

What cannot be used is refused with the file, the field and, for a misspelt one, the nearest valid name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distill import config
from distill.config import Recipe, Section
from distill.config.base import nearest
from distill.errors import RecipeError


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file and apply `overrides` (each `dotted.path=value`, the value written as in YAML).

    Raises `RecipeError`, naming the file, the field and, for a misspelt one, the nearest valid name.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; `distill init {path}` writes a recipe for the data in it") from None
    except PermissionError:
        raise RecipeError(f"{path}: cannot be read (permission denied)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections (data, teachers, student, ...)")
    for override in overrides:
        _apply_override(tree, override)
    return parse_recipe(tree, origin=str(path))


def parse_recipe(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a tree of plain values; errors name the field and, for an unknown one, the nearest valid name."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{origin}: {line}" for line in _describe(error))) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out; `parse_recipe` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-5` is a number (YAML 1.1 wants `1.0e-5`), and a field given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {override!r}: write it as dotted.path=value, e.g. train.lr=1e-5")
    *parents, leaf = key.split(".")
    node: Any = tree
    for parent in parents:
        key = _key(node, parent, override)
        child = node[key] if isinstance(node, list) else node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, (dict, list)):
            raise RecipeError(f"override {override!r}: {parent!r} is not a section")
        node = child
    try:
        node[_key(node, leaf, override)] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not valid YAML: {error}") from None


def _key(node: dict | list, name: str, override: str) -> str | int:
    """A field's name or, in a list, the entry's number, from 0."""
    if isinstance(node, dict):
        return name
    if not name.isdecimal() or int(name) >= len(node):
        raise RecipeError(f"override {override!r}: {name!r} is no entry of the list, which has {len(node)}, from 0")
    return int(name)


def _describe(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        names = [part for part in problem["loc"] if not _is_tag(part)]
        field = ".".join(str(part) for part in names) or "recipe"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown field {field!r}{nearest(str(names[-1]), _valid_names(names[:-1]))}")
        elif problem["type"] == "missing":
            lines.append(f"field {field!r} is missing")
        else:
            given = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
            message = (
                problem["msg"]
                .removeprefix("Value error, ")
                .replace("a valid tuple", "a list")
                .replace("a valid dictionary or object to extract fields from", "a section, with fields of its own")
            )
            lines.append((f"field {field!r}: " if names else "") + message + given)
    return lines


def _sections(annotation: Any) -> list[type[Section]]:
    """All recipe sections that an annotation can hold (through unions, dicts, tuples and Annotated)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in getattr(annotation, "__args__", ()) for section in _sections(inner)]


_TAGS = {
    literal
    for cls in vars(config).values()
    if isinstance(cls, type) and issubclass(cls, Section) and "kind" in cls.model_fields
    for literal in getattr(cls.model_fields["kind"].annotation, "__args__", ())
}


def _is_tag(part: Any) -> bool:
    # pydantic puts the discriminator's value into the location of an error inside a union
    return isinstance(part, str) and part in _TAGS and part != "bm25"


def _valid_names(path: list[Any]) -> list[str]:
    sections: list[type[Section]] = [Recipe]
    for part in path:
        if isinstance(part, int):
            continue
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if fields:
            sections = [inner for field in fields for inner in _sections(field.annotation)]
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))
