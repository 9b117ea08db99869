"""Mining on Ray: the candidates of one process, whatever the chunks, the shards and who is killed in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pyarrow as pa
import pytest
import ray
from chaos import HERE, PATIENCE, wait_for, workers
from small_job import WORDS
from small_run import save_checkpoint, small_recipe, write_passages, write_queries, write_run

from distill.data.arrow import write_ipc
from distill.data.candidates import read_candidates
from distill.data.files import xxh128_file
from distill.data.judgements import JUDGEMENT_SCHEMA
from distill.data.layout import RunFolder
from distill.data.manifest import Manifest, write_manifest
from distill.mining import mine as here
from distill.recipe_file import dump_recipe
from ray_jobs.mine import mine


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
    here.mine(recipe_for(alone, tiny_sentence, splade), alone)
    mine(recipe_for(shared, tiny_sentence, splade), shared)
    assert len(list((shared.data / "index").glob("*/chunk-*.arrow"))) == 2 * 3  # ten passages, four a chunk
    assert candidates(shared) == candidates(alone) and len(candidates(shared)) == 4 + 2 + 4 + 3


def test_the_size_of_a_chunk_changes_no_candidate(tmp_path, tiny_sentence, splade):
    found = []
    for size in (1, 3, 100):
        folder = write_run(tmp_path / str(size))
        here.mine(recipe_for(folder, tiny_sentence, splade, shard_queries=100, shard_passages=size), folder)
        shard = read_candidates(folder.candidates("train") / "part-00000.arrow")
        found.append([shard.passages.tolist(), shard.source.tolist(), shard.rank.tolist()])
    assert found[0] == found[1] == found[2]


def test_chunks_are_made_once_and_another_model_has_its_own(tmp_path, tiny_sentence, splade):
    folder = write_run(tmp_path / "run")
    recipe = recipe_for(folder, tiny_sentence, splade)
    here.mine(recipe, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.data.glob("index/*/chunk-*")}
    gone = min(before)
    content = xxh128_file(gone)
    gone.unlink()
    (folder.candidates("train") / "manifest.json").unlink()
    (folder.candidates("train") / "part-00002.arrow").unlink()
    here.mine(recipe, folder)
    after = {path: path.stat().st_mtime_ns for path in folder.data.glob("index/*/chunk-*")}
    assert {path for path in before if before[path] != after[path]} == {gone} and xxh128_file(gone) == content
    (splade / "note.txt").write_text("other content")
    for split in ("train", "dev", "test"):
        (folder.candidates(split) / "manifest.json").unlink()
        (folder.candidates(split) / "part-00000.arrow").unlink()
    here.mine(recipe, folder)
    (splade / "note.txt").unlink()
    assert len(list(folder.data.glob("index/*/chunk-*"))) == 9


def test_killed_workers_and_a_killed_driver_leave_only_what_is_missing_to_do(cluster, tmp_path, splade):
    folder, alone = many_passages(tmp_path / "run"), many_passages(tmp_path / "alone")
    miners = {"splade": {"kind": "splade", "model": str(splade), "top": 3}}
    recipe = recipe_for(folder, miners=miners, shard_passages=1)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))

    def chunks() -> list:
        return list(folder.data.glob("index/*/chunk-*.arrow"))

    said = tmp_path / "driver.log"
    with open(said, "w") as log:
        driver = subprocess.Popen(
            [sys.executable, str(HERE / "drive.py"), str(tmp_path / "recipe.yaml"), "mine"],
            stderr=log,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        )
    try:
        wait_for(chunks, driver)
        workers("MineWorker")[0].kill()
        wait_for(lambda: "a worker died" in said.read_text(), driver)
    finally:
        driver.kill()
    assert driver.wait(timeout=PATIENCE) == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in chunks()}
    mine(recipe, folder)
    assert len(chunks()) == 400 and before.items() <= {path: path.stat().st_mtime_ns for path in chunks()}.items()
    here.mine(recipe, alone)
    assert candidates(folder) == candidates(alone)


def many_passages(root) -> RunFolder:
    """400 passages of a few words, so that there are many chunks, and eight queries."""
    folder = RunFolder(root)
    write_passages(folder.passages, [" ".join(WORDS[i % 700 : i % 700 + 5]) for i in range(400)])
    write_queries(folder.queries("train"), [" ".join(WORDS[i * 31 : i * 31 + 3]) for i in range(8)])
    rows = pa.RecordBatch.from_pydict(
        dict(zip(JUDGEMENT_SCHEMA.names, [list(range(8)), [i * 31 for i in range(8)], [1] * 8], strict=True)),
        JUDGEMENT_SCHEMA,
    )
    write_ipc(folder.judgements("train"), JUDGEMENT_SCHEMA, [rows], {"fingerprint": "test"})
    write_manifest(folder.data, Manifest({"stage": "import", "source": "test"}))
    return folder
