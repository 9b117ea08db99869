"""The HTML report of a run: one file that needs nothing beside it.

The table, the tests, the training curves, the data, the teachers and the recipe, for whoever gets the file by mail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distill.config import Recipe
from distill.data.files import write_atomic
from distill.data.layout import RunFolder
from distill.reporting import run_facts, table
from distill.reporting.curves import cost_charts, training_curves


def write_report(recipe: Recipe, folder: RunFolder) -> Path:
    """Write report.html from what the run folder holds so far; returns its path."""
    evaluation = run_facts.evaluation_of(folder)
    environment = Environment(
        loader=PackageLoader("distill.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        name=recipe.name,
        version=run_facts.version(),
        data=run_facts.data_sentence(recipe),
        results=_results(evaluation) if evaluation else None,
        costs=_costs(evaluation) if evaluation and "curve" in evaluation else None,
        evaluators=evaluation.get("evaluators", []) if evaluation else [],
        curves=training_curves(run_facts.training_log(folder)),
        counts=run_facts.counts(folder),
        teachers=run_facts.teacher_rows(recipe, folder),
        training=run_facts.training_rows(recipe),
        recipe=run_facts.recipe_yaml(recipe),
    )
    with write_atomic(folder.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder.report


def _results(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The table for the page: text cells, and for each metric the share of the best value as a bar's width."""
    headers, cells = table.cells(evaluation)
    best = {name: max(row["metrics"][name] for row in evaluation["rows"]) for name in evaluation["metrics"]}
    rows = []
    for row, values in zip(evaluation["rows"], cells, strict=True):
        shares = [row["metrics"][name] / best[name] if best[name] else 0.0 for name in evaluation["metrics"]]
        padded = [None, *shares, *[None] * (len(values) - len(shares) - 1)]
        tops = [share == 1.0 for share in shares]
        rows.append(
            {
                "student": row["name"] == "student",
                "cells": list(zip(values, padded, [False, *tops, *[False] * len(values)], strict=False)),
            }
        )
    student = next(row for row in evaluation["rows"] if row["name"] == "student")
    figures = [(table.metric_title(name), f"{student['metrics'][name]:.3f}") for name in evaluation["metrics"]]
    figures += [
        (title, text)
        for title, text in zip(headers, cells[evaluation["rows"].index(student)], strict=True)
        if title.endswith("terms")
    ]
    return {
        "headers": headers,
        "rows": rows,
        "figures": figures,
        "caption": table.caption(evaluation),
        "sentences": table.test_sentences(evaluation),
    }


def _costs(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Effectiveness against cost: charts of the first metric, and all of it as a table."""
    headers, rows = table.curve_cells(evaluation)
    metric = evaluation["metrics"][0]
    return {
        "metric": table.metric_title(metric),
        "charts": cost_charts(evaluation["curve"], metric),
        "caption": table.curve_caption(evaluation["curve"]),
        "headers": headers,
        "rows": rows,
    }
