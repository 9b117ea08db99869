"""`distill init`: look at a folder or file, say what it holds, and write a recipe for it, with comments."""

from __future__ import annotations

import math
from pathlib import Path

import yaml

from distill.data.files import write_atomic
from distill.data.inspect import Found, sniff
from distill.errors import RecipeError
from distill.recipe_file import parse_recipe

_TEMPLATE = """\
# Written by `distill init {path}`, which found there:
{found}
# Look at it with `distill run {output} --dry-run`, rehearse it with `--limit 200`.
name: {quoted}

{data}{evaluate}
{teachers}
student:
  model: distilbert/distilbert-base-uncased
  query_max_length: 64
  passage_max_length: 256

train:
  batch_size: 64
  negatives: 7
  epochs: 3
  lr: 5.0e-5
  warmup_ratio: 0.05
  losses:
    - {{kind: kl, weight: 1.0}}
    - {{kind: margin-mse, weight: 0.05}}
  query_regularizers:
    - {{kind: l1, weight: 0.01, ramp: quadratic, ramp_steps: {ramp}}}
  passage_regularizers:
    - {{kind: flops, weight: 0.02, ramp: quadratic, ramp_steps: {ramp}}}
"""

_TEACHERS = """\
mine:
  miners:
    bm25: {kind: bm25, top: 30, sample: 20, depth: 500}

teachers:  # hub names, paths, or package:<module>/<folder>
  cross-encoder: {kind: cross-encoder, model: cross-encoder/ms-marco-MiniLM-L6-v2}
  bm25: {kind: bm25, weight: 0.5}

label: {normalise: min-max, map_to: cross-encoder}
"""
_GIVEN = """\
teachers:
  given: {kind: imported}  # the scores that stand in the rows; further teachers would score the same passages
"""
# labels are compared with the student's dot products, which range over tens (docs/recipe.md)
_RAW = "label: {normalise: none}  # the scores as they are\n"
_SPREAD = "label: {normalise: min-max, scale: 8}  # the scores lie close together: a query's are spread over 0 to 8\n"
_CLOSE = 2.0  # cosines and probabilities range over less


_SHAPES = {  # of the template's models, for `distill plan` where they are not at hand
    "cross-encoder/ms-marco-MiniLM-L6-v2": {"layers": 6, "hidden": 384},
    "distilbert/distilbert-base-uncased": {"layers": 6, "hidden": 768, "vocabulary": 30522},
}


def write_recipe_for(data: Path, output: Path | None, *, force: bool = False) -> str:
    """Write a recipe for `data`; returns what to tell the person. Refuses to overwrite a file unless `force`."""
    found = sniff(data)
    name = _name(data if output is None else output)
    output = output or Path(f"{name}.yaml")
    if output.is_dir():
        raise RecipeError(f"{output} is a folder; name the recipe's file with -o")
    if output.exists() and not force:
        raise RecipeError(f"{output} exists; name another with -o, or add --force")
    plain = name[0].isalpha() and isinstance(yaml.safe_load(name), str)
    text = _TEMPLATE.format(
        path=data,
        output=output,
        quoted=name if plain else f"'{name}'",
        data=_data_section(found),
        evaluate=_evaluate_section(found),
        teachers=_teachers_section(found),
        found="\n".join(f"#   {line}" for line in found.lines),
        ramp=_ramp_steps(found),
    )
    parse_recipe(yaml.safe_load(text), origin=str(output))
    with write_atomic(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    lines = [
        f"{data} holds",
        *(f"  {line}" for line in found.lines),
        f"wrote {output}; next:",
        f"  distill run {output} --dry-run",
    ]
    return "\n".join(lines)


def _ramp_steps(found: Found) -> int:
    """A third of the template's steps: three epochs of batches of 64."""
    queries = found.data.sizes.queries if found.data.sizes else None
    return max(1, math.ceil(queries / 64)) if queries else 1000


def _name(data: Path) -> str:
    stem = data.resolve().name.split(".")[0]
    name = "".join(character if character.isalnum() or character in "-_" else "-" for character in stem).strip("-_")
    return name if name and name.isascii() else "run"


def _data_section(found: Found) -> str:
    """The section as YAML, without fields that keep their default."""
    section = found.data.model_dump(mode="json", exclude_defaults=True)
    section["source"] = {"kind": found.data.source.kind, **section["source"]}
    if found.data.source.kind in ("beir", "msmarco", "jsonl"):
        section["source"]["path"] = str(Path(section["source"]["path"]).resolve())
    elif found.data.source.kind == "huggingface":
        section["source"]["dataset"] = str(Path(section["source"]["dataset"]).resolve())
    if "sizes" in section:
        section["sizes"]["models"] = _SHAPES
    return yaml.safe_dump({"data": section}, sort_keys=False, allow_unicode=True)


def _teachers_section(found: Found) -> str:
    """The rows' own scores where they have some, else models."""
    if found.scores is None:
        return _TEACHERS
    lowest, highest = found.scores
    return f"{_GIVEN}\n{_SPREAD if highest - lowest <= _CLOSE else _RAW}"


def _evaluate_section(found: Found) -> str:
    """Evaluation on the development queries where there are no others."""
    sizes = found.data.sizes
    if sizes is None or sizes.test_queries or not sizes.dev_queries:
        return ""
    return "\nevaluate: {split: dev}  # there are no test queries\n"
