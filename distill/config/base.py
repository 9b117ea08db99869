"""Base class of the recipe's sections, and the types that several of them share."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
MOST = 10**15  # of anything that is counted; larger numbers overflow somewhere
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # of a folder, a column, a row of a table
Positive = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
AUTO: Literal["auto"] = "auto"  # a value that the program chooses from the data, see `distill.run.resolved`
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Split = Literal["train", "dev", "test"]
FilePath = Annotated[Path, AfterValidator(Path.expanduser)]  # ~ is the user's home


class Section(BaseModel):
    """A section of the recipe: immutable, and without room for unknown fields.

    The docstring under a field is its description, in docs/recipe-fields.md and in `distill show --schema`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


T = TypeVar("T")
_EXECUTION = "execution only"
ExecutionOnly = Annotated[T, _EXECUTION]  # a field that decides how a run is carried out, not what it computes

_IF_SET = "in fingerprints if set"
IfSet = Annotated[T, _IF_SET]  # a field that fingerprints do not hold at its default: those from before it stay valid


def is_execution_only(field: FieldInfo) -> bool:
    """Tell whether a field is marked `ExecutionOnly`."""
    return _EXECUTION in field.metadata


def meaning_of(section: Section) -> dict[str, Any]:
    """Return a section as fingerprint inputs: all fields but those marked `ExecutionOnly`, or `IfSet` and not set."""
    marked = {name for name, field in type(section).model_fields.items() if is_execution_only(field)}
    return dump_set(section, exclude=marked)


def dump_set(section: Section, **options: Any) -> dict[str, Any]:
    """Dump a section as JSON, without the fields marked `IfSet` that have their default; `options`: of `model_dump`."""
    dumped = section.model_dump(mode="json", **options)
    _drop_unset(section, dumped)
    return dumped


def _drop_unset(value: Any, dumped: Any) -> None:
    if isinstance(value, Section):
        for name, field in type(value).model_fields.items():
            if name in dumped and _IF_SET in field.metadata and getattr(value, name) == field.default:
                del dumped[name]
            elif name in dumped:
                _drop_unset(getattr(value, name), dumped[name])
    elif isinstance(value, tuple):
        for inner, of_inner in zip(value, dumped, strict=True):
            _drop_unset(inner, of_inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, Section) and key in dumped:
                _drop_unset(inner, dumped[key])


def refuse_unread(section: Section, kind: str, read: set[str]) -> None:
    """Raise `ValueError` for a field that is set although sections of this kind ignore it."""
    for name, field in type(section).model_fields.items():
        if name not in read and getattr(section, name) != field.get_default(call_default_factory=True):
            raise ValueError(f"`{name}` has no effect with kind: {kind}")


def nearest(name: str, valid: Sequence[str]) -> str:
    """Return the end of a message about an unknown name: the most similar valid name, or all valid names."""
    similar = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {similar[0]!r}?" if similar else (f"; valid: {', '.join(valid)}" if valid else "")
