"""The verdict on a run: whether its student is better than BM25, its start and its teachers, else why not.

Reasons are facts of this run that commonly keep a student from improving, each with the field to change. They are given
if the student is not better than BM25 and its start, or worse than its teachers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill.reporting import run_facts
from distill.reporting.table import metric_title, p_value
from distill.run.manifest import read_manifest
from distill.run.run import Run
from distill.run.truncation import read_truncation

SIGNIFICANT = 0.05  # p of the paired t-test
_FEW_EVALUATIONS = 3  # with the start's, from which a development curve has a trend


def verdict(run: Run, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Judge an evaluation (the content of metrics/evaluation.json).

    Returns `compared` (for each other system its row's `name` and `title`, `result` better, worse or undecided,
    `difference` and `p` under the first metric), `best_step` (None without development evaluations; 0: the start is the
    final model), and in words `sentences` and `reasons`.
    """
    metric = evaluation["metrics"][0]
    compared = [_compared(test) for test in evaluation["tests"] if test["metric"] == metric]
    best_step = _counts(run).get("best_step")
    sentences = [_sentence(evaluation, compared)]
    if best_step == 0:
        sentences.append(
            "No evaluated step was better than the untrained student on the development queries: the final model is "
            "the untrained student."
        )
    return {
        "compared": compared,
        "best_step": best_step,
        "sentences": sentences,
        "reasons": list(_reasons(run, evaluation)) if _disappoints(compared) else [],
    }


def _compared(test: Mapping[str, Any]) -> dict[str, Any]:
    decided = test["p"] < SIGNIFICANT and test["difference"] != 0
    result = "undecided" if not decided else "better" if test["difference"] > 0 else "worse"
    return {
        "name": test["name"],
        "title": test["theirs"],
        "result": result,
        "difference": test["difference"],
        "p": test["p"],
    }


def _disappoints(compared: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        entry["result"] == "worse" if entry["name"].startswith("rerank-") else entry["result"] != "better"
        for entry in compared
    )


def _sentence(evaluation: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]) -> str:
    """The comparisons in one sentence."""
    if not compared:
        return "The student was compared with no other system (evaluate.baselines is false)."
    phrases = {"better": "better than", "worse": "worse than", "undecided": "not measurably different from"}
    parts = []
    for result, phrase in phrases.items():
        systems = [
            f"{_in_sentence(entry)} ({entry['difference']:+.3f}, p {p_value(entry['p'])})"
            for entry in compared
            if entry["result"] == result
        ]
        if systems:
            parts.append(f"{phrase} {_listed(systems)}")
    where = f"{evaluation['queries']:,} {evaluation['split']} queries"
    metric = metric_title(evaluation["metrics"][0])
    return f"By {metric} on {where}, the student is {'; '.join(parts)} (paired t-test, p < {SIGNIFICANT:g})."


def _in_sentence(entry: Mapping[str, Any]) -> str:
    name, title = entry["name"], entry["title"]
    if name == "start":
        return "its start"
    if name == "rerank-ensemble":
        return "its teachers' ensemble, which reranks"
    return f"its teacher {title.removesuffix(', reranking')}, which reranks" if name.startswith("rerank-") else title


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _reasons(run: Run, evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was seen in this run, most fundamental first."""
    yield from _weak_teachers(evaluation)
    truncation = read_truncation(run.folder)
    if truncation is not None:
        yield from (figure.sentence() for figure in truncation.figures if figure.alarming)
    yield from _training_alarms(run)
    yield from _too_short(run, evaluation["metrics"][0])
    if _counts(run).get("best_step") == 0:
        yield (
            "training made the student worse from the first evaluated step on: lower train.lr, raise "
            "train.warmup_ratio, or improve the labels (teachers, label)"
        )


def _weak_teachers(evaluation: Mapping[str, Any]) -> Iterator[str]:
    metric = evaluation["metrics"][0]
    rows = {row["name"]: row for row in evaluation["rows"]}
    if "BM25" not in rows:
        return
    bm25 = rows["BM25"]["metrics"][metric]
    for name in teacher_rows(rows):
        value = rows[name]["metrics"][metric]
        if value < bm25 and name != "rerank-bm25":
            yield (
                f"{rows[name]['title']}, has {value:.3f} {metric_title(metric)}, less than BM25's {bm25:.3f}: the "
                "labels teach little that BM25 does not know; use better teachers, or change teachers.*.weight"
            )


def teacher_rows(names: Mapping[str, Any]) -> list[str]:
    """Names of the rows that stand for the teachers: the ensemble's or, without it, those of single teachers."""
    if "rerank-ensemble" in names:
        return ["rerank-ensemble"]
    return [name for name in names if name.startswith("rerank-")]


def _training_alarms(run: Run) -> Iterator[str]:
    """Yield what the log's first line says of the labels, and all diagnoses of its last one: collapsed, dense terms."""
    lines = [line.get("alarms", ()) for line in run_facts.training_log(run.folder) if "loss" in line]
    of_labels = [alarm for alarms in lines[:1] for alarm in alarms if alarm.startswith("the labels")]
    yield from dict.fromkeys([*of_labels, *(alarm for alarms in lines[-1:] for alarm in alarms)])


def _too_short(run: Run, metric: str) -> Iterator[str]:
    """Yield that training ended too early: a development curve still rising, or queries never seen."""
    train, steps = run.recipe.train, _counts(run).get("steps", 0)
    length = "train.steps" if train.steps else "train.epochs"
    curve = {
        line["step"]: line[metric]
        for line in run_facts.training_log(run.folder)
        if line.get("event") == "evaluation" and line.get(metric) is not None
    }
    scores = [curve[step] for step in sorted(curve)]
    if len(scores) >= _FEW_EVALUATIONS and scores[-1] == max(scores) > scores[-2]:
        yield (
            f"the development score still rose at the last evaluation, from {scores[-2]:.3f} to {scores[-1]:.3f} "
            f"{metric_title(metric)} at step {max(curve)}: raise {length}"
        )
    labels = read_manifest(run.folder.labels())
    if labels is not None and 0 < steps * train.batch_size < labels.rows:
        share = steps * train.batch_size / labels.rows
        yield f"training saw {share:.0%} of the {labels.rows:,} training queries: raise {length}"
    if not curve and run.folder.judgements("dev").exists():
        yield (
            "the last step became the model, whatever its quality: set train.evaluate_every to keep the best step by "
            "the development queries"
        )


def _counts(run: Run) -> dict[str, Any]:
    manifest = read_manifest(run.folder.model)
    return {} if manifest is None else manifest.counts
