"""Comparison of two runs against ir-measures and SciPy, and runs that cannot be compared."""

import json

import ir_measures
import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from distill.cli.app import app
from distill.errors import DataError, RecipeError
from distill.evaluation.compare import compare
from distill.evaluation.metrics import randomisation_test
from distill.reporting.comparison import print_comparison
from tests.evaluation.trained import save_trained
from tests.helpers.small_run import JUDGEMENTS, small_recipe, write_run
from tests.helpers.stages import evaluate


def write_files(folder, queries: int = 30):
    """Write qrels and two runs in random order, the second without one of the queries."""
    rng = np.random.default_rng(3)
    passages = [f"d{i}" for i in range(20)]
    (folder / "qrels.txt").write_text(
        "".join(
            f"q{q} 0 {p} {rng.integers(0, 3)}\n"
            for q in range(queries)
            for p in ["d0", *rng.choice(passages[1:], 4, replace=False)]
        )
        + "unjudged 0 d1 0\n"
    )
    for name, noise in (("a", 2.0), ("b", 8.0)):
        lines = [
            f"q{q} Q0 {p} 0 {-i + noise * rng.normal():.4f} x\n"
            for q in range(queries - (name == "b"))
            for i, p in enumerate(passages)
        ]
        (folder / f"{name}.run").write_text("".join(lines))
    return folder / "a.run", folder / "b.run", folder / "qrels.txt"


def test_comparison_of_run_files_matches_ir_measures_and_scipy(tmp_path):
    a, b, qrels = write_files(tmp_path)
    result = compare(a, b, ["nDCG@10", "MRR@10"], qrels=qrels, most=3)
    judged = [row for row in ir_measures.read_trec_qrels(str(qrels)) if row.query_id != "unjudged"]
    relevant = {row.query_id for row in judged if row.relevance > 0}
    assert result["queries"] == len(relevant)
    for row, measure in zip(result["comparisons"], (ir_measures.nDCG @ 10, ir_measures.RR @ 10), strict=True):
        values = []
        for path in (a, b):
            by_query = {
                m.query_id: m.value
                for m in ir_measures.iter_calc(
                    [measure], [row for row in judged if row.query_id in relevant], ir_measures.read_trec_run(str(path))
                )
            }
            values.append(np.array([by_query.get(query, 0.0) for query in sorted(relevant)]))
        in_a, in_b = values
        assert (row["a"], row["b"]) == pytest.approx((in_a.mean(), in_b.mean()))
        assert row["t_test"] == pytest.approx(stats.ttest_rel(in_a, in_b).pvalue)
        swapped = np.random.default_rng(1).choice([-1, 1], (20_000, len(in_a))) @ (in_a - in_b)
        p = np.mean(np.abs(swapped) >= abs((in_a - in_b).sum()))
        assert row["randomisation_test"] == pytest.approx(p, abs=0.02)
        assert [row["wins"], row["losses"], row["ties"]] == [
            (in_a > in_b).sum(),
            (in_a < in_b).sum(),
            (in_a == in_b).sum(),
        ]
    gaps = [abs(row["a"] - row["b"]) for row in result["differ_most"]]
    assert len(gaps) == 3 and gaps == sorted(gaps, reverse=True)
    printed = CliRunner().invoke(
        app, ["compare", str(a), str(b), "-m", "nDCG@10", "-m", "MRR@10", "-n", "3", "--qrels", str(qrels), "--json"]
    )
    assert json.loads(printed.output) == result


def test_the_randomisation_test_is_exact_for_few_queries():
    ours, theirs = np.array([0.9, 0.7, 0.8, 0.6, 0.9]), np.array([0.1, 0.2, 0.3, 0.1, 0.2])
    assert randomisation_test(ours, theirs) == pytest.approx(2 / 2**5)  # all or none swapped
    assert randomisation_test(ours, ours) == 1 and randomisation_test(ours[:1], theirs[:1]) == 1


@pytest.fixture
def runs(tmp_path, tiny_mlm):
    folders = []
    for name, pooling in (("one", "max"), ("two", "sum")):
        folder = write_run(tmp_path / name)
        save_trained(tiny_mlm, folder, pooling=pooling)
        evaluate(small_recipe(folder.root, evaluate={"baselines": False, "precision": "float32"}), folder)
        folders.append(folder)
    return folders


def test_run_folders_bring_their_judgements_and_texts(runs, tmp_path, capsys):
    one, two = runs
    result = compare(one.root, two.root, ["nDCG@10"])
    row = result["comparisons"][0]
    for folder, side in zip(runs, "ab", strict=True):
        reread = compare(folder.trec_run("student"), folder.root, ["nDCG@10"])["comparisons"][0]
        assert row[side] == reread["a"] == reread["b"] and reread["t_test"] == reread["randomisation_test"] == 1
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("".join(f"q{q} 0 p{p} {grade}\n" for q, p, grade in JUDGEMENTS["test"]))
    assert compare(one.trec_run("student"), two.root, ["nDCG@10"], qrels=qrels)["comparisons"] == [row]
    print_comparison(result)
    shown = capsys.readouterr().out
    assert f"{row['a']:.4f}" in shown and all(query["text"] in shown for query in result["differ_most"])


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, monkeypatch):
    one, two = runs
    a, b, qrels = write_files(tmp_path)
    with pytest.raises(DataError, match="--qrels"):
        compare(a, b)
    with pytest.raises(DataError, match="run of other queries"):
        compare(_renamed(a), b, qrels=qrels)
    with pytest.raises(DataError, match="has not been evaluated yet"):
        compare(one.root, tmp_path)
    with pytest.raises(RecipeError, match="--metric: 'accuracy'"):
        compare(one.root, two.root, ["accuracy"])
    monkeypatch.setitem(JUDGEMENTS, "test", [(0, 7, 1), *JUDGEMENTS["test"][1:]])
    judged_differently = write_run(tmp_path / "three")
    judged_differently.metrics.mkdir()
    for file in (one.evaluation, one.trec_run("student")):
        (judged_differently.metrics / file.name).write_text(file.read_text())
    with pytest.raises(DataError, match="query 'q0', passage 'p7': grade 2 and grade 1"):
        compare(one.root, judged_differently.root)
    a.write_text(a.read_text() + "q0 Q0 d3 1 2.0 x\n")
    with pytest.raises(DataError, match=r"a\.run:601: query 'q0' has passage 'd3' twice"):
        compare(a, b, qrels=qrels)


def _renamed(path):
    other = path.with_name("other.run")
    other.write_text(path.read_text().replace("q", "x"))
    return other
