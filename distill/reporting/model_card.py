"""The model card: the README.md of a checkpoint, generated from its run, with the hub's metadata at the top.

`huggingface_hub` writes the metadata, so that the hub accepts it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from distill.config import HuggingFace, Recipe
from distill.reporting import run_facts, table
from distill.reporting.emissions import emissions_of
from distill.run.files import write_atomic
from distill.run.run import Run

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NON_COMMERCIAL = "cc-by-nc-sa-4.0"  # of naver's SPLADE checkpoints


def write_model_card(run: Run) -> Path:
    """Write the card of the run's model and return its path. Results that do not exist yet are left out."""
    path = run.folder.model / "README.md"
    with write_atomic(path) as temporary:
        temporary.write_text(model_card(run), encoding="utf-8")
    return path


def model_card(run: Run) -> str:
    """The text of the card."""
    student = run.recipe.trained_student
    evaluation, emissions = run_facts.evaluation_of(run.folder), emissions_of(run.folder)
    verdict, reasons = table.verdict_lines(evaluation or {})
    environment = Environment(
        loader=PackageLoader("distill.reporting", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.jinja").render(
        metadata=card_data(run.recipe, evaluation, emissions).to_yaml(),
        name=run.recipe.name,
        version=run_facts.version(),
        data=run_facts.data_sentence(run.recipe),
        student=run_facts.student_sentence(student),
        training=run_facts.training_rows(run.recipe) + run_facts.chosen_rows(run),
        teachers=run_facts.teacher_rows(run),
        table=table.markdown_table(evaluation) if evaluation else None,
        caption=table.caption(evaluation) if evaluation else None,
        verdict=verdict,
        reasons=reasons,
        sentences=[*table.left_out(evaluation), *table.test_sentences(evaluation)] if evaluation else [],
        truncated=run_facts.truncation_warnings(run.folder),
        start=run_facts.model_name(student.model),
        non_commercial=_inherits_non_commercial(run.recipe),
        recipe=run_facts.recipe_yaml(run.recipe),
        emissions=emissions,
        top_k=student.top_k,
    )


def card_data(
    recipe: Recipe, evaluation: dict[str, Any] | None, emissions: Sequence[dict[str, Any]] = ()
) -> ModelCardData:
    """Metadata of the card, which the hub's search and its results widget read."""
    base = recipe.trained_student.model
    source = recipe.data.source
    card = ModelCardData(
        model_name=recipe.name,
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=["sentence-transformers", "sparse-encoder", "sparse", "splade", "distillation", "splade-distill"],
        base_model=base if _is_hub_name(base) else None,
        datasets=[source.dataset] if isinstance(source, HuggingFace) and _is_hub_name(source.dataset) else None,
        license=_NON_COMMERCIAL if _inherits_non_commercial(recipe) else None,
        metrics=[_metric_type(name) for name in evaluation["metrics"]] if evaluation else None,
        eval_results=_eval_results(recipe, evaluation) if evaluation else None,
    )
    if emissions:
        card["co2_eq_emissions"] = _emissions(emissions)
    return card


def _emissions(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum over all stages, in grams and kWh, in the layout of the hub and of sentence-transformers' cards."""
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
    """The hub's identifier of a measure: nDCG@10 -> ndcg_at_10."""
    return re.sub(r"\W+", "_", table.metric_title(name).lower().replace("@", "_at_")).strip("_")


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _inherits_non_commercial(recipe: Recipe) -> bool:
    model = recipe.trained_student.model
    card = Path(model) / "README.md"  # of an earlier student, which may have inherited the licence
    return model.startswith("naver/") or (
        card.is_file() and f"license: {_NON_COMMERCIAL}" in card.read_text(encoding="utf-8")
    )
