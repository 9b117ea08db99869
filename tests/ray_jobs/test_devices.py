"""A job started on another kind of device can resume if the recipe says so; its shards record their device."""

from __future__ import annotations

import json

import ray

from distill.run.files import read_json, write_json
from distill.run.fingerprint import fingerprint
from distill.run.run import Run
from distill.store.scores import read_score_shard
from ray_jobs.score import gpus_per_actor
from teachers.execution import Execution
from teachers.identity import identity
from teachers.spec import TeacherSpec
from tests.helpers.stages import score
from tests.ray_jobs.small_job import recipe_for, write_job


def test_gpus_per_actor_follow_the_recipe_then_the_record_then_the_cluster(cluster, tmp_path):
    folder = write_job(tmp_path / "run", queries=4)
    teachers = {"bm25": {"kind": "bm25"}}
    assert not ray.cluster_resources().get("GPU")
    recipe = recipe_for(folder, teachers)
    model = fingerprint(identity(TeacherSpec("bm25", recipe.teachers["bm25"], folder)))
    assert gpus_per_actor(Run(recipe, folder), "bm25", model) == 0
    frozen = {"teacher": model, **Execution("cuda", "float32", 1, 65536).record()}
    write_json(folder.scores("bm25", "execution.json"), frozen)
    assert gpus_per_actor(Run(recipe, folder), "bm25", model) == 1  # the job waits for nodes with GPUs
    assert gpus_per_actor(Run(recipe, folder), "bm25", "another model by this name") == 0
    recipe = recipe_for(folder, teachers, gpus=0)
    assert score(recipe, folder)["shards"] == 3
    assert read_json(folder.scores("bm25", "execution.json")) == frozen
    made_under = json.loads(read_score_shard(folder.scores("bm25", "train") / "part-00000.arrow").metadata["execution"])
    assert made_under["device"] == "cpu"
