"""Fingerprint inputs of teachers, and the teachers that are refused when they are computed."""

from __future__ import annotations

import shutil

import pytest

from distill.config import Teacher
from distill.errors import TeacherError
from teachers.identity import identity
from teachers.spec import TeacherSpec


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: (path / "model.safetensors").unlink(), "no model weights"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\0" * 100), "damaged"),
        (lambda path: (path / "config.json").write_text("{"), "not valid JSON"),
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
    ],
)
def test_a_model_folder_with_missing_or_damaged_files_is_refused(tiny_classifier, folder, tmp_path, damage, message):
    shutil.copytree(tiny_classifier, tmp_path / "broken")
    damage(tmp_path / "broken")
    with pytest.raises(TeacherError, match=message):
        identity(TeacherSpec("t", Teacher(kind="cross-encoder", model=str(tmp_path / "broken")), folder))


def test_a_model_without_a_classification_head_is_refused_as_a_cross_encoder(tiny_sentence, folder):
    with pytest.raises(TeacherError, match="no classification head"):
        identity(TeacherSpec("t", Teacher(kind="cross-encoder", model=str(tiny_sentence)), folder))


def test_a_model_that_is_neither_a_folder_nor_cached_is_refused_with_its_teacher_and_name(folder):
    with pytest.raises(TeacherError, match="hf download nobody/nothing"):
        identity(TeacherSpec("t", Teacher(kind="cross-encoder", model="nobody/nothing"), folder))
    with pytest.raises(TeacherError, match="teacher 't': /no/such/model: no such folder"):
        identity(TeacherSpec("t", Teacher(kind="splade", model="/no/such/model"), folder))


@pytest.mark.parametrize("template", ["{query}", "{passage} {query}", "{query} {passage} {query}"])
def test_an_llm_template_needs_a_query_and_after_it_a_passage_once_each(tiny_mlm, folder, template):
    with pytest.raises(TeacherError, match=r"the template must contain {query} once and, after it, {passage} once"):
        identity(TeacherSpec("t", Teacher(kind="llm", model=str(tiny_mlm), template=template), folder))


def test_unknown_options_of_an_llm_are_refused(tiny_mlm, folder):
    with pytest.raises(TeacherError, match="unknown options maybe; an llm takes yes and no"):
        identity(TeacherSpec("t", Teacher(kind="llm", model=str(tiny_mlm), options={"maybe": "?"}), folder))


def test_identity_depends_on_the_model_files_and_the_length_not_on_their_place(tiny_classifier, folder, tmp_path):
    shutil.copytree(tiny_classifier, tmp_path / "moved")
    original, moved = (
        identity(TeacherSpec("t", Teacher(kind="cross-encoder", model=str(path)), folder))
        for path in (tiny_classifier, tmp_path / "moved")
    )
    assert original == moved
    shorter = Teacher(kind="cross-encoder", model=str(tiny_classifier), max_length=32)
    assert identity(TeacherSpec("t", shorter, folder)) != original
