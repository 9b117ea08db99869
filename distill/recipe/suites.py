"""Suites of judged collections: those that the package ships, and files of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distill.config.base import nearest
from distill.config.suite import Part, Suite, SuiteCollection
from distill.errors import RecipeError
from distill.recipe.errors import describe

_SHIPPED = Path(__file__).parents[1] / "evaluation" / "suites"


def suite_names() -> list[str]:
    """The names of the suites that the package ships."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """Read a shipped suite by its name, or a file; the suites that it includes are in it, their collections first.

    Raises `RecipeError`, naming the file and the field.
    """
    path = _SHIPPED / f"{name}.yaml"
    if not path.is_file():
        path = Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"--suite: {name!r} is no file, and no suite{nearest(name, suite_names())}")
    suite = _parse(path)
    included = [load_suite(other) for other in suite.includes if _is_other(other, name, path)]
    collections = [collection for other in included for collection in other.collections]
    sources = {system: source for other in included for system, source in other.sources.items()}
    own = [_beside(collection, path.parent) for collection in suite.collections]
    if repeated := {collection.name for collection in collections} & {collection.name for collection in own}:
        raise RecipeError(f"{path}: collections: {min(repeated)!r} is in an included suite, too")
    return suite.model_copy(
        update={"collections": (*collections, *own), "sources": {**sources, **suite.sources}, "includes": ()}
    )


def _is_other(other: str, name: str, path: Path) -> bool:
    if other not in suite_names() or other == name:
        raise RecipeError(f"{path}: includes: {other!r} is no shipped suite{nearest(other, suite_names())}")
    return True


def _parse(path: Path) -> Suite:
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: not a suite, which is a mapping with `collections` and `metrics`")
    try:
        return Suite.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {line}" for line in describe(error, Suite))) from None


def _beside(collection: SuiteCollection, home: Path) -> SuiteCollection:
    """The collection with its relative paths taken from the suite's folder."""

    def moved(part: Part) -> dict[str, Any]:
        return {} if part.path is None else {"path": home / part.path}

    parts = tuple(part.model_copy(update=moved(part)) for part in collection.parts)
    return collection.model_copy(update={**moved(collection), "parts": parts})
