"""The evaluate stage on a small run, against SparseEncoder and ir-measures."""

import json
from functools import partial

import ir_measures
import numpy as np
import pytest
from sentence_transformers import SparseEncoder

from distill.errors import FingerprintError, RecipeError
from distill.evaluation import evaluate as evaluation
from distill.evaluation.collection import open_collection
from distill.evaluation.evaluate import evaluate_student
from distill.evaluation.rerank import rerank
from distill.reporting.table import print_table
from distill.retrieval import encode
from distill.retrieval.encode import encode_blocks
from distill.run.manifest import Manifest, write_manifest
from distill.run.run import Run
from distill.store.candidates import candidate_shards, read_candidates
from distill.store.scores import write_scores
from distill.student.checkpoint import load_student
from tests.evaluation.trained import save_trained
from tests.helpers.small_run import (
    JUDGEMENTS,
    PASSAGES,
    QUERIES,
    save_checkpoint,
    small_recipe,
    write_queries,
    write_run,
)
from tests.helpers.stages import evaluate, mine

TEACHERS = {"one": {"kind": "bm25", "weight": 1.0}, "two": {"kind": "bm25", "weight": 3.0}}


def score(folder, split: str, teacher: str, scores) -> None:
    """Write a teacher's shards; `scores(queries, passages)` gives float32."""
    path, shards = folder.candidates(split), []
    for shard in candidate_shards(path):
        candidates = read_candidates(path / shard.name)
        values = scores(candidates.pair_queries, candidates.passages)
        shards.append(
            write_scores(
                folder.scores(teacher, split) / shard.name, candidates, values, fingerprint="test", teacher=teacher
            )
        )
    write_manifest(folder.scores(teacher, split), Manifest({"teacher": teacher}, tuple(shards)))


@pytest.fixture(scope="module")
def checkpoint(tiny_mlm, tmp_path_factory):
    return save_checkpoint(tiny_mlm, tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def run(tmp_path, tiny_mlm):
    folder = write_run(tmp_path)
    recipe = small_recipe(
        tmp_path, teachers=TEACHERS, mine={"shard_queries": 3, "rerank_depth": 5}, evaluate={"precision": "float32"}
    )
    mine(recipe, folder)
    score(folder, "test", "one", lambda queries, passages: -passages.astype(np.float32))
    score(folder, "test", "two", lambda queries, passages: np.sin(passages + queries).astype(np.float32))
    save_checkpoint(tiny_mlm, folder.start)
    save_trained(tiny_mlm, folder, pooling="sum")
    return recipe, folder


def read_run(path) -> dict[str, list[str]]:
    ranking: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        query, _, passage, rank, _, _ = line.split()
        ranking.setdefault(query, []).append(passage)
        assert int(rank) == len(ranking[query])
    return ranking


def min_max(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min()) if len(scores) > 1 else np.full(len(scores), 0.5)


@pytest.mark.parametrize("block_bytes", [1, 1 << 30])  # block by block, and all at once
def test_every_system_has_a_row_and_students_match_sparse_encoder(run, block_bytes, monkeypatch):
    # no recipe field sets these sizes: ten passages make one block at the product's own
    monkeypatch.setattr(encode, "_SLAB", 3)
    monkeypatch.setattr(evaluation, "encode_blocks", partial(encode_blocks, block_bytes=block_bytes))
    recipe, folder = run
    result = evaluate(recipe, folder)
    assert [row["name"] for row in result["rows"]] == [
        "BM25",
        "rerank-one",
        "rerank-two",
        "rerank-ensemble",
        "start",
        "student",
    ]
    assert result == json.loads(folder.evaluation.read_text())
    for name, path in (("start", folder.start), ("student", folder.model)):
        row = next(row for row in result["rows"] if row["name"] == name)
        model = SparseEncoder(str(path), device="cpu")
        queries = model.encode_query(QUERIES["test"]).to_dense().numpy()
        passages = model.encode_document(PASSAGES).to_dense().numpy()
        ranking = np.argsort(-(queries @ passages.T), axis=1, kind="stable")
        assert read_run(folder.trec_run(name)) == {f"q{i}": [f"p{p}" for p in order] for i, order in enumerate(ranking)}
        qrels = [ir_measures.Qrel(str(q), str(p), grade) for q, p, grade in JUDGEMENTS["test"]]
        scored = [
            ir_measures.ScoredDoc(str(q), str(p), -rank)
            for q, order in enumerate(ranking)
            for rank, p in enumerate(order)
        ]
        expected = ir_measures.calc_aggregate(
            [ir_measures.nDCG @ 10, ir_measures.RR @ 10, ir_measures.R @ 100], qrels, scored
        )
        assert row["metrics"] == pytest.approx({str(measure): value for measure, value in expected.items()})
        assert row["query_terms"] == pytest.approx((queries != 0).sum(1).mean())
        assert row["passage_terms"] == pytest.approx((passages != 0).sum(1).mean())
        products = (queries != 0).astype(float) @ (passages != 0).T.astype(float)
        assert row["flops"] == pytest.approx(products.mean())


def test_rerank_orders_candidates_by_teacher_and_ensemble_scores(run):
    recipe, folder = run
    rankings = rerank(Run(recipe, folder), "test")
    for shard in candidate_shards(folder.candidates("test")):
        candidates = read_candidates(folder.candidates("test") / shard.name)
        for i, query in enumerate(candidates.query.tolist()):
            rows = candidates.passages[candidates.offsets[i] : candidates.offsets[i + 1]]
            assert rankings["one"][query].tolist() == sorted(rows)
            two = np.sin(rows + query)
            assert rankings["two"][query].tolist() == rows[np.argsort(-two)].tolist()
            order = np.argsort(-(1 * min_max(-rows) + 3 * min_max(two)) / 4, kind="stable")
            assert rankings["ensemble"][query].tolist() == rows[order].tolist()


def test_rerank_ties_keep_the_miners_order(run):
    recipe, folder = run
    score(folder, "dev", "one", lambda queries, passages: np.zeros(len(passages), np.float32))
    rankings = rerank(Run(recipe, folder), "dev")
    assert rankings.keys() == {"one"}  # no ensemble while a teacher is missing
    for shard in candidate_shards(folder.candidates("dev")):
        candidates = read_candidates(folder.candidates("dev") / shard.name)
        for i, query in enumerate(candidates.query.tolist()):
            span = slice(candidates.offsets[i], candidates.offsets[i + 1])
            expected = candidates.passages[span][np.argsort(candidates.rank[span])]
            assert rankings["one"][query].tolist() == expected.tolist()


def test_a_finished_evaluation_is_reused_and_another_model_refused(run, tiny_mlm):
    recipe, folder = run
    first = evaluate(recipe, folder)
    written = folder.evaluation.stat().st_mtime_ns
    (folder.model / "README.md").write_text("a model card, written after the evaluation")
    assert evaluate(recipe, folder) == first and folder.evaluation.stat().st_mtime_ns == written
    save_trained(tiny_mlm, folder, activation="log1p_relu")
    with pytest.raises(FingerprintError, match="model"):
        evaluate(recipe, folder)


def test_start_false_leaves_out_the_untrained_student(run):
    recipe, folder = run
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"start": False})})
    assert [row["name"] for row in evaluate(recipe, folder)["rows"]] == [
        "BM25",
        "rerank-one",
        "rerank-two",
        "rerank-ensemble",
        "student",
    ]


def test_without_baselines_only_the_student_is_evaluated(run):
    recipe, folder = run
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"baselines": False})})
    result = evaluate(recipe, folder)
    assert [row["name"] for row in result["rows"]] == ["student"] and result["tests"] == []


def test_evaluation_during_training_agrees_with_the_stage(run):
    recipe, folder = run
    student = load_student(folder.model)
    row = evaluate(recipe, folder)["rows"][-1]
    measured = evaluate_student(student, Run(recipe, folder), "test")
    costs = {name: row[name] for name in ("query_terms", "passage_terms", "flops")}
    assert measured == pytest.approx({**row["metrics"], **costs})
    smaller = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"dev_passages": 7})})
    assert evaluate_student(student, Run(smaller, folder), "test")["nDCG@10"] >= measured["nDCG@10"]


def test_judgements_of_variants_count_for_their_origins(run):
    collection = open_collection(run[1], "train")
    assert collection.grades[2] == {6: 1}
    assert 3 in collection.grades and collection.grades[3] == {3: 1, 2: 0}


def test_a_split_without_judgements_is_refused(run):
    recipe, folder = run
    folder.judgements("test").unlink()
    with pytest.raises(RecipeError, match="no judged test queries"):
        evaluate(recipe, folder)


def test_a_baseline_that_ranks_nothing_is_left_out_of_the_table_with_the_reason(run, capsys):
    recipe, folder = run
    write_queries(folder.queries("test"), ["katze", "aktien", "regen", "hafen"])
    result = evaluate(recipe, folder)
    assert [row["name"] for row in result["rows"]][:1] != ["BM25"]
    assert result["left_out"] == [
        "BM25 is left out: it ranks no passage for any query (no passage shares a word with a query; is data.language "
        "theirs?)"
    ]
    assert all(test["theirs"] != "BM25" for test in result["tests"])
    print_table(result)
    shown = " ".join(capsys.readouterr().out.split())
    assert "BM25 is left out: it ranks no passage" in shown
