"""The recipe: what it refuses, and in which words."""

from pathlib import Path

import pytest
import yaml

from distill.config import Miner, Train, missing_folder, resolve_model
from distill.errors import RecipeError
from distill.recipe_file import dump_recipe, load_recipe, parse_recipe

CONFIGS = sorted(Path(__file__).parent.parent.glob("configs/*.yaml"))
MINIMAL = {
    "name": "a",
    "data": {"source": {"kind": "python-docs"}},
    "teachers": {"bm25": {"kind": "bm25"}},
    "student": {"model": "m"},
}


def refused(**sections) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**MINIMAL, **sections})
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_survives_a_round_trip(path):
    recipe = load_recipe(path)
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_a_misspelt_field_is_named_with_the_nearest_valid_one():
    assert "unknown field 'train.learning_rat'" in refused(train={"learning_rat": 1})
    assert "unknown field 'train.warmup_ration'; did you mean 'warmup_ratio'?" in refused(train={"warmup_ration": 0.1})
    assert "unknown field 'trin'; did you mean 'train'?" in refused(trin={})
    assert "unknown field 'train.losses.0.temprature'; did you mean" in refused(
        train={"losses": [{"kind": "infonce", "temprature": 2}]}
    )
    assert "unknown field 'teachers.bm25.wieght'; did you mean 'weight'?" in refused(
        teachers={"bm25": {"kind": "bm25", "wieght": 1}}
    )


def test_missing_and_impossible_values_are_named():
    assert "field 'student' is missing" in refused(student=None) or "student" in refused(student=None)
    assert "'train.batch_size'" in refused(train={"batch_size": 0})
    assert "label.map_to names 'nobody'" in refused(label={"map_to": "nobody"})
    assert "cross-encoder teacher needs a model" in refused(teachers={"x": {"kind": "cross-encoder"}})
    assert "at least one teacher" in refused(teachers={})
    assert "every teacher has the weight 0" in refused(teachers={"bm25": {"kind": "bm25", "weight": 0}})
    assert "choose another" in refused(teachers={"ensemble": {"kind": "bm25"}})
    assert "at least one miner" in refused(mine={"miners": {}})
    assert "only a learned table has a rate" in refused(train={"table_lr": 0.1})
    assert "which is not trained" in refused(
        student={"model": "m", "query": {"kind": "idf"}}, train={"query_regularizers": [{"kind": "l1", "weight": 1}]}
    )
    assert "Input should be a list (given: 'kl')" in refused(train={"losses": "kl"})


@pytest.mark.parametrize(
    "kind, model, field, value",
    [
        ("bm25", None, "model", "m"),
        ("bm25", None, "dtype", "float16"),
        ("custom", None, "max_length", 64),
        ("bi-encoder", "m", "template", "{query} {passage}"),
        ("splade", "m", "fine_tune", {}),
        ("cross-encoder", "m", "options", {"yes": "true"}),
        ("imported", None, "batch_tokens", 4096),
    ],
)
def test_what_a_kind_of_teacher_does_not_read_is_refused(kind, model, field, value):
    teacher = {"kind": kind, **({"model": model} if model else {}), **({"cls": "a:B"} if kind == "custom" else {})}
    parse_recipe({**MINIMAL, "teachers": {"t": teacher}})
    assert f"`{field}` has no effect with kind: {kind}" in refused(teachers={"t": {**teacher, field: value}})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "jsonl", "columns": {"scores": "s"}}, "unknown field 'columns.scores'; did you mean 'score'?"),
        ({"kind": "jsonl", "columns": {"querry": "x"}}, "unknown field 'columns.querry'; did you mean 'query'?"),
        (
            {"kind": "jsonl", "layout": "pairs", "columns": {"negative": "hard"}},
            "'columns.negative' is not read with layout: pairs, which has query, positive, query_id, passage_ids",
        ),
        ({"kind": "jsonl", "columns": {"score": None}}, "only query_id and passage_ids of rows can be left out"),
        ({"kind": "huggingface", "columns": {"anchr": "x"}}, "unknown field 'columns.anchr'; valid: query, positive"),
        ({"kind": "huggingface", "layout": "beir", "columns": {"titel": "x"}}, "did you mean 'title'?"),
    ],
)
def test_names_of_columns_that_the_layout_does_not_have_are_refused(source, message):
    place = {"path" if source["kind"] == "jsonl" else "dataset": "x"}
    assert message in refused(data={"source": {**source, **place}})
    parse_recipe({**MINIMAL, "data": {"source": {**source, **place, "columns": {}}}})


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"train": {"losses": [{"kind": "kl", "weight": -1}]}}, "greater than 0"),
        ({"train": {"lr": float("inf")}}, "finite number"),
        (
            {"train": {"query_regularizers": [{"kind": "l1", "weight": 1, "ramp": "constant", "ramp_steps": 9}]}},
            "ramp_steps has no effect",
        ),
        ({"mine": {"miners": {"bm25": {"kind": "bm25", "depth": 30}}}}, "`depth` has no effect without `sample`"),
        ({"slurm": {"at_once": 3}}, "at_once has no effect"),
        ({"evaluate": {"top_ks_of": "queries"}}, "`top_ks_of` has no effect"),
        ({"evaluate": {"start": False, "baselines": False}}, "`start` has no effect"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(sections, message):
    assert message in refused(**sections)


def test_a_tilde_is_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    recipe = parse_recipe({**MINIMAL, "run_dir": "~/run"})
    assert str(recipe.folder) == "/home/somebody/run" and resolve_model("~/model") == "/home/somebody/model"


def test_bm25_mines_without_a_model():
    assert "`model` has no effect with kind: bm25" in refused(mine={"miners": {"a": {"kind": "bm25", "model": "m"}}})


def test_overrides_reach_any_depth_and_are_checked(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    recipe = load_recipe(
        path,
        [
            "train.lr=1e-5",
            "teachers.bm25.weight=2",
            "run_dir=/x/y",
            "train.losses=[{kind: kl}]",
            "teachers.second={kind: bm25}",
        ],
    )
    assert recipe.train.lr == 1e-5 and recipe.teachers["bm25"].weight == 2 and str(recipe.folder) == "/x/y"
    assert list(recipe.teachers) == ["bm25", "second"]
    assert load_recipe(path, ["train.deepspeed={bucket: 5e8}"]).train.deepspeed["bucket"] == 5e8  # no text
    with pytest.raises(RecipeError, match=r"dotted\.path=value"):
        load_recipe(path, ["train.lr"])
    with pytest.raises(RecipeError, match="did you mean 'lr'"):
        load_recipe(path, ["train.lrr=3"])
    with pytest.raises(RecipeError, match="is not a section"):
        load_recipe(path, ["name.x=3"])
    second = ["rounds=[{train: {lr: 1e-4}}]", "rounds.0.train.steps=5"]
    assert load_recipe(path, second).rounds == ({"train": {"lr": 1e-4, "steps": 5}},)
    with pytest.raises(RecipeError, match="'1' is no entry of the list, which has 1"):
        load_recipe(path, [second[0], "rounds.1.train.steps=5"])


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
    broken = tmp_path / "broken.yaml"
    for text in ("a: [", "just words", "- 1", "name: a\nname: b"):
        broken.write_text(text)
        with pytest.raises(RecipeError, match=r"broken\.yaml"):
            load_recipe(broken)
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="distill init"):
        load_recipe(tmp_path)


def test_a_miner_that_would_sample_from_no_rank_is_refused():
    fields = {"kind": "bm25", "top": 3, "skip": 2, "sample": 1}
    assert Miner(**fields, depth=6).sample == 1
    with pytest.raises(ValueError, match="ranks 6 to `depth`, which is 5"):
        Miner(**fields, depth=5)


def test_a_regularizer_setting_without_effect_is_refused():
    common = {"kind": "df-flops", "weight": 0.1, "alpha": 0.05}
    assert Train(batch_size=4, negatives=7, passage_regularizers=[common]).passage_regularizers[0].alpha == 0.05
    with pytest.raises(ValueError, match=r"query_regularizers: df-flops .* the 4 texts of a batch"):
        Train(batch_size=4, negatives=7, query_regularizers=[common])
    with pytest.raises(ValueError, match="group_size belongs to flops"):
        Train(passage_regularizers=[{"kind": "l1", "weight": 0.1, "group_size": 8}])


def test_a_folder_that_is_missing_is_told_from_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    for name in ("runs/model", "runs", "./runs/model", str(tmp_path), "org/model", "model"):
        assert missing_folder(name) is None
    for name in ("runs/modle", "./modle", "../modle", "~/modle", str(tmp_path / "modle"), "rusn/a/model"):
        assert missing_folder(name).startswith(f"{name}: no such folder")


def test_package_models_resolve_to_their_folder():
    assert (Path(resolve_model("package:distill/data")) / "layout.py").is_file()
    assert resolve_model("org/model") == "org/model"
    with pytest.raises(RecipeError, match="pip install no-such-package"):
        resolve_model("package:no_such_package/model")
    with pytest.raises(RecipeError, match="has no folder"):
        resolve_model("package:distill/nothing")
