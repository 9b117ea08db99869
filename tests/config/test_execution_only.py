"""The mark `ExecutionOnly` against the fingerprints: a field has one of the two, an effect on them or the mark."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from distill.config.base import AUTO, Section, is_execution_only
from distill.config.recipe import Recipe
from distill.errors import DistillError
from distill.pipeline.registry import stages_of
from distill.recipe.expand import open_runs
from distill.recipe.load import dump_recipe, load_recipe, parse_recipe
from tests.helpers.golden_records import CONFIGS, fingerprint_inputs, recipe_models
from tests.test_recipes import shrunk

Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, Path]:
    return recipe_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", ["quickstart", "splade-v3"])
def test_a_field_changes_a_fingerprint_unless_it_is_execution_only(name, tiny, tmp_path):
    fingerprint_inputs(name, tiny, tmp_path)  # makes the manifests that later stages read
    tree = shrunk(yaml.safe_load(dump_recipe(load_recipe(CONFIGS / f"{name}.yaml"))), tiny, tmp_path)
    tree["train"]["evaluate_every"] = 2  # or `evaluate.dev_passages` would have no effect
    recipe = parse_recipe(tree)
    before, tried, wrong = _fingerprints(recipe), 0, []
    for place, field, marked in _fields(recipe):
        changed = _changed(recipe, place, field)
        if changed is None:
            continue
        tried += 1
        if (_fingerprints(changed) == before) != marked:
            wrong.append(f"{'.'.join(map(str, place))}: {'marked, but has an effect' if marked else 'has no effect'}")
    assert wrong == [] and tried > 60


def _fingerprints(recipe: Recipe) -> str:
    """The fingerprint inputs of the first round, given what the stages before each have left."""
    run = open_runs(recipe)[0]
    return json.dumps([output.fields for stage in stages_of(run) for output in stage.outputs(run)], sort_keys=True)


def _fields(section: Section, place: Place = (), marked: bool = False) -> Iterator[tuple[Place, FieldInfo, bool]]:
    """Yield the fields that hold no sections, with their place, and whether they or a section around are marked."""
    for name, field in type(section).model_fields.items():
        value, here = getattr(section, name), marked or is_execution_only(field)
        inner = [((*place, name), value)] if not isinstance(value, dict | tuple) else []
        if isinstance(value, dict):
            inner = [((*place, name, key), entry) for key, entry in value.items()]
        elif isinstance(value, tuple):
            inner = [((*place, name, number), entry) for number, entry in enumerate(value)]
        sections = [(below, entry) for below, entry in inner if isinstance(entry, Section)]
        for below, entry in sections:
            yield from _fields(entry, below, here)
        # a kind never changes alone; the models are folders, identified by their content, whatever the revision
        if not sections and name not in ("follows", "kind", "revision"):
            yield (*place, name), field, here


def _changed(recipe: Recipe, place: Place, field: FieldInfo) -> Recipe | None:
    """The recipe with another value in one field, or None if it takes none of those tried."""
    tree = yaml.safe_load(dump_recipe(recipe))
    parent = tree
    for step in place[:-1]:
        parent = parent[step]
    value = field.get_default() if place[-1] not in parent else parent[place[-1]]  # some defaults are not written
    for other in _others(value, field):
        if other in (value, AUTO):  # the value of `auto` may be the same
            continue
        try:
            TypeAdapter(field.rebuild_annotation()).validate_python(other)
            parent[place[-1]] = other
            changed = parse_recipe(tree)
            _fingerprints(changed)
        except (ValidationError, DistillError):
            continue
        return changed
    return None


def _others(value: Any, field: FieldInfo) -> Iterator[Any]:
    """Other values that a field may take."""
    yield from _literals(field.annotation)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value / 2)
    elif value is None:
        yield from (1, 2, 0.5, "other")
    elif isinstance(value, str) and not Path(value).exists():
        yield f"{value}x"


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from (value for value in get_args(annotation) if value != AUTO)  # stages see the value chosen for it
    else:
        for part in get_args(annotation) if get_origin(annotation) in (typing.Union, type(int | str)) else ():
            yield from _literals(part)
