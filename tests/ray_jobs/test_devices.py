"""A job that was begun on another kind of device goes on where the recipe says so, and its shards say what they are."""

from __future__ import annotations

import json

import ray
from small_job import recipe_for, write_job

from distill.data.files import read_json, write_json
from distill.data.fingerprint import fingerprint
from distill.data.scores import read_score_shard
from ray_jobs.score import _gpus, score
from teachers.execution import Execution
from teachers.identity import identity


def test_the_record_rules_over_what_the_cluster_has_and_the_recipe_over_the_record(cluster, tmp_path):
    folder = write_job(tmp_path / "run", queries=4)
    teachers = {"bm25": {"kind": "bm25"}}
    assert not ray.cluster_resources().get("GPU")
    recipe = recipe_for(folder, teachers)
    this = fingerprint(identity("bm25", recipe.teachers["bm25"], folder))
    assert _gpus(recipe, folder, "bm25", this) == 0
    frozen = {"teacher": this, **Execution("cuda", "float32", 1, 65536).record()}
    write_json(folder.scores("bm25", "execution.json"), frozen)
    assert _gpus(recipe, folder, "bm25", this) == 1  # nodes with GPUs are waited for
    assert _gpus(recipe, folder, "bm25", "another model by this name") == 0
    recipe = recipe_for(folder, teachers, gpus=0)
    assert score(recipe, folder)["shards"] == 3
    assert read_json(folder.scores("bm25", "execution.json")) == frozen
    made_under = json.loads(read_score_shard(folder.scores("bm25", "train") / "part-00000.arrow").metadata["execution"])
    assert made_under["device"] == "cpu"
