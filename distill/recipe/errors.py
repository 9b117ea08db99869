"""Messages for pydantic's validation errors, with each field named as the recipe's author wrote it."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Tag, ValidationError
from pydantic_core import ErrorDetails

from distill.config import Recipe, Section
from distill.config.base import nearest

_WORDS = (  # pydantic's -> ours, in order
    ("Input should be", "should be"),
    ("a valid tuple", "a list"),
    ("a valid list", "a list"),
    ("a valid dictionary or object to extract fields from", "a section of fields"),
    ("a valid dictionary", "a section of fields"),
)


def describe(error: ValidationError, root: type[Section] = Recipe) -> list[str]:
    """Return one line per problem in what was validated as `root`."""
    return [_describe(problem, root) for problem in error.errors()]


def _describe(problem: ErrorDetails, root: type[Section]) -> str:
    names, holder = _walk(problem["loc"], root)
    field = ".".join(map(str, names)) or root.__name__.lower()
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    if kind == "extra_forbidden":
        return f"unknown field {field!r}{nearest(str(names[-1]), _field_names(holder))}"
    if kind == "missing":
        return f"field {field!r} is missing"
    if kind == "union_tag_not_found":
        return f"field '{field}.kind' is missing: one of {', '.join(_tags(holder))}"
    if kind == "union_tag_invalid":
        return f"field '{field}.kind': unknown kind {context['tag']!r}{nearest(str(context['tag']), _tags(holder))}"
    message = problem["msg"].removeprefix("Value error, ")
    for theirs, ours in _WORDS:
        message = message.replace(theirs, ours)
    shown = "" if isinstance(value, Mapping) else f" (given: {value!r})"
    return (f"field {field!r}: " if names else "") + message + shown


def _walk(loc: tuple[int | str, ...], root: type[Section]) -> tuple[list[int | str], Any]:
    """Return the parts of a location that the recipe contains, and the annotation of the last part or of its parent.

    Pydantic inserts the tags of union members; the schema tells keys from tags.
    """
    names: list[int | str] = []
    annotation: Any = root
    for part in loc:
        annotation = _plain(annotation)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, Section):
            names.append(part)
            if part in annotation.model_fields:
                annotation = annotation.model_fields[str(part)].annotation
        elif origin is dict:
            names.append(part)
            annotation = arguments[1]
        elif origin in (tuple, list):
            names.append(part)
            annotation = arguments[0]
        elif origin in (Union, types.UnionType):
            annotation = next((member for member in arguments if str(part) in _tags_of(member)), annotation)
        else:
            names.append(part)
    return names, annotation


def _plain(annotation: Any) -> Any:
    """Strip Annotated, and None from a union with one other member."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return _plain(members[0])
        nested = [_plain(member) for member in members]
        if len(members) < len(get_args(annotation)) and get_origin(nested[0]) in (Union, types.UnionType):
            return nested[0]
    return annotation


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """Yield the section that an annotation is, or the sections of a union."""
    annotation = _plain(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _sections(member)


def _field_names(annotation: Any) -> list[str]:
    return list(dict.fromkeys(name for section in _sections(annotation) for name in section.model_fields))


def _tags(annotation: Any) -> list[str]:
    annotation = _plain(annotation)
    return [tag for member in get_args(annotation) for tag in _tags_of(member)]


def _tags_of(member: Any) -> list[str]:
    """Return the values of `kind` that select a member of a union."""
    if get_origin(member) is Annotated:
        explicit = [extra.tag for extra in get_args(member)[1:] if isinstance(extra, Tag)]
        if explicit:
            return explicit
    section = next(_sections(member), None)
    if section is None or "kind" not in section.model_fields:
        return []
    kind = section.model_fields["kind"].annotation
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else []
