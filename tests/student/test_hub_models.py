"""Checkpoints on the hub: what cannot be loaded is refused in words, and what is not cached is not taken as missing."""

from __future__ import annotations

import json
import shutil
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from small_run import save_checkpoint

from distill import config
from distill.errors import StudentError, TeacherError
from distill.student import layout
from distill.student.checkpoint import load_checkpoint
from distill.student.model import load_student
from teachers.splade import _like_a_student

NAME, COMMIT = "org/model", "0123456789" * 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the hub model `org/model` in a cache that has nothing of it but its commit."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "models--org--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


def put(cache, model, without=()):
    """The files of `model` into the cache."""
    snapshot = cache / "snapshots" / COMMIT
    shutil.copytree(model, snapshot)
    for name in without:
        (snapshot / name).unlink()


def know_all_files(cache):
    """The cache has the list of the files, as `hf download` leaves it."""
    snapshot = cache / "snapshots" / COMMIT
    files = {
        path.relative_to(snapshot).as_posix(): {"size": 1, "blob_id": "0"}
        for path in snapshot.rglob("*")
        if path.is_file()
    }
    (cache / "trees").mkdir()
    (cache / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))


@pytest.mark.parametrize(
    "load", [load_checkpoint, lambda name: load_student(config.Student(model=name))], ids=["checkpoint", "student"]
)
def test_what_the_hub_answers_is_told_with_the_model(load, monkeypatch):
    def refuse(*_, **__):
        raise RepositoryNotFoundError("401 Client Error", response=Mock(headers={}))

    monkeypatch.setattr(layout, "hf_hub_download", refuse)
    with pytest.raises(StudentError, match=r"'org/model' cannot be loaded from the hub: 401"):
        load(NAME)
    monkeypatch.undo()
    with pytest.raises(StudentError, match="not a name on the hub"):
        load("no name of a model")


@pytest.mark.parametrize("query", ["model", "binary"])
def test_offline_a_file_that_was_not_downloaded_is_not_taken_as_missing(tiny_mlm, tmp_path, cache, query, caplog):
    saved = save_checkpoint(tiny_mlm, tmp_path / "saved", query={"kind": query})
    with pytest.raises(StudentError, match=r"its modules\.json, if it has one, is not in .*hf download org/model"):
        load_checkpoint(NAME)
    put(cache, saved, without=["modules.json"])  # what AutoModelForMaskedLM downloads, say
    with pytest.raises(StudentError, match=r"its modules\.json, if it has one, is not in"):
        load_checkpoint(NAME)
    with caplog.at_level("WARNING"):  # a start is a masked language model nearly always
        assert load_student(config.Student(model=NAME, query_max_length=8, passage_max_length=12)).table is None
    assert "until then it is taken for a plain masked language model" in caplog.text
    with pytest.raises(TeacherError, match=r"teacher 't': 'org/model' cannot be loaded"):
        _like_a_student("t", config.Teacher(kind="splade", model=NAME))
    shutil.rmtree(cache / "snapshots")
    put(cache, saved)
    know_all_files(cache)
    assert load_checkpoint(NAME).inference_free == (query == "binary")


@pytest.mark.parametrize("known", ["a list of files", "an answer"])
def test_offline_a_model_without_sentence_transformers_files_loads(tiny_mlm, cache, known):
    put(cache, tiny_mlm)
    if known == "a list of files":
        know_all_files(cache)
    else:
        for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
            (cache / ".no_exist" / COMMIT).mkdir(parents=True, exist_ok=True)
            (cache / ".no_exist" / COMMIT / name).touch()
    assert load_student(config.Student(model=NAME, passage_max_length=64)).passage_max_length == 64
    assert load_checkpoint(NAME).table is None


def test_a_damaged_file_is_named(tiny_mlm, tmp_path):
    saved = save_checkpoint(tiny_mlm, tmp_path / "saved")
    (saved / "modules.json").write_text("{")
    with pytest.raises(StudentError, match=r"its modules\.json is not valid JSON"):
        load_checkpoint(saved)
