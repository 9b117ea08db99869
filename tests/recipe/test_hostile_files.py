"""Recipes from elsewhere: whatever a file holds ends with a message, at once."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import RecipeError
from distill.recipe.load import load_recipe, parse_recipe

GOOD = "name: t\ndata: {source: {kind: python-docs}}\nteachers: {t: {kind: bm25}}\nstudent: {model: x}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
FILES = {
    "deep nesting": "name: " + "[" * 20_000,
    "deep mappings": "".join("  " * depth + "a:\n" for depth in range(300)),
    "a tree inside itself": "name: &a [*a]\n",
    "a section inside itself": "data: &d\n  source: *d\n",
    "aliases that explode": BOMB,
    "merges that explode": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
    "a date out of range": "name: 2024-99-99\n",
    "a number with many digits": GOOD + f"seed: {'9' * 5000}\n",
    "a large number": GOOD + f"seed: {'9' * 400}\n",
    "a wrong tag": "name: !!int abc\n",
    "a Python tag": "name: !!python/object/apply:os.system ['true']\n",
    "a binary tag": "name: !!binary '%'\n",
    "a repeated field": "name: a\nname: b\n",
    "a list": "- a\n",
    "a scalar": "hello\n",
    "nothing": "",
    "unhashable keys": "? [a]\n: b\n",
    "an omap": "name: !!omap [a]\n",
    "a merge of nothing": "<<: 3\nname: x\n",
    "not UTF-8": b"name: \xff\xfe\n",
    "control characters": b"name: \x00\n",
    "much": "#" * (1 << 20) + "\n#",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_recipe_ends_with_a_short_message_at_once(tmp_path, kind):
    content = FILES[kind]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 3000 and time.process_time() - began < 1


@pytest.mark.parametrize(
    "value", ["[" * 5000, "&a [*a]", "2024-99-99", "!!int abc", "!!python/name:os.system", "{a: {a: *b}}"]
)
def test_a_hostile_override_ends_with_a_short_message(tmp_path, value):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"train.lr={value}"])
    assert len(str(caught.value)) < 3000


PATHS = [
    "name",
    "seed",
    "data",
    "data.source",
    "data.limit",
    "teachers",
    "teachers.t",
    "student.model",
    "train.lr",
    "train",
]
PATHS += [
    "mine.miners.bm25.top",
    "evaluate.metrics",
    "rounds",
    "train.losses",
    "slurm.setup",
    "cluster.cpus",
    "a.b.c",
    "",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(PATHS), VALUES)
@settings(max_examples=250, deadline=None)
def test_any_value_anywhere_is_a_recipe_or_a_message(path, value):
    tree: dict = {"name": "t", "data": {"source": {"kind": "python-docs"}}}
    tree |= {"teachers": {"t": {"kind": "bm25"}}, "student": {"model": "x"}}
    *parents, leaf = path.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            return
    node[leaf] = value
    with contextlib.suppress(RecipeError):
        parse_recipe(tree)


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_recipe_or_a_message(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        load_recipe(path)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_override_is_applied_or_a_message(tmp_path_factory, override):
    path = tmp_path_factory.getbasetemp() / "good.yaml"
    path.write_text(GOOD)
    with contextlib.suppress(RecipeError):
        load_recipe(path, [override])
