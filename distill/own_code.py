"""Own code by import path: students, losses, regularisers and teachers that a recipe names as `package.module:name`."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from typing import Any

from distill import config
from distill.errors import RecipeError


@cache
def import_object(path: str) -> Any:
    """What `package.module:name` names; also found in the working folder. `RecipeError` where it cannot be had."""
    module, separator, attribute = path.partition(":")
    if not separator:
        raise RecipeError(f"{path!r}: write it as package.module:name")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look in the working folder by itself
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"cannot import {path!r}: {error}") from error


def check_own_code(recipe: config.Recipe) -> None:
    """Import the student, losses and regularisers of one's own; `RecipeError` names the field of one that cannot be."""
    if isinstance(recipe.student, config.CustomStudent):
        _check("student.cls", recipe.student.cls)
    train = recipe.train
    terms = {
        **train.losses_by_field,
        "query_regularizers": train.query_regularizers,
        "passage_regularizers": train.passage_regularizers,
    }
    for field, of_field in terms.items():
        for number, term in enumerate(of_field):
            if term.kind == "custom":
                _check(f"train.{field}.{number}.cls", term.cls)


def _check(field: str, path: str) -> None:
    try:
        import_object(path)
    except RecipeError as error:
        raise RecipeError(f"{field}: {error}") from error
