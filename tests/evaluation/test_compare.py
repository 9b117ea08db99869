"""Two runs compared: figures against ir-measures and SciPy, and what cannot be compared refused in words."""

import json

import ir_measures
import numpy as np
import pytest
from scipy import stats
from small_run import JUDGEMENTS, save_checkpoint, small_recipe, write_run
from typer.testing import CliRunner

from distill.cli import app
from distill.errors import DataError, RecipeError
from distill.evaluation.compare import compare
from distill.evaluation.evaluate import evaluate
from distill.evaluation.metrics import randomisation_test
from distill.reporting.comparison import print_comparison


def write_files(folder, queries: int = 30):
    """Qrels and two runs of random order, the second with a query missing."""
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


def test_run_files_are_compared_as_ir_measures_and_scipy_would(tmp_path):
    a, b, qrels = write_files(tmp_path)
    result = compare(a, b, ["nDCG@10", "MRR@10"], qrels=qrels, most=3)
    judged = [row for row in ir_measures.read_trec_qrels(str(qrels)) if row.query_id != "unjudged"]
    graded = {row.query_id for row in judged if row.relevance > 0}
    assert result["queries"] == len(graded)
    for row, measure in zip(result["comparisons"], (ir_measures.nDCG @ 10, ir_measures.RR @ 10), strict=True):
        values = []
        for path in (a, b):
            found = {
                m.query_id: m.value
                for m in ir_measures.iter_calc(
                    [measure], [row for row in judged if row.query_id in graded], ir_measures.read_trec_run(str(path))
                )
            }
            values.append(np.array([found.get(query, 0.0) for query in sorted(graded)]))
        one, other = values
        assert (row["a"], row["b"]) == pytest.approx((one.mean(), other.mean()))
        assert row["t_test"] == pytest.approx(stats.ttest_rel(one, other).pvalue)
        drawn = np.random.default_rng(1).choice([-1, 1], (20_000, len(one))) @ (one - other)
        assert row["randomisation_test"] == pytest.approx(np.mean(np.abs(drawn) >= abs((one - other).sum())), abs=0.02)
        assert [row["wins"], row["losses"], row["ties"]] == [
            (one > other).sum(),
            (one < other).sum(),
            (one == other).sum(),
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
        save_checkpoint(tiny_mlm, folder.model, pooling=pooling)
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
    assert f"{row['a']:.4f}" in shown and all(found["text"] in shown for found in result["differ_most"])


def test_what_cannot_be_compared_is_refused(runs, tmp_path, monkeypatch):
    one, two = runs
    a, b, qrels = write_files(tmp_path)
    with pytest.raises(DataError, match="--qrels"):
        compare(a, b)
    with pytest.raises(DataError, match="run of other queries"):
        compare(_renamed(a), b, qrels=qrels)
    with pytest.raises(DataError, match="not evaluated yet"):
        compare(one.root, tmp_path)
    with pytest.raises(RecipeError, match="--metric: 'accuracy'"):
        compare(one.root, two.root, ["accuracy"])
    monkeypatch.setitem(JUDGEMENTS, "test", [(0, 7, 1), *JUDGEMENTS["test"][1:]])
    judged_otherwise = write_run(tmp_path / "three")
    judged_otherwise.metrics.mkdir()
    for file in (one.evaluation, one.trec_run("student")):
        (judged_otherwise.metrics / file.name).write_text(file.read_text())
    with pytest.raises(DataError, match="query 'q0', passage 'p7': grade 2 and grade 1"):
        compare(one.root, judged_otherwise.root)
    a.write_text(a.read_text() + "q0 Q0 d3 1 2.0 x\n")
    with pytest.raises(DataError, match=r"a\.run:601: query 'q0' has passage 'd3' twice"):
        compare(a, b, qrels=qrels)


def _renamed(path):
    other = path.with_name("other.run")
    other.write_text(path.read_text().replace("q", "x"))
    return other
