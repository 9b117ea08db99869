"""Training on a sparse teacher's vectors, from which its scores were computed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder

from distill.config import OWN
from distill.errors import Preempted, RecipeError, StorageError, TeacherError
from distill.pipeline.run import run_pipeline
from distill.recipe.load import dump_recipe
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.candidates import iterate_candidates
from distill.store.texts import TextStore
from distill.student.checkpoint import load_student, save_student
from distill.training.datasets import datasets
from distill.training.fields import training_fields
from distill.training.targets import DatasetTargets, build_targets
from teachers import vectors
from tests.helpers.small_run import save_checkpoint
from tests.helpers.stages import build_labels, score_local
from tests.training.make_recipe import make_recipe
from tests.training.test_trainer import assert_close, assert_equal, once_logged, run, steps

LOSS = {"kind": "embedding-mse", "teacher": "sparse", "weight": 1000.0}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def recipe_of(mlm, root: Path, teacher: str = "teacher", **changes):
    train = {"losses": [LOSS], "query_regularizers": [], "passage_regularizers": [], **changes}
    student = train.pop("student", None)
    return make_recipe(
        mlm,
        root,
        student,
        teachers={
            "given": {"kind": "imported"},
            "sparse": {"kind": "splade", "model": str(root / teacher), "dtype": "float32", "weight": 0},
        },
        **train,
    )


@pytest.fixture(scope="module")
def scored(labelled_folder, tiny_mlm, tmp_path_factory) -> Path:
    """A run folder, labelled again with a SPLADE teacher in addition to the imported scores."""
    root = tmp_path_factory.mktemp("scored") / "scored"
    shutil.copytree(labelled_folder, root)
    shutil.rmtree(root / "run" / "labels")
    student = load_student(save_checkpoint(tiny_mlm, root / "teacher"))
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    student.query_max_length = student.passage_max_length = 20
    save_student(student, root / "teacher")
    recipe, folder = recipe_of(tiny_mlm, root), RunFolder(root / "run")
    score_local(recipe, folder)
    build_labels(recipe, folder)
    folder.recipe.write_text(dump_recipe(recipe))
    return root


@pytest.fixture
def root(scored, tmp_path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "root"))


@pytest.fixture
def in_chunks(tiny_mlm, root, monkeypatch) -> Path:
    """`root` with the vectors in several chunks."""
    monkeypatch.setattr(vectors, "CHUNK", 32)
    shutil.rmtree(vectors_of(root))
    build_targets(Run(recipe_of(tiny_mlm, root), RunFolder(root / "run")))
    assert len(chunks(root)) > 5
    return root


def vectors_of(root: Path) -> Path:
    return RunFolder(root / "run").scores("sparse", "vectors")


def chunks(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in vectors_of(root).rglob("*.arrow")}


def texts_of(folder: RunFolder) -> tuple[list[str], list[str]]:
    """All training queries and passages that are trained on."""
    shards = [shard for _, shard in iterate_candidates(folder.candidates("train"))]
    return (
        TextStore.open(folder.queries("train")).texts(np.concatenate([shard.query for shard in shards])),
        TextStore.open(folder.passages).texts(np.unique(np.concatenate([shard.passages for shard in shards]))),
    )


def encoded(model: Path, texts: tuple[list[str], list[str]]) -> torch.Tensor:
    encoder = SparseEncoder(str(model), device="cpu")
    return torch.cat([encoder.encode_query(texts[0]).to_dense(), encoder.encode_document(texts[1]).to_dense()])


def test_training_on_teacher_vectors_brings_the_students_vectors_closer(tiny_mlm, root):
    recipe = recipe_of(tiny_mlm, root, steps=60)
    run(recipe)
    folder = RunFolder(recipe.folder)
    texts = texts_of(folder)
    teacher, start, end = (encoded(path, texts) for path in (root / "teacher", folder.start, folder.model))
    assert (end - teacher).square().sum() < 0.4 * (start - teacher).square().sum()
    log = steps(recipe)
    assert log[-1]["embedding-mse"] < 0.5 * log[0]["embedding-mse"]


def test_targets_are_the_teachers_vectors_of_the_given_texts(tiny_mlm, in_chunks):
    folder, teacher = RunFolder(in_chunks / "run"), in_chunks / "teacher"
    own = datasets(Run(recipe_of(tiny_mlm, in_chunks), folder))[OWN]
    _, shard = next(iterate_candidates(folder.candidates("train")))
    queries, passages = shard.query[[5, 2, 5]], shard.passages[[200, 7, 7, 100, 31]]
    vocabulary = len(load_student(teacher).tokenizer)
    got = DatasetTargets(own, vocabulary).take(queries, passages, torch.device("cpu"))
    encoder = SparseEncoder(str(teacher), device="cpu")
    for side, encode, store, rows in (
        ("query", encoder.encode_query, folder.queries("train"), queries),
        ("passage", encoder.encode_document, folder.passages, passages),
    ):
        expected = encode(TextStore.open(store).texts(rows)).to_dense()
        torch.testing.assert_close(got["sparse", side].to_dense(), expected, rtol=1e-4, atol=1e-5)
    cut = DatasetTargets(own, vocabulary - 100).take(queries, passages, torch.device("cpu"))
    for key, reps in cut.items():  # a teacher's matrices may be padded
        assert torch.equal(reps.to_dense(), got[key].to_dense()[:, :-100])


def test_two_processes_learn_teacher_vectors_like_one(tiny_mlm, root, scored, tmp_path):
    changes = {
        "steps": 3,
        "optimizer": "sgd",
        "lr": 0.01,
        "dropout": 0.0,
        "top_ks": [{"k": 8}, {"k": None}],
        "losses": [{"kind": "kl"}, LOSS, {**LOSS, "of": "query", "weight": 100.0}],
    }
    expected = run(recipe_of(tiny_mlm, root, **changes))
    two = recipe_of(tiny_mlm, Path(shutil.copytree(scored, tmp_path / "two")), **changes, processes=2)
    assert_close(run(two), expected)


def test_training_on_vectors_of_several_datasets_resumes_exactly(tiny_mlm, root, scored, tmp_path):
    other = Path(shutil.copytree(scored, tmp_path / "else"))
    changes = {
        "steps": 8,
        "checkpoints": {"every": 3},
        "mixing": {"by": "round-robin"},
        "losses": [{"kind": "kl"}],
        "datasets": {"else": {"run": str(other / "run"), "losses": [{**LOSS, "of": "passage"}]}},
    }
    expected = run(recipe_of(tiny_mlm, root, **changes))
    recipe = recipe_of(tiny_mlm, Path(shutil.copytree(scored, tmp_path / "again")), **changes)
    with once_logged(recipe, 3, lambda: os.kill(os.getpid(), signal.SIGUSR1)), pytest.raises(Preempted):
        run(recipe)
    assert_equal(run(recipe), expected)
    assert ["embedding-mse" in line for line in steps(recipe)] == [False, True] * 4


def test_removed_vectors_are_rebuilt_only_by_the_same_model(tiny_mlm, in_chunks):
    recipe, folder, before = recipe_of(tiny_mlm, in_chunks), RunFolder(in_chunks / "run"), chunks(in_chunks)
    for lost in sorted(vectors_of(in_chunks).rglob("*.arrow"))[::2]:
        lost.unlink()
    build_targets(Run(recipe, folder))
    assert chunks(in_chunks) == before
    other = load_student(in_chunks / "teacher")
    with torch.no_grad():
        other.head.bias += 1
    save_student(other, in_chunks / "teacher")
    build_targets(Run(recipe, folder))  # all exist: the other model is not used
    shutil.rmtree(vectors_of(in_chunks))
    with pytest.raises(TeacherError, match=r"'sparse': vectors .* are missing .* the model changed since"):
        build_targets(Run(recipe, folder))


def test_damaged_vectors_stop_the_training_with_a_remedy(tiny_mlm, root):
    recipe = recipe_of(tiny_mlm, root)
    for path in vectors_of(root).rglob("passages-*.arrow"):
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StorageError, match=r"passages-00.*damaged.* Remove the file"):
        run(recipe)


def test_different_vocabularies_are_refused_before_mining(tiny_mlm, root, tiny_sentence):
    other = Path(shutil.copytree(root / "teacher", root / "other"))
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text().replace('"time":', '"tome":'))
    recipe = recipe_of(tiny_mlm, root, "other")
    with pytest.raises(RecipeError, match=r"train\.losses: .* 1 of the student's .* tokens .* teacher 'sparse'"):
        build_targets(Run(recipe, RunFolder(recipe.folder)))
    mined = RunFolder(recipe.folder).candidates("train")
    shutil.rmtree(mined)
    with pytest.raises(RecipeError, match="1 of the student's"):
        run_pipeline(recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"split": "dev"})}))
    assert not mined.exists()
    with pytest.raises(RecipeError, match="vectors of teacher 'sparse' are not over a vocabulary"):
        build_targets(Run(recipe_of(tiny_mlm, root, str(tiny_sentence)), RunFolder(recipe.folder)))


def test_a_teacher_of_another_run_must_be_of_kind_splade(tiny_mlm, root, labelled_folder, tmp_path):
    other = Path(shutil.copytree(labelled_folder, tmp_path / "other"))
    RunFolder(other / "run").recipe.write_text(dump_recipe(make_recipe(tiny_mlm, other)))
    recipe = recipe_of(tiny_mlm, root, datasets={"else": {"run": str(other / "run")}})
    with pytest.raises(RecipeError, match=r"train\.datasets\.else: .* names 'sparse', .*its teachers: given\)"):
        run(recipe)


def test_the_sides_of_embedding_mse_are_fingerprint_inputs(tiny_mlm, root):
    both, queries = (
        training_fields(Run(recipe_of(tiny_mlm, root, losses=[{**LOSS, "of": of}]), RunFolder(root / "run")))
        for of in ("both", "query")
    )
    assert both != queries and both["labels"] == queries["labels"]
