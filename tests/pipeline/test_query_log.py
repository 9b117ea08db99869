"""Whole runs that train on queries without judgements, and what they are refused for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from distill.config import Recipe
from distill.errors import RecipeError
from distill.export import export_scores
from distill.labelling.stats import label_stats
from distill.pipeline.preflight import preflight
from distill.pipeline.run import run_pipeline
from distill.pipeline.status import stage_states
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.run.run import Run
from distill.store.candidates import iterate_candidates
from distill.training.batches import TrainingData
from tests.helpers.stages import build_labels, evaluate, import_data, mine, score_local, train
from tests.importing.files import lines

WORDS = ("cat", "dog", "tree", "rain", "ship", "market", "storm", "mat")
CORPUS = [{"_id": f"p{i}", "text": f"the {WORDS[i % 8]} and the {WORDS[(3 * i + 1) % 8]} {i}"} for i in range(24)]
LOG = [f"{WORDS[i % 8]} {WORDS[(i + 3) % 8]}" for i in range(8)]


def recipe(
    tmp_path: Path, model: Path, judged: dict[str, list[str]], training: dict | None = None, **sections
) -> Recipe:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    lines(folder / "corpus.jsonl", CORPUS)
    queries = sorted({row.split("\t")[0] for rows in judged.values() for row in rows})
    lines(folder / "queries.jsonl", [{"_id": query, "text": f"{query} dog rain"} for query in queries])
    for name, rows in judged.items():
        lines(folder / "qrels" / f"{name}.tsv", rows)
    (tmp_path / "log.txt").write_text("\n".join(LOG) + "\n")
    return parse_recipe(
        {
            "name": "t",
            "run_dir": str(tmp_path / "run"),
            "data": {
                "source": {"kind": "beir", "path": str(folder)},
                "query_log": {"path": str(tmp_path / "log.txt")},
                **sections.pop("data", {}),
            },
            "mine": {"miners": {"bm25": {"kind": "bm25", "top": 5}}},
            "teachers": {"bm25": {"kind": "bm25"}},
            "student": {"model": str(model), "query_max_length": 8, "passage_max_length": 12},
            "train": {
                "steps": 2,
                "batch_size": 4,
                "negatives": 3,
                "processes": 1,
                "precision": "fp32",
                **(training or {}),
            },
            **sections,
        }
    )


def trained(loaded: Recipe) -> RunFolder:
    """Run the stages up to the training, in this process."""
    folder = RunFolder(loaded.folder)
    import_data(loaded, folder)
    preflight(Run(loaded, folder))
    mine(loaded, folder)
    score_local(loaded, folder)
    build_labels(loaded, folder)
    train(loaded, folder)
    return folder


TEST = {"test": ["t0\tp1\t1", "t1\tp2\t1"]}


def test_a_log_without_any_training_judgement_is_trained_on_from_import_to_evaluation(tmp_path, tiny_mlm):
    losses = [{"kind": "kl"}, {"kind": "margin-mse"}, {"kind": "infonce", "pseudo_positive": True}]
    loaded = recipe(tmp_path, tiny_mlm, TEST, {"losses": losses})
    folder = trained(loaded)
    mined = read_manifest(folder.candidates("train")).counts
    assert mined["queries"] == mined["queries_without_positives"] == 8 and mined["positives"] == 0
    assert read_manifest(folder.labels()).counts["queries_without_positives"] == 8
    for _, candidates in iterate_candidates(folder.candidates("train")):
        assert not candidates.positive.any() and candidates.rank.min() == 1
    assert len(TrainingData.open(folder)) == 8
    assert label_stats(Run(loaded, folder)).teachers["bm25"].negatives_above_positive == 0.0
    assert evaluate(loaded, folder)["queries"] == 2
    assert {state.state for state in stage_states([Run(loaded, folder)])} == {"done"}
    exported = tmp_path / "lists.jsonl"
    export_scores(Run(loaded, folder), exported, teacher="bm25")
    rows = [json.loads(line) for line in exported.read_text().splitlines()]
    assert len(rows) == 8 and all(set(row["labels"]) == {0} for row in rows)


def test_judged_and_logged_queries_share_batches(tmp_path, tiny_mlm):
    judged = {"train": [f"q{i}\tp{i}\t1" for i in range(4)], **TEST}
    loaded = recipe(tmp_path, tiny_mlm, judged, {"losses": [{"kind": "ranknet"}], "query_weights": "root"})
    data = TrainingData.open(trained(loaded))
    assert sorted(data.query(item)[3] for item in range(len(data))) == [0] * 8 + [1] * 4
    labels = [data.query(item)[2] for item in range(len(data))]
    assert all(np.isfinite(of_query).all() for of_query in labels)


def refused(tmp_path, loaded: Recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        run_pipeline(loaded)
    assert not RunFolder(loaded.folder).candidates("train").exists()  # before mining
    return str(caught.value)


def test_what_needs_a_positive_is_refused_before_mining(tmp_path, tiny_mlm):
    teachers = {"own": {"kind": "cross-encoder", "model": str(tiny_mlm), "fine_tune": {"folds": 2}}}
    loaded = recipe(tmp_path, tiny_mlm, TEST, {"losses": [{"kind": "triplet"}]}, teachers=teachers)
    message = refused(tmp_path, loaded)
    assert "train.losses.0: triplet needs a positive in every list, but 8 training queries" in message
    assert "teachers.own.fine_tune needs training queries with a positive" in message


def test_evaluation_without_judgements_is_refused_with_the_ways_out(tmp_path, tiny_mlm):
    loaded = recipe(tmp_path, tiny_mlm, {}, {"evaluate_every": 1})
    message = refused(tmp_path, loaded)
    assert "no judged test queries; add judged queries, let data.generate make development queries" in message
    assert "train.evaluate_every needs judged development queries" in message and "data.generate" in message
    on_the_log = recipe(tmp_path, tiny_mlm, {}, evaluate={"split": "train"})
    assert "no judged train queries" in refused(tmp_path, on_the_log)


def test_generated_development_queries_evaluate_a_log(tmp_path, tiny_mlm):
    generate = {"kinds": ["sentence"], "per_passage": 1, "min_words": 2, "min_passage_words": 1, "dev_share": 1.0}
    loaded = recipe(
        tmp_path, tiny_mlm, {}, {"evaluate_every": 1}, data={"generate": generate}, evaluate={"split": "dev"}
    )
    rows = [{**row, "text": f"{row['text']}. Ships stay away. Rain falls on mats."} for row in CORPUS]
    lines(tmp_path / "beir" / "corpus.jsonl", rows)
    counts = read_manifest(trained(loaded).data).counts
    assert counts["queries.train"] == counts["queries.train.logged"] == 8 and counts["queries.dev"] == 24


def test_weights_without_a_log_are_refused():
    source = {"kind": "beir", "path": "x"}
    tree = {"name": "t", "data": {"source": source}, "teachers": {"t": {"kind": "bm25"}}, "student": {"model": "x"}}
    with pytest.raises(RecipeError, match=r"train.query_weights has no effect without data.query_log"):
        parse_recipe({**tree, "train": {"query_weights": "count"}})
