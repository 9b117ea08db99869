"""Code of one's own by import path: what cannot be imported is refused with the field, before anything runs."""

import pytest

from distill.errors import RecipeError
from distill.own_code import check_own_code, import_object
from distill.recipe_file import parse_recipe


def test_a_name_in_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "losses_of_mine.py").write_text("def zero(scores, labels):\n    return 0 * scores.sum()\n")
    monkeypatch.chdir(tmp_path)
    assert import_object("losses_of_mine:zero").__name__ == "zero"


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
def test_what_cannot_be_imported_is_refused_with_its_field(sections, field):
    recipe = parse_recipe(
        {
            "name": "r",
            "data": {"source": {"kind": "jsonl", "path": "x"}},
            "teachers": {"t": {"kind": "imported"}},
            "student": {"model": "m"},
            **sections,
        }
    )
    with pytest.raises(RecipeError, match=field):
        check_own_code(recipe)
