"""Starting real training processes for the tests of this room."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distill.run.layout import RunFolder
from tests.helpers.stages import build_labels, import_data
from tests.training.make_recipe import make_recipe

WORDS = Path(__file__).parents[1] / "helpers" / "words.txt"


@pytest.fixture(scope="session")
def run_processes():
    """run_processes(n, script, *arguments): run n processes on gloo, as torchrun would start them."""

    def run(processes: int, script: str, *arguments: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(processes),
        }
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", f"tests.training.{script}", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]
        try:
            outputs = [worker.communicate(timeout=300)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        for rank, (worker, output) in enumerate(zip(workers, outputs, strict=True)):
            assert worker.returncode == 0, f"rank {rank}:\n{output[-4000:]}"

    return run


def build_labelled(root: Path, queries: int, words_per_passage: tuple[int, int], seed: int = 3) -> Path:
    """Import and label random triples: training queries with 5 scored passages each, and 8 development queries."""
    words = [word for word in WORDS.read_text().split() if word.isalpha() and len(word) > 3]
    draw = random.Random(seed)
    with open(root / "triples.jsonl", "w", encoding="utf-8") as file:
        for i in range(queries + 8):
            topic = draw.sample(words, 12)
            passages = [
                " ".join(draw.sample(topic if kind == 0 else words, draw.randint(*words_per_passage)))
                for kind in range(5)
            ]
            file.write(
                json.dumps(
                    {
                        "query": " ".join(draw.sample(topic, 3)) + f" {i}",
                        "positive": passages[0],
                        "negatives": passages[1:],
                        "scores": [5.0 + draw.random(), *(draw.random() for _ in range(4))],
                    }
                )
                + "\n"
            )
    recipe = make_recipe("unused", root)
    import_data(recipe, RunFolder(root / "run"))
    build_labels(recipe, RunFolder(root / "run"))
    return root


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory) -> Path:
    """A run folder, imported and labelled: 48 training queries with 5 scored passages each, and 8 development ones."""
    return build_labelled(tmp_path_factory.mktemp("labelled"), 48, (4, 10))


@pytest.fixture
def run_folder(labelled_folder, tmp_path) -> Path:
    """A copy of `labelled_folder` to train in."""
    return Path(shutil.copytree(labelled_folder, tmp_path / "copy"))


@pytest.fixture
def copied(labelled_folder, tmp_path) -> Path:
    """Another copy, for a second run to compare with."""
    return Path(shutil.copytree(labelled_folder, tmp_path / "other"))
