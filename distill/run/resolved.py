"""Fields that a recipe leaves to the program (`auto`), and the record of the values chosen for them.

A stage declares such a field with the rule that chooses its value; `distill.pipeline.resolve` applies the rules as soon
as their data exist, and gives every stage a recipe with the values filled in. A value is chosen once and recorded in
resolved.json; it is chosen again only if the data or a field that it was chosen from has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from distill.config import AUTO, Recipe
from distill.errors import StorageError
from distill.run.files import read_json, write_json
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.run.run import Run

_DATA = "imported data"


@dataclass(frozen=True)
class Choice:
    """A value for a field, and why this one."""

    value: Any
    reason: str


@dataclass(frozen=True)
class AutoField:
    """A field that may be `auto`.

    `choose(run)` chooses the value from the imported data, or returns None if what it needs is not there yet.
    `depends_on`: the other fields, or whole sections, that it reads. `assumed(run)`: a value to plan with before.
    `before_import`: the value follows from the recipe as written, and the import itself needs it.
    """

    field: str  # dotted path in the recipe
    choose: Callable[[Run], Choice | None]
    depends_on: tuple[str, ...]
    assumed: Callable[[Run], Any]
    before_import: bool = False


@dataclass(frozen=True)
class Resolved:
    """A chosen value as it is recorded. `made_from`: fingerprint of the data, and the fields it depends on."""

    field: str
    value: Any
    reason: str
    made_from: dict[str, Any]


def is_auto(recipe: Recipe, field: str) -> bool:
    """Return whether the recipe leaves this field to the program."""
    return bool(value_of(recipe, field) == AUTO)


def with_value(recipe: Recipe, field: str, value: Any) -> Recipe:
    """Return the recipe with another value in the field at a dotted path."""
    first, _, rest = field.partition(".")
    return recipe.model_copy(update={first: _with(getattr(recipe, first), rest, value) if rest else value})


def read_record(folder: RunFolder) -> dict[str, Resolved]:
    """Read the values recorded in a run folder, by field; empty if there are none.

    Raises `StorageError` for a file that is not such a record.
    """
    path = folder.resolved
    if not path.exists():
        return {}
    try:
        entries = [Resolved(**entry) for entry in read_json(path)]
        if not all(isinstance(entry.field, str) and isinstance(entry.made_from, dict) for entry in entries):
            raise TypeError("an entry without a field or what it was made from")
    except TypeError as error:
        raise StorageError(f"{path}: damaged: {error}; remove it, and the values are chosen again") from None
    return {entry.field: entry for entry in entries}


def valid_record(run: Run) -> dict[str, Resolved]:
    """Return the recorded values of the fields that the recipe leaves to the program, as far as they still hold."""
    return {
        field: entry
        for field, entry in read_record(run.folder).items()
        if is_auto(run.recipe, field) and entry.made_from == _as_now(run, entry.made_from)
    }


def with_recorded(run: Run) -> Run:
    """Return the run with the recorded values filled in, as far as they still hold."""
    for field, entry in valid_record(run).items():
        run = filled(run, field, entry.value)
    return run


def filled(run: Run, field: str, value: Any) -> Run:
    """Return the run with a value in a field of its recipe."""
    return Run(with_value(run.recipe, field, value), run.folder)


def write_record(folder: RunFolder, entries: dict[str, Resolved]) -> None:
    """Replace the record of a run folder."""
    write_json(folder.resolved, [asdict(entry) for entry in entries.values()])


def made_from(run: Run, auto: AutoField) -> dict[str, Any]:
    """Return what a choice depends on, as it is now."""
    return _as_now(run, (_DATA, *auto.depends_on))


def _as_now(run: Run, names: Iterable[str]) -> dict[str, Any]:
    data, tree = read_manifest(run.folder.data), run.recipe.model_dump(mode="json", exclude={"rounds"})
    now = {_DATA: None if data is None else data.fingerprint}
    return {name: now[name] if name in now else value_of(tree, name) for name in names}


def _with(node: Any, path: str, value: Any) -> Any:
    first, rest = _first(node, path)
    if isinstance(node, dict):
        return {**node, first: _with(node[first], rest, value) if rest else value}
    return node.model_copy(update={first: _with(getattr(node, first), rest, value) if rest else value})


def value_of(node: Any, path: str) -> Any:
    """Return the value at a dotted path of a section or a tree, None if a part of it is absent."""
    while path and node is not None:
        first, path = _first(node, path)
        node = node.get(first) if isinstance(node, dict) else getattr(node, first, None)
    return node


def _first(node: Any, path: str) -> tuple[str, str]:
    """Split a dotted path below `node` into its first part and the rest; names in a section may have dots, too."""
    names = [name for name in node if path == name or path.startswith(f"{name}.")] if isinstance(node, dict) else []
    first = max(names, key=len, default=path.partition(".")[0])
    return first, path[len(first) + 1 :]
