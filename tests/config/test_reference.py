"""Descriptions of the recipe's fields: complete, current in docs/recipe-fields.md, and in the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from distill.cli.app import app
from distill.config import Recipe, Section
from distill.config.reference import reference, sections
from distill.config.suite import Suite, SuiteCollection

OTHER_FILES = {Suite, SuiteCollection}  # of `distill benchmark`
ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/*.yaml"))


def all_sections(base: type[Section] = Section) -> list[type[Section]]:
    return [section for child in base.__subclasses__() for section in (child, *all_sections(child))]


@pytest.mark.parametrize("section", all_sections(), ids=lambda section: section.__name__)
def test_every_field_and_section_has_a_description(section):
    assert section.__doc__ and section.__doc__.strip()
    assert [name for name, field in section.model_fields.items() if not (field.description or "").strip()] == []


def test_the_reference_lists_every_section_that_a_recipe_can_hold():
    listed = {section for section, _ in sections()} | OTHER_FILES
    assert {section for section in all_sections() if section not in listed and not section.__subclasses__()} == set()


def test_the_committed_reference_is_current():
    assert (ROOT / "docs" / "recipe-fields.md").read_text(encoding="utf-8") == reference(), (
        "run `python -m distill.config.reference > docs/recipe-fields.md`"
    )


def test_the_reference_gives_type_default_and_description_of_a_field():
    lines = reference().splitlines()
    assert "| `batch_size` | integer (at least 1) | `32` | Queries per optimizer step, over all processes. |" in lines
    chunk_tokens = next(line for line in lines if line.startswith("| `chunk_tokens` |"))
    assert chunk_tokens.endswith("*Execution only.* |")
    by_kind = next(line for line in lines if line.startswith("| `source` |"))
    assert "[beir](#datasource-kind-beir)" in by_kind and "## data.source, kind: beir" in lines


def test_links_inside_the_reference_point_to_its_headings():
    text = reference()
    headings = [line.removeprefix("## ").replace("\\", "") for line in text.splitlines() if line.startswith("## ")]
    anchors = {"".join(c for c in h.lower() if c.isalnum() or c in " -_").replace(" ", "-") for h in headings}
    links = {part.partition(")")[0] for part in text.split("](#")[1:]}
    assert links and links <= anchors


def test_show_schema_prints_a_json_schema_with_descriptions():
    shown = CliRunner().invoke(app, ["show", "--schema"])
    schema = json.loads(shown.output)
    assert shown.exit_code == 0 and schema["additionalProperties"] is False
    train = schema["$defs"]["Train"]["properties"]
    assert train["batch_size"]["description"] == "Queries per optimizer step, over all processes."
    assert train["chunk_tokens"]["description"] and train["chunk_tokens"]["default"] == "auto"
    assert {"type": "string"} in train["deepspeed"]["anyOf"]  # the path of a JSON file


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_by_the_schema(path):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), Recipe.model_json_schema())


@pytest.mark.parametrize("arguments", [[], ["--folder"], ["--schema", "--folder"], ["--schema", "recipe.yaml"]])
def test_show_refuses_arguments_that_do_not_go_together(arguments):
    assert CliRunner().invoke(app, ["show", *arguments]).exit_code == 2
