"""`teachers.*.weight: auto` in a run whose evaluated split is not the one that the weights are fitted on."""

import json

import pytest

from distill.pipeline.run import run_part, run_pipeline
from distill.pipeline.status import stage_states
from distill.recipe.expand import open_run, open_runs
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from tests.helpers.whole_run import write_beir
from tests.importing.files import lines


@pytest.fixture
def recipe(tmp_path, tiny_mlm, tiny_sentence):
    """The tiny collection with 40 judged development queries, of those that it trains on."""
    write_beir(tmp_path / "data")
    qrels = (tmp_path / "data" / "qrels" / "train.tsv").read_text().splitlines()
    judged = [line for name in ("train", "dev") for line in _judgements(tmp_path, name)]
    lines(tmp_path / "data" / "qrels" / "dev.tsv", [qrels[0], *judged])
    return parse_recipe(
        {
            "name": "t",
            "run_dir": str(tmp_path / "run"),
            "data": {"source": {"kind": "beir", "path": str(tmp_path / "data")}},
            "mine": {"miners": {"bm25": {"kind": "bm25", "top": 5}}, "rerank_depth": 5},
            "teachers": {
                "bm25": {"kind": "bm25", "weight": "auto"},
                "random": {"kind": "bi-encoder", "model": str(tiny_sentence), "weight": "auto"},
            },
            "student": {"model": str(tiny_mlm), "query_max_length": 16, "passage_max_length": 24},
            "train": {"batch_size": 8, "negatives": 3, "steps": 2},
        }
    )


def _judgements(tmp_path, name):
    return (tmp_path / "data" / "qrels" / f"{name}.tsv").read_text().splitlines()[1:]


def test_development_queries_are_scored_and_the_weights_are_in_the_labels(recipe):
    folder = RunFolder(recipe.folder)
    for stage in ("import", "mine"):
        run_pipeline(recipe, only=stage)
    run_part(open_run(recipe), "score", (0, 1))
    assert read_manifest(folder.scores("random", "dev")) is not None  # although evaluate.split is test
    run_pipeline(recipe, only="label")
    chosen = {entry["field"]: entry for entry in json.loads(folder.resolved.read_text())}
    assert set(chosen) == {"data.language", "teachers.bm25.weight", "teachers.random.weight"}
    weights = {name: fields["weight"] for name, fields in read_manifest(folder.labels()).fields["teachers"].items()}
    assert weights == {name: chosen[f"teachers.{name}.weight"]["value"] for name in recipe.teachers}
    assert weights["bm25"] > 0
    states = {state.stage: state.state for state in stage_states(open_runs(recipe))}
    assert states["score"] == states["label"] == "done"
    run_part(open_run(recipe), "score", (0, 1))  # nothing is stale once the weights are known
