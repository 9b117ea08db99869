"""The results table of a run: one row per system, with effectiveness and cost.

`cells` makes its headers and cells of text; the terminal, Markdown and the report show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_COSTS = (("query_terms", "query terms", ".0f"), ("passage_terms", "passage terms", ".0f"), ("flops", "FLOPS", ".2f"))
_MISSING = "–"


def cells(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of text for an evaluation (metrics/evaluation.json)."""
    headers = ["system", *(metric_title(name) for name in evaluation["metrics"]), *(title for _, title, _ in _COSTS)]
    rows = []
    for row in evaluation["rows"]:
        values = [_number(row["metrics"].get(name), ".3f") for name in evaluation["metrics"]]
        rows.append([row["title"], *values, *(_number(row.get(key), form) for key, _, form in _COSTS)])
    return headers, rows


def test_sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """The paired tests on the first metric, in words."""
    return [
        f"{test['ours']} − {test['theirs']}: {test['difference']:+.3f} {metric_title(test['metric'])}, "
        f"p {p_value(test['p'])} (paired t-test, {test['queries']} queries: {test['wins']} better, "
        f"{test['losses']} worse)"
        for test in evaluation["tests"]
        if test["metric"] == evaluation["metrics"][0]
    ]


def verdict_lines(evaluation: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The sentences of the verdict, and the likely reasons why the student is not better; empty in old evaluations."""
    verdict = evaluation.get("verdict", {})
    return list(verdict.get("sentences", ())), list(verdict.get("reasons", ()))


def left_out(evaluation: Mapping[str, Any]) -> list[str]:
    """Which baselines the table does not have, and why; empty in old evaluations."""
    return list(evaluation.get("left_out", ()))


def caption(evaluation: Mapping[str, Any]) -> str:
    """Describe the collection, the search if it was approximate, and the candidates that teachers reranked."""
    text = f"{evaluation['queries']:,} {evaluation['split']} queries, {evaluation['passages']:,} passages"
    if evaluation.get("search") == "seismic":
        text += ", searched through Seismic"
    if any(row["name"].startswith("rerank-") for row in evaluation["rows"]):
        text += f"; reranked: the {evaluation['reranked']['depth']} best of {evaluation['reranked']['miner']}"
    return text


def print_table(evaluation: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table, the tests, the cost curve and the evaluators' primary metrics."""
    console = console or Console()
    headers, rows = cells(evaluation)
    table = Table(
        title=caption(evaluation),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for i, header in enumerate(headers):
        table.add_column(header.replace(" ", "\n"), justify="right" if i else "left", vertical="bottom", no_wrap=True)
    for row, values in zip(evaluation["rows"], rows, strict=True):
        table.add_row(*values, style="bold green" if row["name"] == "student" else None)
    console.print(table)
    for sentence in (*left_out(evaluation), *test_sentences(evaluation)):
        console.print(sentence, highlight=False)
    if "curve" in evaluation:
        headers, rows = curve_cells(evaluation)
        columns = [i for i, header in enumerate(headers) if header not in ("postings", "Seismic MB", "p95 ms")]
        table = Table(
            title=curve_caption(evaluation["curve"]),
            title_justify="left",
            header_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for i in columns:
            table.add_column(headers[i].replace(" ", "\n"), justify="right", vertical="bottom", no_wrap=True)
        for row in rows:
            table.add_row(*(row[i] for i in columns))
        console.print(table)
    for result in evaluation.get("evaluators", ()):
        console.print(
            f"{result['name']}: {result['primary']} {_number(result['metrics'][result['primary']], '.4f')}",
            highlight=False,
            markup=False,
        )
    print_verdict(evaluation, console)


def print_verdict(evaluation: Mapping[str, Any], console: Console) -> None:
    """Print the verdict and, if the student is not better, the reasons."""
    sentences, reasons = verdict_lines(evaluation)
    for sentence in sentences:
        console.print(sentence, style="bold", highlight=False, markup=False)
    if reasons:
        console.print("likely reasons, seen in this run:", highlight=False)
    for reason in reasons:
        console.print(f"- {reason}", highlight=False, markup=False)


def curve_cells(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of text for the cost curve of an evaluation."""
    headers = [
        "top-k",
        *(metric_title(name) for name in evaluation["metrics"]),
        *(title for _, title, _ in _COSTS),
        "postings",
        "inverted MB",
        "Seismic MB",
        "median ms",
        "p95 ms",
    ]
    rows = []
    for row in evaluation["curve"]["rows"]:
        rows.append(
            [
                str(row["top_k"] or "none"),
                *(_number(row["metrics"][name], ".3f") for name in evaluation["metrics"]),
                *(_number(row[key], form) for key, _, form in _COSTS),
                f"{row['postings']:,}",
                f"{row['inverted_bytes'] / 1e6:,.1f}",
                f"{row['seismic_bytes'] / 1e6:,.1f}",
                f"{row['latency_ms']['median']:.2f}",
                f"{row['latency_ms']['p95']:.2f}",
            ]
        )
    return headers, rows


def curve_caption(curve: Mapping[str, Any]) -> str:
    """Describe what is capped, and how latency was measured."""
    capped = {"both": "queries and passages", "passages": "passages", "queries": "queries"}[curve["of"]]
    return (
        f"{capped} capped at their k strongest terms; latency: {curve['search']} search of the {curve['depth']} "
        f"best, {curve['timed_queries']:,} queries one by one on one thread, {curve['machine']}"
    )


def print_rounds(evaluations: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the students of all rounds, each by its own evaluation; "–" for a round evaluated on another split."""
    last = evaluations[-1]
    rows = []
    for number, evaluation in enumerate(evaluations, start=1):
        student = next(row for row in evaluation["rows"] if row["name"] == "student")
        same_split = evaluation["split"] == last["split"]
        rows.append({**student, "title": f"round {number}", "metrics": student["metrics"] if same_split else {}})
    headers, values = cells({**last, "rows": rows})
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, header in enumerate(["student of", *headers[1:]]):
        table.add_column(header.replace(" ", "\n"), justify="right" if i else "left", vertical="bottom", no_wrap=True)
    for row in values:
        table.add_row(*row)
    (console or Console()).print("", table)


def markdown_table(evaluation: Mapping[str, Any]) -> str:
    """The table in GitHub's Markdown; the student's row is bold."""
    headers, rows = cells(evaluation)
    lines = ["| " + " | ".join(headers) + " |", "|---|" + "---:|" * (len(headers) - 1)]
    for row, values in zip(evaluation["rows"], rows, strict=True):
        shown = [f"**{value}**" for value in values] if row["name"] == "student" else values
        lines.append("| " + " | ".join(value.replace("|", "\\|") for value in shown) + " |")
    return "\n".join(lines)


def metric_title(name: str) -> str:
    """The field's name for an ir-measures name: RR@10 -> MRR@10, R@100 -> recall@100."""
    if name == "RR" or name.startswith("RR@"):
        return "M" + name
    return name.replace("R@", "recall@", 1) if name.startswith("R@") else name


def _number(value: float | None, form: str) -> str:
    return _MISSING if value is None else format(value, form)


def p_value(p: float) -> str:
    """Format a p-value with its relation, such as "= 0.03"."""
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"
