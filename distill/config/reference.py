"""Reference of all recipe fields as Markdown, made from the schema and the docstrings under the fields.

`python -m distill.config.reference > docs/recipe-fields.md`
"""

from __future__ import annotations

import json
import re
import types
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from distill.config.base import MOST, Section, is_execution_only
from distill.config.recipe import Recipe

_HEADER = """# Recipe fields

All fields of a recipe, generated from [`distill/config/`](../distill/config) by
`python -m distill.config.reference > docs/recipe-fields.md`. [recipe.md](recipe.md) explains how they work together.

A default of `{}` is a section with its own defaults, or an empty mapping. Fields marked *execution only* decide how a
stage is carried out, not what it computes: they may change in a finished run, and while a stage is interrupted. Any
other field makes the stages that read it, and those after them, stale.
"""
_SCALARS = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", Any: "any value"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def reference() -> str:
    """Return the reference: for every section a table of fields with type, default and description."""
    headings = dict(sections())
    return "\n".join([_HEADER, *(_section(section, headings) for section in headings)])


def sections() -> list[tuple[type[Section], str]]:
    """Return every section once, in the order of a recipe, with its heading: path and, in a union, `kind`.

    A section that can stand in several places is listed at the first of the least nested ones.
    """
    headings: dict[type[Section], str] = {}
    places: dict[type[Section], tuple[int, ...]] = {}
    queue: deque[tuple[type[Section], tuple[int, ...], str, str]] = deque([(Recipe, (), "", "")])
    while queue:
        section, place, path, kind = queue.popleft()
        if section in headings:
            continue
        headings[section], places[section] = f"{path or 'Recipe'}{kind}", place
        for number, (member, inner, kind) in enumerate(_below(section, path)):
            queue.append((member, (*place, number), inner, kind))
    return sorted(headings.items(), key=lambda item: places[item[0]])


def _below(section: type[Section], path: str) -> Iterator[tuple[type[Section], str, str]]:
    """Yield the sections that a section's fields can hold, each with its path and, in a union, its `kind`."""
    for name, field in section.model_fields.items():
        members = list(_sections_in(field.annotation))
        for member, suffix in members:
            kind = f", kind: {' or '.join(_kinds(member))}" if len(members) > 1 else ""
            yield member, f"{path}.{name}{suffix}".lstrip("."), kind


def _sections_in(annotation: Any, suffix: str = "") -> Iterator[tuple[type[Section], str]]:
    """Yield the sections that a field can hold, with `[]` for the entries of a list and `.<name>` for a mapping's."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, suffix
    elif origin is dict:
        yield from _sections_in(arguments[1], f"{suffix}.<name>")
    elif origin is tuple:
        yield from _sections_in(arguments[0], f"{suffix}[]")
    elif origin is Annotated:
        yield from _sections_in(arguments[0], suffix)
    elif origin in (Union, types.UnionType):
        for member in arguments:
            yield from _sections_in(member, suffix)


def _kinds(section: type[Section]) -> tuple[str, ...]:
    return get_args(section.model_fields["kind"].annotation)


def _section(section: type[Section], headings: dict[type[Section], str]) -> str:
    heading = headings[section]
    rows = []
    for name, field in sorted(section.model_fields.items(), key=lambda item: item[0] != "kind"):
        words = _words(field.annotation, field.metadata, headings)
        rows.append(f"| `{name}` | {words} | {_default(field)} | {_description(field)} |")
    lines = [f"## {_escaped(heading)}", "", _escaped(_one_line(section.__doc__)), ""]
    return "\n".join([*lines, "| field | type | default | description |", "|---|---|---|---|", *rows, ""])


def _words(annotation: Any, metadata: Sequence[Any], headings: dict[type[Section], str]) -> str:
    """Return a type in words, e.g. "list of integers (at least 1)"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        constraints = [item for extra in arguments[1:] if isinstance(extra, FieldInfo) for item in extra.metadata]
        return _words(arguments[0], constraints, headings)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"section {_link(annotation, headings)}"
    if origin is Literal:
        return _either([f"`{value}`" for value in arguments])
    if origin is dict:
        return f"mapping from {_words(arguments[0], [], headings)} to {_words(arguments[1], [], headings)}"
    if origin is tuple:
        length = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        entries = re.sub(r"^(text|integer|number|mapping|section)", r"\1s", _words(arguments[0], [], headings))
        return f"list of {length}{entries}"
    if origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not type(None)]
        null = ", or null" if len(members) < len(arguments) else ""
        alternatives = [section for section, suffix in _sections_in(annotation) if not suffix]
        if len(alternatives) > 1:
            kinds = [_link(section, headings, "/".join(_kinds(section))) for section in alternatives]
            return f"section of kind {_either(kinds)}{null}"
        return _either([_words(member, metadata, headings) for member in members]) + null
    bounds = [
        f"{words} {getattr(item, bound):g}"
        for item in metadata
        for bound, words in _BOUNDS.items()
        if getattr(item, bound, None) not in (None, MOST)
    ]
    return _SCALARS[annotation] + (f" ({', '.join(bounds)})" if bounds else "")


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _link(section: type[Section], headings: dict[type[Section], str], text: str | None = None) -> str:
    anchor = re.sub(r"[^\w -]", "", headings[section].lower()).replace(" ", "-")  # as GitHub makes them
    return f"[{_escaped(text or headings[section])}](#{anchor})"


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    """Return a default in YAML's flow style, sections without their own defaults."""
    if isinstance(value, Section):
        fields = type(value).model_fields.items()
        value = {name: entry for name, field in fields if (entry := getattr(value, name)) != field.default}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return str(value) if isinstance(value, str | float) and value != "" else json.dumps(value)


def _description(field: FieldInfo) -> str:
    text = _escaped(_one_line(field.description))
    return f"{text} *Execution only.*" if is_execution_only(field) else text


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _escaped(text: str) -> str:
    """Escape what Markdown reads as HTML or as a table's border, outside code."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", r"\<").replace("|", r"\|") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
