"""A run folder with random texts and a dozen shards to score, and a teacher for it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from distill.config import Recipe
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, write_manifest
from distill.store.candidates import from_lists, shard_name, write_candidates
from tests.helpers.small_run import small_recipe, write_passages, write_queries

WORDS = Path(__file__).parents[1].joinpath("helpers", "words.txt").read_text(encoding="utf-8").split()[:800]


def write_job(root: Path, queries: int = 24, per_shard: int = 2, candidates: int = 12) -> RunFolder:
    """Random texts and candidates: `queries / per_shard` shards in train, one in test."""
    rng = np.random.default_rng(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    folder = RunFolder(root)
    write_passages(folder.passages, [text(3, 60) for _ in range(80)])
    for split, count in (("train", queries), ("test", 2)):
        write_queries(folder.queries(split), [text(2, 9) for _ in range(count)])
        shards = []
        for index, start in enumerate(range(0, count, per_shard)):
            rows = list(range(start, min(start + per_shard, count)))
            lists = [rng.choice(80, candidates, replace=False).tolist() for _ in rows]
            shards.append(
                write_candidates(
                    folder.candidates(split) / shard_name(index),
                    from_lists(rows, lists, [1] * len(rows), ("judgement",)),
                    "candidates",
                )
            )
        write_manifest(folder.candidates(split), Manifest({"stage": "mine", "split": split}, tuple(shards)))
    return folder


def recipe_for(folder: RunFolder, teachers: dict, **score) -> Recipe:
    """Teachers run in float32 unless they say otherwise: `auto` measures, so it differs from run to run."""
    teachers = {
        name: {**({} if fields["kind"] in ("bm25", "custom") else {"dtype": "float32"}), **fields}
        for name, fields in teachers.items()
    }
    return small_recipe(folder.root, teachers=teachers, score={"actors": 2, "cpus": 1, **score})


def steady(root: Path, seconds: float = 0, **options) -> dict:
    """A teacher that takes `seconds` per shard and logs its calls to `root`/calls.log."""
    (root / "calls.seconds").write_text(str(seconds))
    cls, log = "tests.ray_jobs.job_workers:Steady", str(root / "calls.log")
    return {"steady": {"kind": "custom", "cls": cls, "options": {"log": log, **options}}}


def score_bytes(folder: RunFolder) -> dict[str, bytes]:
    """The content of every score shard."""
    return {
        str(path.relative_to(folder.root)): path.read_bytes()
        for path in itertools.chain((folder.root / "scores").glob("*/*/part-*.arrow"))
    }


def score_files(folder: RunFolder) -> dict[str, bytes]:
    """The content of every file of finished scores: shards, manifests, plans, execution records."""
    return {
        str(path.relative_to(folder.root)): path.read_bytes()
        for path in (folder.root / "scores").rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def committed(folder: RunFolder) -> int:
    """Number of committed score shards."""
    return sum(1 for _ in (folder.root / "scores").glob("*/*/part-*.arrow"))
