"""Mining on Ray gives the candidates of one process, for any chunk and shard size and after kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pyarrow as pa
import pytest
import ray

from distill.config import Mine
from distill.recipe.load import dump_recipe
from distill.run.files import xxh128_file
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, write_manifest
from distill.store.arrow import write_ipc
from distill.store.candidates import read_candidates
from distill.store.judgements import JUDGEMENT_SCHEMA
from ray_jobs.mine import search_resources
from tests.helpers.small_run import (
    save_checkpoint,
    small_recipe,
    write_no_identity,
    write_passages,
    write_queries,
    write_run,
)
from tests.helpers.stages import mine as mine_here
from tests.helpers.stages import mine_on_ray as mine
from tests.ray_jobs.chaos import PATIENCE, wait_for, workers
from tests.ray_jobs.small_job import WORDS


@pytest.fixture(scope="session")
def splade(tiny_mlm, tmp_path_factory):
    return save_checkpoint(tiny_mlm, tmp_path_factory.mktemp("splade") / "checkpoint")


def recipe_for(folder, *models, **mine_section):
    kinds = dict(zip(("dense", "splade"), models, strict=False))
    miners = {
        kind: {"kind": kind, "model": str(model), "top": 2, "sample": 1, "depth": 6} for kind, model in kinds.items()
    }
    miners["bm25"] = {"kind": "bm25", "top": 2}
    return small_recipe(
        folder.root, mine={"miners": miners, "shard_queries": 1, "shard_passages": 4, "actors": 2, **mine_section}
    )


def candidates(folder: RunFolder) -> dict[str, bytes]:
    return {str(path.relative_to(folder.root)): path.read_bytes() for path in (folder.root / "candidates").rglob("*.*")}


def test_workers_mine_the_candidates_of_one_process_byte_for_byte(cluster, tmp_path, tiny_sentence, splade):
    alone, shared = write_run(tmp_path / "alone"), write_run(tmp_path / "shared")
    mine_here(recipe_for(alone, tiny_sentence, splade), alone)
    mine(recipe_for(shared, tiny_sentence, splade), shared)
    assert len(list((shared.data / "index").glob("*/chunk-*.arrow"))) == 2 * 3  # ten passages, four per chunk
    assert candidates(shared) == candidates(alone)
    assert sum(name.endswith(".arrow") for name in candidates(shared)) == 10


def test_workers_mine_given_rankings_as_one_process_does(cluster, tmp_path):
    path = tmp_path / "given.run"
    path.write_text("".join(f"q{q} Q0 p{(3 * q + i) % 10} {i} {-i} x\n" for q in range(4) for i in range(8)))
    miners = {"given": {"kind": "run", "path": str(path), "top": 2, "sample": 1, "depth": 6}}
    alone, shared = write_run(tmp_path / "alone"), write_run(tmp_path / "shared")
    mine_here(recipe_for(alone, miners=miners), alone)
    mine(recipe_for(shared, miners=miners), shared)
    assert candidates(shared) == candidates(alone) and not list(shared.data.glob("index/*/chunk-*"))


def test_candidates_do_not_depend_on_the_chunk_size(tmp_path, tiny_sentence, splade):
    candidates_by_size = []
    for size in (1, 3, 100):
        folder = write_run(tmp_path / str(size))
        mine_here(recipe_for(folder, tiny_sentence, splade, shard_queries=100, shard_passages=size), folder)
        shard = read_candidates(folder.candidates("train") / "part-00000.arrow")
        candidates_by_size.append([shard.passages.tolist(), shard.source.tolist(), shard.rank.tolist()])
    assert candidates_by_size[0] == candidates_by_size[1] == candidates_by_size[2]


def test_existing_chunks_are_reused_and_another_model_gets_its_own(tmp_path, tiny_sentence, splade):
    folder = write_run(tmp_path / "run")
    recipe = recipe_for(folder, tiny_sentence, splade)
    mine_here(recipe, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.data.glob("index/*/chunk-*")}
    removed = min(before)
    checksum = xxh128_file(removed)
    removed.unlink()
    (folder.candidates("train") / "manifest.json").unlink()
    (folder.candidates("train") / "part-00002.arrow").unlink()
    mine_here(recipe, folder)
    after = {path: path.stat().st_mtime_ns for path in folder.data.glob("index/*/chunk-*")}
    assert {path for path in before if before[path] != after[path]} == {removed} and xxh128_file(removed) == checksum
    (splade / "note.txt").write_text("other content")
    shutil.rmtree(folder.root / "candidates")
    mine_here(recipe, folder)
    (splade / "note.txt").unlink()
    assert len(list(folder.data.glob("index/*/chunk-*"))) == 9


@pytest.mark.parametrize(
    "kinds,gpus,expected",
    [
        (["bm25"], 1.0, (2.0, 0.0)),  # needs no GPU
        (["splade", "dense"], 0.0, (2.0, 0.0)),  # none in the cluster, or none wanted
        (["splade", "run"], 0.5, (2.0, 0.5)),
        (["splade", "bm25"], 1.0, (8.0, 1.0)),  # BM25 gets the cores of the GPU, as many as the poorest node has
        (["splade", "bm25"], 0.1, (2.0, 0.1)),
    ],
    ids=str,
)
def test_workers_search_on_gpus_where_a_miner_has_a_model(kinds, gpus, expected):
    nodes = [{"CPU": 64.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 96.0}]
    fields = {"bm25": {}, "run": {"path": "given.run"}, "splade": {"model": "m"}, "dense": {"model": "m"}}
    section = Mine(cpus=2, miners={kind: {"kind": kind, **fields[kind]} for kind in kinds})
    assert search_resources(section, list(section.miners.values()), gpus, nodes) == expected


def test_after_killed_workers_and_a_killed_driver_only_missing_chunks_are_encoded(cluster, tmp_path, splade):
    folder, alone = many_passages(tmp_path / "run"), many_passages(tmp_path / "alone")
    miners = {"splade": {"kind": "splade", "model": str(splade), "top": 3}}
    recipe = recipe_for(folder, miners=miners, shard_passages=1)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))

    def chunks() -> list:
        return list(folder.data.glob("index/*/chunk-*.arrow"))

    driver_log = tmp_path / "driver.log"
    with open(driver_log, "w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_jobs.drive", str(tmp_path / "recipe.yaml"), "mine"],
            stderr=log,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        )
    try:
        wait_for(chunks, driver)
        workers("MineWorker")[0].kill()
        wait_for(lambda: "worker died" in driver_log.read_text(), driver)
    finally:
        driver.kill()
    assert driver.wait(timeout=PATIENCE) == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in chunks()}
    mine(recipe, folder)
    assert len(chunks()) == 400 and before.items() <= {path: path.stat().st_mtime_ns for path in chunks()}.items()
    mine_here(recipe, alone)
    assert candidates(folder) == candidates(alone)


def many_passages(root) -> RunFolder:
    """400 passages of a few words, so that there are many chunks, and eight queries."""
    folder = RunFolder(root)
    write_passages(folder.passages, [" ".join(WORDS[i % 700 : i % 700 + 5]) for i in range(400)])
    write_no_identity(folder, ["train"])
    write_queries(folder.queries("train"), [" ".join(WORDS[i * 31 : i * 31 + 3]) for i in range(8)])
    rows = pa.RecordBatch.from_pydict(
        dict(zip(JUDGEMENT_SCHEMA.names, [list(range(8)), [i * 31 for i in range(8)], [1] * 8], strict=True)),
        JUDGEMENT_SCHEMA,
    )
    write_ipc(folder.judgements("train"), JUDGEMENT_SCHEMA, [rows], {"fingerprint": "test"})
    write_manifest(folder.data, Manifest({"stage": "import", "source": "test"}))
    return folder
