"""`distill init`: inspect a folder or file, describe what it contains, and write a commented recipe for it."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import yaml

from distill.errors import RecipeError
from distill.importing.sniff import Found, sniff, with_query_log
from distill.planning.steps import steps_of_auto
from distill.recipe.load import parse_recipe
from distill.run.files import write_atomic

_TEMPLATE = """\
# Written by `distill init {path}`, which found:
{description}
# See the plan with `distill run {output} --dry-run`, rehearse it with `--limit 200`.
name: {quoted}

{data}{evaluate}
{teachers}
student:
  model: distilbert/distilbert-base-uncased
  query_max_length: auto  # from the texts, after the import
  passage_max_length: auto

train:
  batch_size: 64
  negatives: 7
  {length}
  lr: 5.0e-5
  warmup_ratio: 0.05
  losses:
    - {{kind: kl, weight: 1.0}}
    - {{kind: margin-mse, weight: 0.05}}
  query_regularizers:
    - {{kind: l1, weight: 0.01, target_terms: 64, ramp: quadratic, ramp_steps: {ramp}}}  # the weight is where it starts
  passage_regularizers:
    - {{kind: flops, weight: 0.02, target_terms: 128, ramp: quadratic, ramp_steps: {ramp}}}
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
  given: {kind: imported}  # the scores in the rows; further teachers would score the same passages
"""
# the student learns labels as dot products, which range over tens (docs/recipe.md)
_RAW = "label: {normalise: none}  # the scores as they are\n"
_SPREAD = "label: {normalise: min-max, scale: 8}  # the scores lie close together: spread each query's over 0 to 8\n"
_CLOSE = 2.0  # scores in a smaller range are cosines or probabilities

_SHAPES = {  # of the template's models, for `distill plan` on a machine without them
    "cross-encoder/ms-marco-MiniLM-L6-v2": {"layers": 6, "hidden": 384},
    "distilbert/distilbert-base-uncased": {"layers": 6, "hidden": 768, "vocabulary": 30522},
}


def write_recipe_for(data: Path, output: Path | None, *, query_log: Path | None = None, force: bool = False) -> str:
    """Write a recipe for `data`; returns a message for the user. Refuses to overwrite a file unless `force`.

    `query_log`: a file of queries without judgements to train on, too.
    """
    source = sniff(data) if query_log is None else with_query_log(sniff(data), query_log)
    name = _name(data if output is None else output)
    output = output or Path(f"{name}.yaml")
    if output.is_dir():
        raise RecipeError(f"{output} is a folder; name the recipe's file with -o")
    if output.exists() and not force:
        raise RecipeError(f"{output} exists; choose another name with -o, or add --force")
    plain = name[0].isalpha() and isinstance(yaml.safe_load(name), str)
    text = _TEMPLATE.format(
        path=_in_comment(data),
        output=_in_comment(output),
        quoted=name if plain else f"'{name}'",
        data=_data_section(source),
        evaluate=_evaluate_section(source),
        teachers=_teachers_section(source),
        description="\n".join(f"#   {line}" for line in source.lines),
        length="epochs: 3" if source.data.generate is None else "steps: auto  # one pass over the training queries",
        ramp=_ramp_steps(source),
    )
    parse_recipe(yaml.safe_load(text), origin=str(output))
    with write_atomic(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    lines = [
        f"{data} contains",
        *(f"  {line}" for line in source.lines),
        f"wrote {output}; next:",
        f"  distill run {shlex.quote(str(output))} --dry-run",
    ]
    return "\n".join(lines)


def _in_comment(path: Path) -> str:
    """The path as a shell takes it, on one line."""
    return shlex.quote(str(path)).replace("\n", " ")


def _ramp_steps(source: Found) -> int:
    """A third of the template's steps, which are three epochs of batches of 64, or those of `auto`."""
    queries = source.data.sizes.queries if source.data.sizes else None
    if queries and source.data.generate is not None:
        return steps_of_auto(queries, 64)[0] // 3
    return max(1, math.ceil(queries / 64)) if queries else 1000


def _name(data: Path) -> str:
    stem = data.resolve().name.split(".")[0]
    name = "".join(character if character.isalnum() or character in "-_" else "-" for character in stem).strip("-_")
    return name if name and name.isascii() else "run"


def _data_section(source: Found) -> str:
    """The section as YAML, without fields at their defaults."""
    section = source.data.model_dump(mode="json", exclude_defaults=True)
    section["source"] = {"kind": source.data.source.kind, **section["source"]}
    if source.data.source.kind in ("beir", "msmarco", "jsonl"):
        section["source"]["path"] = str(Path(section["source"]["path"]).resolve())
    elif source.data.source.kind == "huggingface":
        section["source"]["dataset"] = str(Path(section["source"]["dataset"]).resolve())
    if "path" in section.get("query_log", {}):
        section["query_log"]["path"] = str(Path(section["query_log"]["path"]).resolve())
    if "sizes" in section:
        section["sizes"]["models"] = _SHAPES
    return yaml.safe_dump({"data": section}, sort_keys=False, allow_unicode=True)


def _teachers_section(source: Found) -> str:
    """The rows' own scores if they have any, else models."""
    if source.scores is None:
        return _TEACHERS
    lowest, highest = source.scores
    return f"{_GIVEN}\n{_SPREAD if highest - lowest <= _CLOSE else _RAW}"


def _evaluate_section(source: Found) -> str:
    """Evaluate on the development queries if there are no test queries; without either, on training queries."""
    sizes = source.data.sizes
    if sizes is None or sizes.test_queries:
        return ""
    if sizes.dev_queries:
        return "\nevaluate: {split: dev}  # there are no test queries\n"
    return "\nevaluate: {split: train}  # there are no others; judge some, for figures that mean something\n"
