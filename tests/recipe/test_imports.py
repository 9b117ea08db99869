"""User-defined code by import path: what cannot be imported is refused, with its field, before anything runs."""

import sys

import pytest

from distill.config import Recipe
from distill.errors import RecipeError
from distill.recipe.imports import check_own_code, import_object, import_own_code
from distill.recipe.load import parse_recipe
from distill.run.model_ref import ModelRef
from distill.run.modules import locate


def recipe(sections: dict) -> Recipe:
    return parse_recipe(
        {
            "name": "r",
            "data": {"source": {"kind": "jsonl", "path": "x"}},
            "teachers": {"t": {"kind": "imported"}},
            "student": {"model": "m"},
            **sections,
        }
    )


def test_looking_for_a_module_runs_no_code(tmp_path, monkeypatch):
    (tmp_path / "noisy").mkdir()
    for name in ("__init__", "losses"):
        (tmp_path / "noisy" / f"{name}.py").write_text("raise SystemExit('this ran')\n")
    monkeypatch.chdir(tmp_path)
    assert locate("noisy.losses") is not None and locate("noisy.nothing") is None and locate("json.decoder") is not None
    check_own_code(recipe({"train": {"losses": [{"kind": "custom", "cls": "noisy.losses:zero"}]}}))
    (tmp_path / "plain" / "inner").mkdir(parents=True)  # folders without __init__.py
    (tmp_path / "plain" / "inner" / "deep.py").write_text("raise SystemExit('this ran')\n")
    assert locate("plain.inner.deep") is not None and locate("plain.other.deep") is None
    for installed in ("distill.losses.ranking", "teachers", "xml.etree.ElementTree", "numpy.linalg"):
        assert locate(installed) is not None
    with pytest.raises(RecipeError, match="the package 'noisy' has no folder 'model'"):
        ModelRef.parse("package:noisy/model")
    assert "noisy" not in sys.modules


def test_a_loss_that_is_no_function_is_refused_before_it_is_called():
    with pytest.raises(RecipeError, match=r"train\.losses\.0\.cls: subprocess:Popen is not a Python function"):
        import_own_code(recipe({"train": {"losses": [{"kind": "custom", "cls": "subprocess:Popen"}]}}))


def test_a_module_in_the_working_folder_is_imported(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text("def zero(scores, labels):\n    return 0 * scores.sum()\n")
    monkeypatch.chdir(tmp_path)
    assert import_object("my_losses:zero").__name__ == "zero"


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"student": {"kind": "custom", "cls": "nowhere:Student", "model": "m"}}, "student.cls: cannot import"),
        (
            {"train": {"losses": [{"kind": "kl"}, {"kind": "custom", "cls": "nowhere:loss"}]}},
            "train.losses.1.cls: cannot import",
        ),
        (
            {"train": {"passage_regularizers": [{"kind": "custom", "cls": "math:nothing", "weight": 1}]}},
            "train.passage_regularizers.0.cls: cannot import 'math:nothing'",
        ),
    ],
)
def test_an_import_path_that_does_not_exist_is_refused_with_its_field(sections, field):
    with pytest.raises(RecipeError, match=field):
        check_own_code(recipe(sections))
