"""The cost curve over top-k caps against SparseEncoder's own cap and ir-measures; search through Seismic."""

from dataclasses import replace

import ir_measures
import numpy as np
import pytest
from scipy import sparse
from sentence_transformers import SparseEncoder

from distill.errors import FingerprintError, RecipeError
from distill.evaluation.collection import open_collection
from distill.evaluation.curve import cost_curve
from distill.evaluation.stage import evaluation_fields
from distill.reporting.report import write_report
from distill.reporting.table import caption, print_table
from distill.run.run import Run
from tests.evaluation.trained import save_trained
from tests.helpers.small_run import JUDGEMENTS, PASSAGES, QUERIES, small_recipe, write_run
from tests.helpers.stages import evaluate


@pytest.fixture
def run(tmp_path, tiny_mlm):
    folder = write_run(tmp_path)
    save_trained(tiny_mlm, folder)
    return folder


def recipe_with(folder, **options):
    return small_recipe(folder.root, evaluate={"baselines": False, "precision": "float32", **options})


@pytest.mark.parametrize("of", ["both", "passages", "queries"])
def test_every_cap_matches_sparse_encoders_max_active_dims(run, of):
    result = evaluate(recipe_with(run, top_ks=[9, 3], top_ks_of=of), run)
    curve = result["curve"]
    assert [row["top_k"] for row in curve["rows"]] == [3, 9, None]
    model = SparseEncoder(str(run.model), device="cpu")
    for row in curve["rows"]:
        query_cap, cap = (row["top_k"] if of in ("both", side) else None for side in ("queries", "passages"))
        queries = model.encode_query(QUERIES["test"], max_active_dims=query_cap).to_dense().numpy()
        passages = model.encode_document(PASSAGES, max_active_dims=cap).to_dense().numpy()
        scores = queries @ passages.T
        qrels = [ir_measures.Qrel(str(q), str(p), grade) for q, p, grade in JUDGEMENTS["test"]]
        hits = [
            ir_measures.ScoredDoc(str(q), str(p), -rank)
            for q in range(len(queries))
            for rank, p in enumerate(np.argsort(-scores[q], kind="stable"))
            if scores[q, p] > 0
        ]
        expected = ir_measures.calc_aggregate(
            [ir_measures.nDCG @ 10, ir_measures.RR @ 10, ir_measures.R @ 100], qrels, hits
        )
        assert row["metrics"] == pytest.approx({str(measure): value for measure, value in expected.items()})
        assert row["query_terms"] == pytest.approx((queries != 0).sum(1).mean())
        assert row["passage_terms"] == pytest.approx((passages != 0).sum(1).mean())
        assert row["flops"] == pytest.approx(((queries != 0).astype(float) @ (passages != 0).T.astype(float)).mean())
        assert row["postings"] == (passages != 0).sum()
        terms = (passages != 0).any(axis=0).sum()  # of the one block
        assert row["inverted_bytes"] == 6 * row["postings"] + 12 * terms + 4 * (passages.shape[1] + 1) + 8 * 2
        assert row["seismic_bytes"] > 4 * row["postings"]
        assert 0 < row["latency_ms"]["median"] <= row["latency_ms"]["p95"]
    assert curve["rows"][-1]["metrics"] == result["rows"][-1]["metrics"]


def test_the_curve_through_seismic_agrees_with_exact_search(run):
    exact = evaluate(recipe_with(run, top_ks=[5]), run)["curve"]
    (run.metrics / "manifest.json").unlink()
    cfg = {"search": "seismic", "seismic": {"query_cut": 64, "heap_factor": 1.0}, "top_ks": [5]}
    curve = evaluate(recipe_with(run, **cfg), run)["curve"]
    assert (exact["search"], curve["search"]) == ("exact", "seismic")
    for row in (*exact["rows"], *curve["rows"]):
        assert row.pop("latency_ms")["median"] > 0
    assert curve["rows"] == exact["rows"]


def test_the_cost_curve_is_shown_under_the_table_and_in_the_report(run, capsys):
    recipe = recipe_with(run, top_ks=[3])
    print_table(evaluate(recipe, run))
    assert "capped at their k strongest terms" in " ".join(capsys.readouterr().out.split())
    page = write_report(Run(recipe, run), {}).read_text()
    assert page.count('alt="nDCG@10 by ') == 4 and "Effectiveness against cost" in page


def test_seismic_without_pruning_agrees_with_exact_search(run):
    exact = evaluate(recipe_with(run), run)
    (run.metrics / "manifest.json").unlink()
    cfg = {"search": "seismic", "seismic": {"query_cut": 64, "heap_factor": 1.0}}
    approximate = evaluate(recipe_with(run, **cfg), run)
    assert approximate["rows"] == exact["rows"]
    assert caption(approximate) == "4 test queries, 10 passages, searched through Seismic"
    with pytest.raises(FingerprintError, match="query_cut"):
        evaluate(recipe_with(run, search="seismic"), run)


def test_search_options_enter_the_fingerprint_only_when_used(run):
    plain = evaluation_fields(Run(recipe_with(run), run))
    assert (plain["search"], plain["seismic"], plain["curve"]) == ("exact", None, None)
    curve = evaluation_fields(Run(recipe_with(run, top_ks=[8, 4]), run))
    assert curve["curve"] == {"top_ks": [4, 8], "of": "both"}
    with pytest.raises(RecipeError, match="no effect on exact search"):
        recipe_with(run, seismic={"query_cut": 3})


def test_an_empty_collection_has_a_cost_curve(run):
    no_passages = sparse.csr_matrix((0, 5), dtype=np.float32)
    curve = cost_curve(
        sparse.csr_matrix((1, 5), dtype=np.float32),
        no_passages,
        replace(open_collection(run, "test"), grades={0: {0: 1}}),
        recipe_with(run, top_ks=[2]).evaluate,
        run.root,
    )
    assert [row["postings"] for row in curve["rows"]] == [0, 0]
