"""The model card: the README.md of a checkpoint, filled from its run, with the hub's metadata in front.

The metadata is written by `huggingface_hub`, so that what is uploaded validates there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from distill.config import HuggingFace, Recipe
from distill.data.files import write_atomic
from distill.data.layout import RunFolder
from distill.reporting import run_facts, table
from distill.reporting.emissions import emissions_of

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NON_COMMERCIAL = "cc-by-nc-sa-4.0"  # of naver's SPLADE checkpoints


def write_model_card(recipe: Recipe, folder: RunFolder) -> Path:
    """Write the card of the run's model; returns its path. What the run does not have yet is left out."""
    path = folder.model / "README.md"
    with write_atomic(path) as temporary:
        temporary.write_text(model_card(recipe, folder), encoding="utf-8")
    return path


def model_card(recipe: Recipe, folder: RunFolder) -> str:
    """The card as text."""
    evaluation, emissions = run_facts.evaluation_of(folder), emissions_of(folder)
    environment = Environment(
        loader=PackageLoader("distill.reporting", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.jinja").render(
        metadata=card_data(recipe, evaluation, emissions).to_yaml(),
        name=recipe.name,
        version=run_facts.version(),
        data=run_facts.data_sentence(recipe),
        student=run_facts.student_sentence(recipe.student),
        training=run_facts.training_rows(recipe),
        teachers=run_facts.teacher_rows(recipe, folder),
        table=table.markdown_table(evaluation) if evaluation else None,
        caption=table.caption(evaluation) if evaluation else None,
        sentences=table.test_sentences(evaluation) if evaluation else [],
        start=run_facts.model_name(recipe.student.model),
        non_commercial=_inherits_non_commercial(recipe),
        recipe=run_facts.recipe_yaml(recipe),
        emissions=emissions,
        top_k=recipe.student.top_k,
    )


def card_data(
    recipe: Recipe, evaluation: dict[str, Any] | None, emissions: Sequence[dict[str, Any]] = ()
) -> ModelCardData:
    """The metadata: what the hub's search and its results widget read."""
    base = recipe.student.model
    source = recipe.data.source
    return ModelCardData(
        model_name=recipe.name,
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=["sentence-transformers", "sparse-encoder", "sparse", "splade", "distillation", "splade-distill"],
        base_model=base if _is_hub_name(base) else None,
        datasets=[source.dataset] if isinstance(source, HuggingFace) and _is_hub_name(source.dataset) else None,
        license=_NON_COMMERCIAL if _inherits_non_commercial(recipe) else None,
        metrics=[_metric_type(name) for name in evaluation["metrics"]] if evaluation else None,
        eval_results=_eval_results(recipe, evaluation) if evaluation else None,
        **({"co2_eq_emissions": _emissions(emissions)} if emissions else {}),
    )


def _emissions(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All stages together, in grams and kWh, as the hub and sentence-transformers' cards have them."""
    data = {
        "emissions": 1000 * sum(stage["co2_kg"] for stage in stages),
        "energy_consumed": sum(stage["energy_kwh"] for stage in stages),
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "hours_used": round(sum(stage["seconds"] for stage in stages) / 3600, 3),
        "cpu_model": stages[-1]["cpu"],
        "geographical_location": stages[-1]["country"],
    }
    return {**data, "hardware_used": stages[-1]["gpu"]} if stages[-1]["gpu"] else data


def _eval_results(recipe: Recipe, evaluation: dict[str, Any]) -> list[EvalResult]:
    student = next(row for row in evaluation["rows"] if row["name"] == "student")
    dataset = run_facts.dataset_name(recipe)
    values = [(_metric_type(name), table.metric_title(name), value) for name, value in student["metrics"].items()]
    values += [
        (key, title, student[key])
        for key, title in (("query_terms", "Query active dimensions"), ("passage_terms", "Passage active dimensions"))
    ]
    return [
        EvalResult(
            task_type="sparse-information-retrieval",
            task_name="Sparse Information Retrieval",
            dataset_type=dataset.lower().replace(" ", "-"),
            dataset_name=dataset,
            dataset_split=evaluation["split"],
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for kind, title, value in values
    ]


def _metric_type(name: str) -> str:
    """An identifier in the hub's manner: nDCG@10 -> ndcg_at_10."""
    return re.sub(r"\W+", "_", table.metric_title(name).lower().replace("@", "_at_")).strip("_")


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _inherits_non_commercial(recipe: Recipe) -> bool:
    card = Path(recipe.student.model) / "README.md"  # of an earlier student, which has inherited it itself
    return recipe.student.model.startswith("naver/") or (
        card.is_file() and f"license: {_NON_COMMERCIAL}" in card.read_text(encoding="utf-8")
    )
