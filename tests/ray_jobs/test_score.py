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
from small_job import recipe_for, score_bytes, write_job

from distill.data.candidates import iterate_candidates
from distill.data.files import read_json
from distill.data.fingerprint import fingerprint
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest, verify
from distill.data.scores import read_scores
from distill.errors import FingerprintError, TeacherError
from distill.recipe_file import dump_recipe
from ray_jobs.joblog import JobLog
from ray_jobs.score import score, score_local
from teachers.base import Pairs, open_teacher
from teachers.identity import identity

HERE = Path(__file__).parent


def steady(tmp_path: Path, seconds: float = 0, **options) -> dict:
    (tmp_path / "calls.seconds").write_text(str(seconds))
    return {
        "steady": {
            "kind": "custom",
            "cls": "job_workers:Steady",
            "options": {"log": str(tmp_path / "calls.log"), **options},
        }
    }


def calls(tmp_path: Path) -> list[list[str]]:
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
    assert score(recipe_for(many, models), many)["shards"] == 0  # done: nothing is scored again


def test_shards_hold_the_teachers_scores_and_the_record_they_were_made_under(tmp_path, models):
    folder = write_job(tmp_path / "run")
    recipe = recipe_for(folder, {"ranker": {**models["ranker"], "dtype": "float32"}})
    score_local(recipe, folder)
    teacher = open_teacher("ranker", recipe.teachers["ranker"], folder)
    for (_, candidates), (_, scores) in zip(
        iterate_candidates(folder.candidates("train")), read_scores(folder, "ranker", "train"), strict=True
    ):
        again = teacher.score(Pairs(candidates.pair_queries, candidates.passages, "train"))
        assert scores.values.tolist() == pytest.approx(again.tolist(), abs=1e-5)
    record = read_json(folder.scores("ranker", "execution.json"))
    teacher = fingerprint(identity("ranker", recipe.teachers["ranker"], folder))
    assert record == {"teacher": teacher, "device": "cpu", "precision": "float32", "threads": 1, "batch_tokens": 4096}


def test_a_killed_worker_costs_its_shard_and_nothing_else(cluster, tmp_path):
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


def test_a_killed_driver_is_started_again_and_no_committed_shard_is_scored_twice(tmp_path):
    folder = write_job(tmp_path / "run")
    recipe = recipe_for(folder, steady(tmp_path, seconds=0.3))
    committed = _start_and_kill_driver(recipe, folder, tmp_path, shards=4)
    score_local(recipe, folder)
    again = [query for query, times in Counter(query for _, _, query in calls(tmp_path)).items() if times > 1]
    assert committed >= 4
    assert len(again) <= 2  # what the two workers had in hand when they died
    assert score_bytes(folder) == undisturbed(tmp_path)


def test_two_drivers_share_the_work(cluster, tmp_path):
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


def test_a_job_array_shares_out_the_shards(tmp_path, models):
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


def test_a_shard_damaged_after_its_task_ended_is_not_taken_into_the_manifest(tmp_path):
    """Of a job array: the last task looks at the others' checksums in their logs."""
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
    score_local(recipe, folder, part=((names.index(path.name) + 1) % 3, 3))  # the share of another task
    assert not (home / "manifest.json").exists() and path.with_name("part-00001.arrow.damaged").exists()
    score_local(recipe, folder)
    assert score_bytes(folder) == whole


def test_nan_is_refused_with_the_pair_and_nothing_is_committed_for_it(cluster, tmp_path):
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


def test_scores_of_another_recipe_are_never_mixed_in(tmp_path, models):
    folder = write_job(tmp_path / "run", queries=4)
    score_local(recipe_for(folder, {"ranker": models["ranker"]}), folder)
    shorter = recipe_for(folder, {"ranker": {**models["ranker"], "max_length": 24}})
    with pytest.raises(FingerprintError, match="max_length 48 -> 24"):
        score_local(shorter, folder)
    for split in ("train", "test"):  # an unfinished folder is protected as well
        (folder.scores("ranker", split) / "manifest.json").unlink()
    with pytest.raises(FingerprintError, match="max_length 48 -> 24"):
        score_local(shorter, folder)


def _start_and_kill_driver(recipe, folder: RunFolder, tmp_path: Path, shards: int) -> int:
    """Run the job in another process, kill it hard once `shards` are there; returns how many it left."""
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    driver = subprocess.Popen(
        [sys.executable, str(HERE / "drive.py"), str(tmp_path / "recipe.yaml")],
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
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
