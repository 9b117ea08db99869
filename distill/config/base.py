"""What every section of the recipe is made of, and how a model is named."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from distill.errors import RecipeError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Split = Literal["train", "dev", "test"]
FilePath = Annotated[Path, AfterValidator(Path.expanduser)]  # ~ is the user's home


class Section(BaseModel):
    """A part of the recipe: frozen, and strict about the names of its fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )


def refuse_unread(section: Section, kind: str, read: set[str]) -> None:
    """Raise `ValueError` for a field that is set and that nothing reads in a section of this kind."""
    for name, field in type(section).model_fields.items():
        if name not in read and getattr(section, name) != field.get_default(call_default_factory=True):
            raise ValueError(f"`{name}` has no effect with kind: {kind}")


def nearest(name: str, valid: Sequence[str]) -> str:
    """The end of a message on an unknown name: the one that was meant, or all that there are."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else (f"; valid: {', '.join(valid)}" if valid else "")


def resolve_model(name: str) -> str:
    """Turn `package:<module>/<folder>` (a model that an installed package carries) and `~` into a path; others pass
    through."""
    if not name.startswith("package:"):
        return str(Path(name).expanduser()) if name.startswith("~") else name
    module, _, folder = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(
            f"model {name!r}: the package {module!r} is not installed (pip install {module.replace('_', '-')})"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if not path.is_dir():
        raise RecipeError(f"model {name!r}: the package {module!r} has no folder {folder!r}")
    return str(path)


def missing_folder(name: str) -> str | None:
    """What is wrong with a model's name that can only be a folder's and is none: the hub would take minutes to say."""
    if Path(name).is_dir():
        return None
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"{name}: no such folder"
    first = name.partition("/")[0]
    if first != name and Path(first).is_dir():
        return f"{name}: no such folder in {first}/ (which is one here, so the hub is not asked for such a model)"
    return None
