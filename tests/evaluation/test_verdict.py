"""The verdict against SciPy's paired t-test, and the reasons that a run's records give."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from distill.evaluation import metrics
from distill.evaluation.verdict import verdict
from distill.reporting.model_card import model_card
from distill.reporting.report import write_report
from distill.reporting.table import print_table
from distill.run.files import write_json
from distill.run.manifest import Manifest, Shard, write_manifest
from distill.run.run import Run
from distill.run.truncation import Truncation, TruncationRecord, write_truncation
from tests.helpers.small_run import small_recipe, write_run

SYSTEMS = {
    "BM25": "BM25",
    "start": "student before training",
    "rerank-ensemble": "ensemble, reranking",
    "student": "student",
}


def evaluation(values: dict[str, np.ndarray]) -> dict:
    """What the evaluate stage writes, for per-query values of the systems."""
    return {
        "split": "test",
        "queries": len(values["student"]),
        "passages": 100,
        "reranked": {"miner": "bm25", "depth": 10},
        "metrics": ["nDCG@10"],
        "rows": [
            {
                "name": name,
                "title": SYSTEMS[name],
                "metrics": {"nDCG@10": float(value.mean())},
                **({"query_terms": 9.0, "passage_terms": 90.0, "flops": 1.0} if name == "student" else {}),
            }
            for name, value in values.items()
        ],
        "tests": [
            {
                "metric": "nDCG@10",
                "ours": "student",
                "theirs": SYSTEMS[name],
                "name": name,
                **metrics.paired_test(values["student"], value),
            }
            for name, value in values.items()
            if name != "student"
        ],
    }


def results(better_than: dict[str, float]) -> dict[str, np.ndarray]:
    """Per-query values of 200 queries: the student's, and systems that are worse by a mean."""
    generator = np.random.default_rng(0)
    student = generator.uniform(0.3, 0.9, 200)
    return {
        **{name: student - mean + generator.normal(0, 0.1, 200) for name, mean in better_than.items()},
        "student": student,
    }


@pytest.fixture
def run(tmp_path) -> Run:
    folder = write_run(tmp_path)
    return Run(small_recipe(tmp_path, train={"steps": 40, "batch_size": 4, "evaluate_every": 20}), folder)


def finish_training(run: Run, best_step: int, lines: list[dict], queries: int = 100) -> None:
    write_manifest(run.folder.model, Manifest({}, counts={"steps": 40, "best_step": best_step}))
    write_manifest(run.folder.labels(), Manifest({}, (Shard("part-00000.arrow", queries, 1, "0"),)))
    run.folder.logs.mkdir(parents=True, exist_ok=True)
    run.folder.train_log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_system_is_better_where_the_paired_test_says_so(run):
    values = results({"BM25": 0.05, "start": 0.001, "rerank-ensemble": -0.05})
    judged = verdict(run, evaluation(values))
    expected = {}
    for name in ("BM25", "start", "rerank-ensemble"):
        test = stats.ttest_rel(values["student"], values[name])
        expected[name] = "undecided" if test.pvalue >= 0.05 else "better" if test.statistic > 0 else "worse"
    assert {entry["name"]: entry["result"] for entry in judged["compared"]} == expected
    assert expected == {"BM25": "better", "start": "undecided", "rerank-ensemble": "worse"}
    (sentence,) = judged["sentences"]
    assert sentence.startswith("By nDCG@10 on 200 test queries, the student is better than BM25 (+0.0")
    assert "worse than its teachers' ensemble, which reranks (-0.0" in sentence
    assert "not measurably different from its start (" in sentence


def test_a_student_that_is_better_needs_no_reasons(run):
    finish_training(run, 40, [{"step": 40, "loss": 1.0, "alarms": ["passages still have all terms active"]}])
    judged = verdict(run, evaluation(results({"BM25": 0.1, "start": 0.1, "rerank-ensemble": 0.0})))
    assert judged["reasons"] == [] and len(judged["sentences"]) == 1


def test_reasons_are_those_seen_in_the_run(run):
    finish_training(
        run,
        40,
        [
            {"step": 0, "event": "evaluation", "nDCG@10": 0.2},
            {"step": 1, "loss": 9.0, "alarms": ["the labels of a query's passages hardly differ", "something early"]},
            {"step": 20, "event": "evaluation", "nDCG@10": 0.3},
            {"step": 40, "loss": 1.0, "alarms": ["passages still have 900 of 1,000 terms active"]},
            {"step": 40, "event": "evaluation", "nDCG@10": 0.4},
        ],
        queries=400,
    )
    cut = Truncation("student", "passages", "student.passage_max_length", 12, 0.4, 40, 128, "all 10")
    whole = Truncation("student", "dev queries", "student.query_max_length", 12, 0.01, 16, 128, "all 3")
    write_truncation(run.folder, TruncationRecord((cut, whole), {}, {}))
    reasons = verdict(run, evaluation(results({"BM25": -0.2, "rerank-ensemble": 0.1})))["reasons"]
    assert len(reasons) == 6
    assert "less than BM25's" in reasons[0] and "teachers.*.weight" in reasons[0]
    assert "40% of the passages (all 10) are cut; set student.passage_max_length to 40" in reasons[1]
    assert reasons[2:4] == [
        "the labels of a query's passages hardly differ",
        "passages still have 900 of 1,000 terms active",
    ]
    assert "still rose at the last evaluation, from 0.300 to 0.400" in reasons[4] and "train.steps" in reasons[4]
    assert "training saw 40% of the 400 training queries" in reasons[5]


def test_a_start_that_stays_the_best_is_named_in_every_place(run):
    finish_training(
        run, 0, [{"step": step, "event": "evaluation", "nDCG@10": 0.5 - step / 100} for step in (0, 20, 40)]
    )
    result = evaluation(results({"BM25": -0.1, "start": 0.0, "rerank-ensemble": 0.0}))
    result["verdict"] = verdict(run, result)
    assert result["verdict"]["best_step"] == 0
    write_json(run.folder.evaluation, result)
    console = Console(record=True, width=400)
    print_table(result, console)
    page = write_report(run, {}).read_text()
    for shown in (console.export_text(), page, model_card(run)):
        assert "the final model is the untrained student" in shown
        assert "lower train.lr" in shown and "worse than BM25 (-0." in shown
