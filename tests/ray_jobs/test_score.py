"""The scoring job on real Ray: the same bytes on one worker or many, after kills of workers and drivers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder

from distill.errors import FingerprintError, TeacherError
from distill.recipe.load import dump_recipe
from distill.run.files import read_json
from distill.run.fingerprint import fingerprint
from distill.run.joblog import JobLog
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest, verify
from distill.store.candidates import iterate_candidates
from distill.store.scores import read_scores
from distill.store.texts import TextStore
from teachers.identity import identity
from teachers.spec import TeacherSpec
from tests.helpers.stages import score, score_local
from tests.ray_jobs.small_job import recipe_for, score_bytes, steady, write_job


def calls(tmp_path: Path) -> list[list[str]]:
    """Process id, time and first query of every call of the steady teacher."""
    path = tmp_path / "calls.log"
    return [line.split(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []


def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    folder = write_job(tmp_path / "undisturbed")
    score_local(recipe_for(folder, steady(tmp_path)), folder)
    return score_bytes(folder)


@pytest.fixture
def models(tiny_classifier, tiny_sentence) -> dict:
    return {
        "ranker": {"kind": "cross-encoder", "model": str(tiny_classifier), "max_length": 48},
        "dense": {"kind": "bi-encoder", "model": str(tiny_sentence), "max_length": 48},
        "bm25": {"kind": "bm25"},
    }


def test_all_teachers_in_one_job_give_the_bytes_of_one_process(cluster, tmp_path, models):
    one, many = write_job(tmp_path / "one"), write_job(tmp_path / "many")
    score_local(recipe_for(one, models), one)
    counters = score(recipe_for(many, models), many)
    assert score_bytes(many) == score_bytes(one)
    assert counters["shards"] == 3 * 13 and counters["pairs"] == 3 * 26 * 12
    for teacher in models:
        for split in ("train", "test"):
            assert not verify(many.scores(teacher, split))
            pairs = zip(iterate_candidates(many.candidates(split)), read_scores(many, teacher, split), strict=True)
            for (name, candidates), (same, scores) in pairs:
                assert name == same
                assert candidates.query.tolist() == scores.query.tolist()
                assert candidates.offsets.tolist() == scores.offsets.tolist()
    assert score(recipe_for(many, models), many)["shards"] == 0  # nothing is scored again


def test_shards_hold_the_teachers_scores_and_the_record_they_were_made_under(tmp_path, models):
    folder = write_job(tmp_path / "run")
    recipe = recipe_for(folder, {"ranker": {**models["ranker"], "dtype": "float32"}})
    score_local(recipe, folder)
    reference = CrossEncoder(models["ranker"]["model"], max_length=48, device="cpu")
    queries, passages = TextStore.open(folder.queries("train")), TextStore.open(folder.passages)
    for (_, candidates), (_, scores) in zip(
        iterate_candidates(folder.candidates("train")), read_scores(folder, "ranker", "train"), strict=True
    ):
        texts = zip(queries.texts(candidates.pair_queries), passages.texts(candidates.passages), strict=True)
        expected = reference.predict(list(texts), activation_fn=torch.nn.Identity())
        assert scores.values.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    record = read_json(folder.scores("ranker", "execution.json"))
    model = fingerprint(identity(TeacherSpec("ranker", recipe.teachers["ranker"], folder)))
    assert record == {"teacher": model, "device": "cpu", "precision": "float32", "threads": 1, "batch_tokens": 4096}


def test_a_killed_worker_loses_only_the_shard_it_was_scoring(cluster, tmp_path):
    folder = write_job(tmp_path / "run")
    recipe = recipe_for(folder, steady(tmp_path, seconds=0.15))

    def kill_one() -> None:
        while len(calls(tmp_path)) < 3:
            time.sleep(0.05)
        os.kill(int(calls(tmp_path)[-1][0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    counters = score(recipe, folder)
    killer.join()
    assert counters["deaths"] == 1 and counters["shards"] == 13
    assert score_bytes(folder) == undisturbed(tmp_path)
    assert [event["event"] for event in JobLog(folder).events()].count("death") == 1


def test_after_a_killed_driver_no_committed_shard_is_scored_twice(tmp_path):
    folder = write_job(tmp_path / "run")
    recipe = recipe_for(folder, steady(tmp_path, seconds=0.3))
    committed = _start_and_kill_driver(recipe, folder, tmp_path, shards=4)
    score_local(recipe, folder)
    again = [query for query, times in Counter(query for _, _, query in calls(tmp_path)).items() if times > 1]
    assert committed >= 4
    assert len(again) <= 2  # the two shards that the workers were scoring
    assert score_bytes(folder) == undisturbed(tmp_path)


def test_a_ray_driver_and_a_local_process_share_one_folder(cluster, tmp_path):
    folder = write_job(tmp_path / "run")
    recipe = recipe_for(folder, steady(tmp_path, seconds=0.1))
    errors = []

    def other() -> None:
        try:
            score_local(recipe, folder)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    score(recipe, folder)
    thread.join()
    assert not errors
    assert score_bytes(folder) == undisturbed(tmp_path)
    assert not verify(folder.scores("steady", "train"))


def test_a_job_array_splits_the_shards_evenly_and_gives_the_bytes_of_one_process(tmp_path, models):
    whole, array = write_job(tmp_path / "whole"), write_job(tmp_path / "array")
    score_local(recipe_for(whole, models), whole)
    done = []
    for part in range(3):
        assert read_manifest(array.scores("ranker", "train")) is None
        done.append(score_local(recipe_for(array, models), array, part=(part, 3))["shards"])
    assert score_bytes(array) == score_bytes(whole)
    assert sum(done) == 39 and max(done) - min(done) <= 1
    assert read_manifest(array.scores("dense", "test")) is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-40],
        lambda data: b"\1" + data[1:],
        lambda data: b"",
        lambda data: data.replace(data[600:608], b"\7" * 8),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_set_aside_and_scored_again(tmp_path, damage, finished):
    folder = write_job(tmp_path / "run", queries=6)
    recipe = recipe_for(folder, steady(tmp_path))
    score_local(recipe, folder)
    whole = score_bytes(folder)
    path = folder.scores("steady", "train") / "part-00001.arrow"
    path.write_bytes(damage(path.read_bytes()))
    if not finished:
        (path.parent / "manifest.json").unlink()
    assert score_local(recipe, folder)["shards"] == 1
    assert score_bytes(folder) == whole
    assert path.with_name("part-00001.arrow.damaged").exists()


def test_the_last_array_task_checks_the_other_tasks_shards_against_their_logged_checksums(tmp_path):
    folder = write_job(tmp_path / "run", queries=6)
    recipe = recipe_for(folder, steady(tmp_path))
    score_local(recipe, folder)
    whole, home = score_bytes(folder), folder.scores("steady", "train")
    (home / "manifest.json").unlink()
    path = home / "part-00001.arrow"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    names = [shard.name for shard in read_manifest(folder.candidates("train")).shards]
    score_local(recipe, folder, part=((names.index(path.name) + 1) % 3, 3))  # a task that did not write it
    assert not (home / "manifest.json").exists() and path.with_name("part-00001.arrow.damaged").exists()
    score_local(recipe, folder)
    assert score_bytes(folder) == whole


def test_a_nan_score_is_reported_with_its_pair_and_its_shard_is_not_committed(cluster, tmp_path):
    folder = write_job(tmp_path / "run", queries=2)
    recipe = recipe_for(folder, steady(tmp_path, nan=True))
    with pytest.raises(
        TeacherError,
        match=r"^steady/(train|test)/part-00000.arrow: teacher .steady. returned nan for "
        r"query .q1. \(row 1\) and passage 'p\d+' \(row \d+\)",
    ):
        score(recipe, folder)
    assert not score_bytes(folder)


def test_a_teacher_that_cannot_be_loaded_stops_the_job_before_anything_is_written(tmp_path, models):
    folder = write_job(tmp_path / "run", queries=2)
    recipe = recipe_for(folder, {**models, "gone": {"kind": "cross-encoder", "model": str(tmp_path / "gone")}})
    with pytest.raises(TeacherError, match="'gone'"):
        score(recipe, folder)
    assert not (folder.root / "scores").exists()


def test_scores_of_other_inputs_are_refused_also_in_an_unfinished_folder(tmp_path, models):
    folder = write_job(tmp_path / "run", queries=4)
    score_local(recipe_for(folder, {"ranker": models["ranker"]}), folder)
    shorter = recipe_for(folder, {"ranker": {**models["ranker"], "max_length": 24}})
    with pytest.raises(FingerprintError, match="max_length 48 -> 24"):
        score_local(shorter, folder)
    for split in ("train", "test"):
        (folder.scores("ranker", split) / "manifest.json").unlink()
    with pytest.raises(FingerprintError, match="max_length 48 -> 24"):
        score_local(shorter, folder)


def _start_and_kill_driver(recipe, folder: RunFolder, tmp_path: Path, shards: int) -> int:
    """Run the job in another process and kill it after `shards` commits; returns the number of committed shards."""
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    driver = subprocess.Popen([sys.executable, "-m", "tests.ray_jobs.drive", str(tmp_path / "recipe.yaml")])
    try:
        while len(score_bytes(folder)) < shards:
            assert driver.poll() is None, "the driver ended before it could be killed"
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()
    pids = {int(pid) for pid, *_ in calls(tmp_path)}
    while any(map(_alive, pids)):  # Ray ends with its driver
        time.sleep(0.05)
    return len(score_bytes(folder))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
