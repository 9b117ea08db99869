"""The HTML report of a run, in one self-contained file.

It holds the results table, the tests, training curves, data, teachers and the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distill.reporting import run_facts, table
from distill.reporting.curves import cost_charts, training_curves
from distill.run.files import write_atomic
from distill.run.run import Run


def write_report(run: Run, counts: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write report.html from the run folder's content so far and the counts of each stage; return its path."""
    evaluation = run_facts.evaluation_of(run.folder)
    environment = Environment(
        loader=PackageLoader("distill.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        name=run.recipe.name,
        version=run_facts.version(),
        data=run_facts.data_sentence(run.recipe),
        has_student=run.recipe.student is not None,
        results=_results(evaluation) if evaluation else None,
        costs=_costs(evaluation) if evaluation and "curve" in evaluation else None,
        evaluators=evaluation.get("evaluators", []) if evaluation else [],
        curves=training_curves(run_facts.training_log(run.folder)),
        counts={name: run_facts.flat(values) for name, values in counts.items()},
        teachers=run_facts.teacher_rows(run),
        training=run_facts.training_rows(run.recipe) + run_facts.chosen_rows(run),
        truncation=run_facts.truncation_rows(run.folder),
        truncated=run_facts.truncation_warnings(run.folder),
        recipe=run_facts.recipe_yaml(run.recipe),
    )
    with write_atomic(run.folder.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run.folder.report


def _results(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The results table for the page: text cells, and per metric the share of the best value as a bar's width."""
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
    sentences, reasons = table.verdict_lines(evaluation)
    return {
        "headers": headers,
        "rows": rows,
        "figures": figures,
        "caption": table.caption(evaluation),
        "sentences": [*table.left_out(evaluation), *table.test_sentences(evaluation)],
        "verdict": sentences,
        "reasons": reasons,
    }


def _costs(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Effectiveness against cost: charts of the first metric, and a table of all figures."""
    headers, rows = table.curve_cells(evaluation)
    metric = evaluation["metrics"][0]
    return {
        "metric": table.metric_title(metric),
        "charts": cost_charts(evaluation["curve"], metric),
        "caption": table.curve_caption(evaluation["curve"]),
        "headers": headers,
        "rows": rows,
    }
