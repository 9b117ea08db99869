"""References to models: the interpretation of names, and identities in fingerprints."""

from __future__ import annotations

import shutil

import pytest

from distill.errors import ModelError, NotCached, RecipeError
from distill.run.model_ref import ModelRef, content_hash


def test_names_of_packages_folders_and_hub_models_are_interpreted(monkeypatch, tmp_path):
    assert (ModelRef.parse("package:distill/run").folder / "layout.py").is_file()
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert ModelRef.parse("~/model").location == str(tmp_path / "model")
    assert ModelRef.parse("org/model").location == "org/model"
    with pytest.raises(RecipeError, match="pip install no-such-package"):
        ModelRef.parse("package:no_such_package/model")
    with pytest.raises(RecipeError, match="has no folder"):
        ModelRef.parse("package:distill/nothing")


def test_a_missing_folder_is_distinguished_from_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    for name in ("runs/model", "runs", "./runs/model", str(tmp_path), "org/model", "model"):
        ModelRef.parse(name).check_found()
    for name in ("runs/modle", "./modle", "../modle", "~/modle", str(tmp_path / "modle"), "rusn/a/model"):
        with pytest.raises(ModelError, match=r"no such folder"):
            ModelRef.parse(name).check_found()


def test_the_identity_of_a_folder_is_its_content_without_the_card(tiny_mlm, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_mlm, moved)
    (moved / "README.md").write_text("a card, written later")
    (moved / "manifest.json").write_text("{}")
    identity = ModelRef.parse(str(tiny_mlm)).identity()
    assert ModelRef.parse(str(moved)).identity() == identity == {"content": content_hash(tiny_mlm)}
    settings = moved / "config.json"
    settings.write_text(settings.read_text() + "\n")
    assert ModelRef.parse(str(moved)).identity() != identity
    shutil.copy(tiny_mlm / "config.json", settings)
    settings.rename(moved / "konfig.json")
    assert ModelRef.parse(str(moved)).identity() != identity
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        ModelRef.parse(str(empty)).identity()


def test_the_identity_of_a_hub_model_is_its_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--model"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert ModelRef.parse("org/model").identity() == {"model": "org/model", "revision": commit}
    assert ModelRef.parse("org/model").cached_config() == {}
    with pytest.raises(NotCached, match="hf download org/other"):
        ModelRef.parse("org/other").identity()
