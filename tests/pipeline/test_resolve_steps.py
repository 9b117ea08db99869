"""Steps and training queries that follow from each other: `train.steps: auto`, `data.train_queries: auto`."""

from __future__ import annotations

import json

from distill.pipeline.estimate import dry_run
from distill.pipeline.resolve import resolve, settle
from distill.pipeline.run import run_pipeline
from distill.pipeline.status import stage_states
from distill.recipe.expand import open_run, open_runs
from distill.recipe.load import load_recipe, parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from tests.importing.files import lines


def recipe(tmp_path, model, steps, train_queries="auto", rounds=(), queries=60, folder="run"):
    rows = [{"query": f"question {i} of many", "positive": f"question {i} has a long answer"} for i in range(queries)]
    path = lines(tmp_path / f"{queries}.jsonl", rows)
    return parse_recipe(
        {
            "name": "t",
            "run_dir": str(tmp_path / folder),
            "data": {
                "language": "english",
                "source": {"kind": "jsonl", "path": str(path)},
                "train_queries": train_queries,
            },
            "mine": {"miners": {"bm25": {"kind": "bm25", "top": 5}}},
            "teachers": {"bm25": {"kind": "bm25"}},
            "student": {"model": str(model)},
            "train": {"steps": steps, "batch_size": 4, "negatives": 1},
            "rounds": list(rounds),
        }
    )


def test_no_more_queries_are_imported_than_training_reads(tmp_path, tiny_mlm):
    loaded = recipe(tmp_path, tiny_mlm, 3)
    words = {"data.train_queries": "12 (training reads at most 3 batches of 4)"}
    assert dry_run(loaded)[0].chosen == words and not RunFolder(loaded.folder).root.exists()
    run_pipeline(loaded, only="import")
    run = open_run(loaded)
    counts = read_manifest(run.folder.data).counts
    assert counts["queries.train"] == 12 and counts["queries.train.left_out"] == 48
    assert resolve(run).recipe.data.train_queries == 12 and dry_run(loaded)[0].chosen == words
    assert json.loads(run.folder.resolved.read_text())[0]["reason"] == "training reads at most 3 batches of 4"
    assert load_recipe(run.folder.recipe).data.train_queries == "auto"  # as written
    number = recipe(tmp_path, tiny_mlm, 3, train_queries=12)  # the same data as with the number
    assert stage_states(open_runs(number))[0].state == stage_states(open_runs(loaded))[0].state == "done"
    assert stage_states(open_runs(recipe(tmp_path, tiny_mlm, 4)))[0].state == "stale"


def test_steps_are_chosen_from_the_imported_queries_and_the_import_stays_done(tmp_path, tiny_mlm):
    loaded = recipe(tmp_path, tiny_mlm, "auto", queries=500)
    before = dry_run(loaded)[0]
    assert before.chosen["train.steps"] == "auto, chosen after the import (125 assumed here)"
    run_pipeline(loaded, only="import")
    run = resolve(open_run(loaded))
    assert (run.recipe.train.steps, run.recipe.data.train_queries) == (125, 6000)
    reason = "one pass: 500 training queries are 125 batches of 4"
    assert dry_run(loaded)[0].chosen["train.steps"] == f"125 ({reason})"
    assert {entry["field"] for entry in json.loads(run.folder.resolved.read_text())} == {
        "data.train_queries",
        "train.steps",
    }
    run_pipeline(loaded, only="mine")  # refuses to build on a stale import
    assert [state.state for state in stage_states(open_runs(loaded))][:2] == ["done", "done"]
    assert resolve(open_run(loaded, limit=8)).recipe.train.steps == 2  # a rehearsal is one pass over its queries


def test_the_first_round_imports_for_the_longest(tmp_path, tiny_mlm):
    loaded = recipe(tmp_path, tiny_mlm, 3, rounds=[{"train": {"steps": 9}}])
    assert [settle(run).recipe.data.train_queries for run in open_runs(loaded)] == [36, 36]
    epochs = recipe(tmp_path, tiny_mlm, 3, rounds=[{"train": {"steps": None}}])
    assert [settle(run).recipe.data.train_queries for run in open_runs(epochs)] == [None, None]
    assert dry_run(epochs)[0].chosen == {"data.train_queries": "null (train.epochs passes over all of them)"}
