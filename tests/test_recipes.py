"""Every recipe in configs/: loaded, dumped and planned; then shrunk to tiny models and data, and trained.

Shrinking replaces data and models and caps numbers. The substance of a recipe is unchanged: kinds of miners and
teachers, labels, student, losses, regularisers, ramps, rounds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from distill.pipeline.estimate import dry_run
from distill.pipeline.registry import stages_of
from distill.pipeline.run import run_part, run_pipeline
from distill.recipe.expand import open_runs
from distill.recipe.load import dump_recipe, load_recipe, parse_recipe
from tests.helpers.small_run import save_checkpoint
from tests.helpers.whole_run import write_beir

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TRAINED = [
    pytest.param(name, marks=pytest.mark.slow) if "\nrounds:" in (CONFIGS / f"{name}.yaml").read_text() else name
    for name in RECIPES
    if "\nstudent:" in (CONFIGS / f"{name}.yaml").read_text()
]  # recipes with several rounds take several times as long
MAX = {  # caps on a recipe's numbers
    "top": 3,
    "sample": 2,
    "depth": 20,
    "skip": 1,
    "rerank_depth": 5,
    "max_length": 32,
    "folds": 2,
    "layers": 1,
    "query_max_length": 16,
    "passage_max_length": 24,
    "passages": 50,
    "negatives": 3,
    "batch_size": 4,
    "steps": 3,
    "evaluate_every": 2,
    "ramp_steps": 2,
    "group_size": 8,
    "threshold": 5,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_mlm, tiny_sentence, tiny_classifier) -> dict[str, Path]:
    """A tiny model of every kind and a tiny collection."""
    root = tmp_path_factory.mktemp("tiny")
    write_beir(root / "data")
    return {
        "data": root / "data",
        "mlm": tiny_mlm,
        "bi-encoder": tiny_sentence,
        "dense": tiny_sentence,
        "cross-encoder": tiny_classifier,
        "splade": save_checkpoint(tiny_mlm, root / "splade"),
        "rank-t5": save_rank_t5(tiny_mlm, root / "rank-t5"),
    }


def save_rank_t5(tokenizer: Path, path: Path) -> Path:
    """A random T5 encoder with naver's ranking head."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    tokens = AutoTokenizer.from_pretrained(tokenizer)
    config = T5Config(vocab_size=len(tokens), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    for part in (tokens, config):
        part.save_pretrained(path)
    torch.manual_seed(0)
    head = torch.nn.ModuleDict(
        {
            "first_transform": torch.nn.Linear(16, 16),
            "layer_norm": torch.nn.LayerNorm(16),
            "linear": torch.nn.Linear(16, 1),
        }
    )
    torch.save(
        {
            **{f"model.{name}": value for name, value in T5EncoderModel(config).state_dict().items()},
            **head.state_dict(),
        },
        path / "pytorch_model.bin",
    )
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_round_trips_and_is_planned(name):
    recipe = load_recipe(CONFIGS / f"{name}.yaml")
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert recipe.data.sizes is not None
    rounds = dry_run(recipe)
    assert len(rounds) == 1 + len(recipe.rounds)
    for each in rounds:
        assert each.size.passages == recipe.data.sizes.passages
        assert [stage.stage for stage in each.planned] == [stage.name for stage in stages_of(each.run)]
        assert all(stage.cost.work for stage in each.planned)


@pytest.mark.parametrize("name", TRAINED)
def test_shrunk_recipe_trains_a_student_that_sparse_encoder_loads(name, tiny, tmp_path):
    from sentence_transformers import SparseEncoder

    recipe = parse_recipe(shrunk(yaml.safe_load(dump_recipe(load_recipe(CONFIGS / f"{name}.yaml"))), tiny, tmp_path))
    runs = open_runs(recipe)
    for run in runs:
        for stage in stages_of(run):
            if stage.name == "score":
                run_part(run, "score", (0, 1))  # in this process
            elif stage.name != "evaluate":
                run_pipeline(run.recipe, only=stage.name)
    folder = runs[-1].folder
    steps = [entry for entry in map(json.loads, folder.train_log.read_text().splitlines()) if "loss" in entry]
    assert steps[-1]["step"] == recipe.train.steps
    assert all(math.isfinite(entry["loss"]) for entry in steps)
    train = runs[-1].recipe.train
    assert {loss.kind for loss in train.losses} <= steps[-1].keys()
    assert {f"query-{term.kind}" for term in train.query_regularizers} <= steps[-1].keys()
    assert {f"passage-{term.kind}" for term in train.passage_regularizers} <= steps[-1].keys()
    before, after = (
        SparseEncoder(str(path), device="cpu")
        .encode_document(["the old house by the river", "ten books"])
        .to_dense()
        .numpy()
        for path in (folder.start, folder.model)
    )
    assert np.isfinite(after).all() and (after > 0).any(1).all() and not np.allclose(before, after)


def shrunk(tree: dict[str, Any], tiny: dict[str, Path], root: Path) -> dict[str, Any]:
    """Shrink the tree of a recipe to the data and models of `tiny`, with its run folder in `root`."""
    data = tree["data"]
    splits = {"test": "test"} if data["generate"] else {"train": "train", "dev": "dev", "test": "test"}
    data.update(source={"kind": "beir", "path": str(tiny["data"]), "splits": splits}, train_queries=None, sizes=None)
    if data["generate"]:
        data["generate"].update(kinds=["title", "sentence"], window=None, min_words=2, min_passage_words=5)
    for part in (tree, *tree["rounds"]):
        for miner in filter(None, part.get("mine", {}).get("miners", {}).values()):
            replace_model(miner, tiny)
            if miner["kind"] == "run":
                miner["path"] = str(root / "given.run")
                (root / "given.run").write_text("q-zero-book Q0 one-river 1 2.5 given\n")
            if not miner.get("sample"):
                miner.pop("depth", None)  # only read with `sample`
        for teacher in filter(None, part.get("teachers", {}).values()):
            if teacher["kind"] in ("bm25", "custom"):
                teacher.pop("max_length")
            if teacher["kind"] == "custom":
                teacher["options"].update(model=str(tiny["rank-t5"]), backbone=str(tiny["rank-t5"]))
            else:
                replace_model(teacher, tiny)
        if "train" in part and tree["student"] is not None:  # fp16 needs a GPU
            part["train"].update(precision="fp32", lr=1e-3)
    if tree["student"] is None:
        read = {name: section for name, section in tree.items() if name not in ("train", "evaluate")}
        return {**limited(read), "run_dir": str(root / "run")}
    sentence_encoder = "minilm" in tree["student"]["model"].lower() or tree["student"]["kind"] == "csr"
    tree["student"].update(model=str(tiny["bi-encoder" if sentence_encoder else "mlm"]), revision=None)
    tree["train"]["steps"] = MAX["steps"]
    tree["evaluate"]["metrics"] = ["nDCG@10"]  # the rankings are too short for larger cut-offs
    return {**limited(tree), "run_dir": str(root / "run")}


def replace_model(section: dict[str, Any], tiny: dict[str, Path]) -> None:
    if section.get("model") not in (None, "round:previous"):
        kind = "bi-encoder" if section.get("fine_tune") else section["kind"]  # fine-tuning adds a new head
        section.update(model=str(tiny[kind]), revision=None)


def limited(tree: Any) -> Any:
    """Cap the numbers of a tree at `MAX`, at every level."""
    if isinstance(tree, dict):
        return {
            key: min(value, MAX[key]) if key in MAX and isinstance(value, int) else limited(value)
            for key, value in tree.items()
        }
    return [limited(item) for item in tree] if isinstance(tree, list) else tree
