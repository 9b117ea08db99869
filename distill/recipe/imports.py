"""User-defined students, losses, regularisers and teachers, which a recipe names as `package.module:name`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from distill import config
from distill.errors import RecipeError
from distill.run.modules import locate

_imported: set[str] = set()  # what recipes of this process have named


@cache
def import_object(path: str) -> Any:
    """Import `package.module:name`, which a recipe names, from the working folder if it is not installed.

    Raises `RecipeError` if that fails.
    """
    module, attribute = _split(path)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # not on the path of an installed command
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"cannot import {path!r}: {error}") from error
    _imported.add(path)
    return found


def is_named_by_a_recipe(path: str) -> bool:
    """Whether a recipe of this process has named, and so imported, this object; a checkpoint may name any."""
    return path in _imported


def check_own_code(recipe: config.Recipe) -> None:
    """Look for the modules of user-defined classes and functions without running them.

    Raises `RecipeError`, with the field, for one that is not there.
    """
    for field, path in _own_code(recipe):
        module, attribute = _split(path, f"{field}: ")
        if module in sys.modules:
            if not hasattr(sys.modules[module], attribute):
                raise RecipeError(f"{field}: cannot import {path!r}: the module has no {attribute!r}")
        elif module not in sys.builtin_module_names and locate(module) is None:
            raise RecipeError(f"{field}: cannot import {path!r}: there is no module {module!r}")


def import_own_code(recipe: config.Recipe) -> None:
    """Import the user-defined student, losses and regularisers, before work begins.

    Raises `RecipeError`, with the field, for one that cannot be imported, and for a loss that is no function.
    """
    for field, path in _own_code(recipe):
        try:
            found = import_object(path)
        except RecipeError as error:
            raise RecipeError(f"{field}: {error}") from error
        if field.startswith("train.") and not inspect.isfunction(found):
            raise RecipeError(f"{field}: {path} is not a Python function")


def _own_code(recipe: config.Recipe) -> Iterator[tuple[str, str]]:
    """Yield (field, import path) of what the recipe names."""
    if isinstance(recipe.student, config.CustomStudent):
        yield "student.cls", recipe.student.cls
    train = recipe.train
    terms = {
        **train.losses_by_field,
        "query_regularizers": train.query_regularizers,
        "passage_regularizers": train.passage_regularizers,
    }
    for field, entries in terms.items():
        for number, term in enumerate(entries):
            if term.kind == "custom":
                yield f"train.{field}.{number}.cls", term.cls


def _split(path: str, where: str = "") -> tuple[str, str]:
    module, separator, attribute = path.partition(":")
    if not separator:
        raise RecipeError(f"{where}{path!r}: write it as package.module:name")
    return module, attribute
