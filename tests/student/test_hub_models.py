"""Checkpoints on the hub: errors name the model, and an uncached file is not taken as absent."""

from __future__ import annotations

import json
import shutil
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from distill import config
from distill.errors import ModelError, TeacherError
from distill.run.layout import RunFolder
from distill.student.checkpoint import load_student
from distill.student.model import start_splade
from teachers.spec import TeacherSpec
from teachers.splade import loads_as_student
from tests.helpers.small_run import save_checkpoint

NAME, COMMIT = "org/model", "0123456789" * 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the hub model `org/model` in a cache that holds only its commit."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "models--org--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


def put(cache, model, without=()):
    """Copy the files of `model` into the cache."""
    snapshot = cache / "snapshots" / COMMIT
    shutil.copytree(model, snapshot)
    for name in without:
        (snapshot / name).unlink()


def add_file_list(cache):
    """Add the list of the model's files to the cache, as `hf download` does."""
    snapshot = cache / "snapshots" / COMMIT
    files = {
        path.relative_to(snapshot).as_posix(): {"size": 1, "blob_id": "0"}
        for path in snapshot.rglob("*")
        if path.is_file()
    }
    (cache / "trees").mkdir()
    (cache / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))


@pytest.mark.parametrize(
    "load", [load_student, lambda name: start_splade(config.Student(model=name))], ids=["checkpoint", "student"]
)
def test_an_error_of_the_hub_is_reported_with_the_name_of_the_model(load, monkeypatch):
    def refuse(*_, **__):
        raise RepositoryNotFoundError("401 Client Error", response=Mock(headers={}))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ModelError, match=r"'org/model' cannot be loaded from the hub: 401"):
        load(NAME)
    monkeypatch.undo()
    with pytest.raises(ModelError, match="not a name on the hub"):
        load("no name of a model")


@pytest.mark.parametrize("query", ["model", "binary"])
def test_offline_a_file_that_was_not_downloaded_is_not_taken_as_absent(tiny_mlm, tmp_path, cache, query, caplog):
    saved = save_checkpoint(tiny_mlm, tmp_path / "saved", query={"kind": query})
    with pytest.raises(ModelError, match=r"its modules\.json, if it has one, is not in .*hf download org/model"):
        load_student(NAME)
    put(cache, saved, without=["modules.json"])  # for example, after AutoModelForMaskedLM.from_pretrained
    with pytest.raises(ModelError, match=r"its modules\.json, if it has one, is not in"):
        load_student(NAME)
    with caplog.at_level("WARNING"):  # `student.model` is nearly always a masked language model
        assert start_splade(config.Student(model=NAME, query_max_length=8, passage_max_length=12)).table is None
    assert "until then it is loaded as a plain masked language model" in caplog.text
    with pytest.raises(TeacherError, match=r"teacher 't': 'org/model' cannot be loaded"):
        loads_as_student(TeacherSpec("t", config.Teacher(kind="splade", model=NAME), RunFolder(cache)))
    shutil.rmtree(cache / "snapshots")
    put(cache, saved)
    add_file_list(cache)
    assert load_student(NAME).inference_free == (query == "binary")


@pytest.mark.parametrize("known", ["a list of files", "an answer"])
def test_offline_a_model_without_sentence_transformers_files_loads(tiny_mlm, cache, known):
    put(cache, tiny_mlm)
    if known == "a list of files":
        add_file_list(cache)
    else:
        for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
            (cache / ".no_exist" / COMMIT).mkdir(parents=True, exist_ok=True)
            (cache / ".no_exist" / COMMIT / name).touch()
    assert start_splade(config.Student(model=NAME, passage_max_length=64)).passage_max_length == 64
    assert load_student(NAME).table is None


def test_a_damaged_modules_json_is_named(tiny_mlm, tmp_path):
    saved = save_checkpoint(tiny_mlm, tmp_path / "saved")
    (saved / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"its modules\.json is not valid JSON"):
        load_student(saved)
