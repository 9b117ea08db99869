"""Texts from elsewhere cannot command the terminal, and secrets are not published."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distill.cli.text import printable
from distill.recipe.load import parse_recipe
from distill.reporting.run_facts import recipe_yaml


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\x07", "\x9b2J", "\u202eevil", "one\rtwo", "\x00"])
def test_control_characters_are_replaced(text):
    assert "\ufffd" in printable(text) and not any(c in printable(text) for c in "\x1b\x07\x9b\u202e\r\x00")


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_other_texts_stay_as_they_are(text):
    assert printable(text) == text and printable("a\tb\n") == "a\tb\n"


def test_what_looks_like_a_secret_is_left_out_of_what_is_published():
    options = {"api_key": "s3cret", "token": "s3cret", "password": "s3cret", "batch_tokens": 5, "name": "fine"}
    recipe = parse_recipe(
        {
            "name": "r",
            "data": {"source": {"kind": "jsonl", "path": "x"}},
            "teachers": {"t": {"kind": "custom", "cls": "a:B", "options": options}},
            "student": {"model": "m"},
            "slurm": {"setup": ["export TOKEN=s3cret"]},
        }
    )
    shown = recipe_yaml(recipe)
    assert "s3cret" not in shown
    kept = yaml.safe_load(shown)["teachers"]["t"]["options"]
    assert kept == {**dict.fromkeys(("api_key", "token", "password"), "(left out)"), "batch_tokens": 5, "name": "fine"}
