"""Loading of recipes: what is refused, and with which message."""

import re
from pathlib import Path

import pytest
import yaml

from distill.config import Miner, Train, meaning_of
from distill.errors import RecipeError
from distill.recipe.load import dump_recipe, load_recipe, parse_recipe

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.yaml"))
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
def test_a_shipped_recipe_is_valid_and_equal_after_dump_and_parse(path):
    recipe = load_recipe(path)
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_a_misspelt_field_is_reported_with_its_path_and_the_nearest_valid_name():
    assert "unknown field 'train.learning_rat'" in refused(train={"learning_rat": 1})
    assert "unknown field 'train.warmup_ration'; did you mean 'warmup_ratio'?" in refused(train={"warmup_ration": 0.1})
    assert "unknown field 'trin'; did you mean 'train'?" in refused(trin={})
    assert "unknown field 'train.losses.0.temprature'; did you mean" in refused(
        train={"losses": [{"kind": "infonce", "temprature": 2}]}
    )
    for name in ("bm25", "cross-encoder", "any"):  # a teacher may have the name of a kind
        assert f"unknown field 'teachers.{name}.wieght'; did you mean 'weight'?" in refused(
            teachers={name: {"kind": "bm25", "wieght": 1}}
        )
    assert "unknown field 'mine.miners.dense.dept'; did you mean 'depth'?" in refused(
        mine={"miners": {"dense": {"kind": "bm25", "dept": 1}}}
    )
    assert "unknown field 'data.source.pth'; did you mean 'path'?" in refused(
        data={"source": {"kind": "beir", "path": "x", "pth": "y"}}
    )


def test_an_unknown_or_missing_kind_is_reported_with_the_valid_kinds():
    assert "field 'train.losses.0.kind': unknown kind 'kll'; did you mean 'kl'?" in refused(
        train={"losses": [{"kind": "kll"}]}
    )
    assert "field 'train.losses.1.kind' is missing: one of " in refused(train={"losses": [{"kind": "kl"}, {}]})
    assert "field 'data.source.kind': unknown kind 'bear'; did you mean 'beir'?" in refused(
        data={"source": {"kind": "bear"}}
    )
    assert "field 'student.query.kind': unknown kind 'idff'; did you mean 'idf'?" in refused(
        student={"model": "m", "query": {"kind": "idff"}}
    )


def test_missing_and_impossible_values_are_reported_with_their_field():
    assert refused(student=5).startswith("recipe: field 'student': ")
    assert "'train.batch_size'" in refused(train={"batch_size": 0})
    assert "label.map_to names 'nobody'" in refused(label={"map_to": "nobody"})
    assert "cross-encoder teacher needs a model" in refused(teachers={"x": {"kind": "cross-encoder"}})
    assert "at least one teacher" in refused(teachers={})
    assert "every teacher has the weight 0" in refused(teachers={"bm25": {"kind": "bm25", "weight": 0}})
    assert "choose another" in refused(teachers={"ensemble": {"kind": "bm25"}})
    assert "at least one miner" in refused(mine={"miners": {}})
    assert "train.table_lr has no effect: student.query is model, not learned" in refused(train={"table_lr": 0.1})
    assert "which is not trained" in refused(
        student={"model": "m", "query": {"kind": "idf"}}, train={"query_regularizers": [{"kind": "l1", "weight": 1}]}
    )
    assert "should be a list (given: 'kl')" in refused(train={"losses": "kl"})


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
def test_a_field_that_a_kind_of_teacher_ignores_is_refused(kind, model, field, value):
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
def test_column_names_that_the_layout_does_not_have_are_refused(source, message):
    location = {"path" if source["kind"] == "jsonl" else "dataset": "x"}
    assert message in refused(data={"source": {**source, **location}})
    parse_recipe({**MINIMAL, "data": {"source": {**source, **location, "columns": {}}}})


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
        ({"slurm": {"max_parallel": 3}}, "max_parallel has no effect"),
        ({"evaluate": {"top_ks_of": "queries"}}, "`top_ks_of` has no effect"),
        ({"evaluate": {"start": False, "baselines": False}}, "`start` has no effect"),
    ],
)
def test_settings_without_effect_and_senseless_values_are_refused(sections, message):
    assert message in refused(**sections)


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    recipe = parse_recipe({**MINIMAL, "run_dir": "~/run"})
    assert str(recipe.folder) == "/home/somebody/run"


def test_a_bm25_miner_with_a_model_is_refused():
    assert "`model` has no effect with kind: bm25" in refused(mine={"miners": {"a": {"kind": "bm25", "model": "m"}}})


def test_an_override_takes_a_part_away(tmp_path):
    path = tmp_path / "recipe.yaml"
    losses = [{"kind": "kl"}, {"kind": "margin-mse"}]
    two = {**MINIMAL, "teachers": {"bm25": {"kind": "bm25"}, "second": {"kind": "bm25"}}, "train": {"losses": losses}}
    path.write_text(yaml.safe_dump(two))
    recipe = load_recipe(path, ["~teachers.second", "~train.losses.0"])
    assert list(recipe.teachers) == ["bm25"] and [loss.kind for loss in recipe.train.losses] == ["margin-mse"]
    for override, message in (
        ("~teachers.secnd", "no 'teachers.secnd' to take away; did you mean 'second'"),
        ("~train.losses.2", "no entry '2'"),
        ("~teachers.second=1", "name the part to take away alone"),
        ("~", "name the part"),
        ("~name.x", "'name' is not a section"),
    ):
        with pytest.raises(RecipeError, match=re.escape(message)):
            load_recipe(path, [override])


def test_overrides_reach_any_depth_and_are_validated(tmp_path):
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
    assert load_recipe(path, ["train.deepspeed={bucket: 5e8}"]).train.deepspeed["bucket"] == 5e8  # a number, not text
    with pytest.raises(RecipeError, match=r"dotted\.path=value"):
        load_recipe(path, ["train.lr"])
    with pytest.raises(RecipeError, match="did you mean 'lr'"):
        load_recipe(path, ["train.lrr=3"])
    with pytest.raises(RecipeError, match="is not a section"):
        load_recipe(path, ["name.x=3"])
    second = ["rounds=[{train: {lr: 1e-4}}]", "rounds.0.train.steps=5"]
    assert load_recipe(path, second).rounds == ({"train": {"lr": 1e-4, "steps": 5}},)
    with pytest.raises(RecipeError, match="the list has no entry '1'; entries are numbered from 0 to 0"):
        load_recipe(path, [second[0], "rounds.1.train.steps=5"])


def test_a_file_that_is_not_a_recipe_is_refused(tmp_path):
    broken = tmp_path / "broken.yaml"
    for text in ("a: [", "just words", "- 1", "name: a\nname: b"):
        broken.write_text(text)
        with pytest.raises(RecipeError, match=r"broken\.yaml"):
            load_recipe(broken)
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="distill init"):
        load_recipe(tmp_path)


def test_a_miner_without_ranks_to_sample_from_is_refused():
    fields = {"kind": "bm25", "top": 3, "skip": 2, "sample": 1}
    assert Miner(**fields, depth=6).sample == 1
    with pytest.raises(ValueError, match="ranks 6 to `depth`, which is 5"):
        Miner(**fields, depth=5)


def test_regularizer_settings_without_effect_are_refused():
    common = {"kind": "df-flops", "weight": 0.1, "alpha": 0.05}
    assert Train(batch_size=4, negatives=7, passage_regularizers=[common]).passage_regularizers[0].alpha == 0.05
    with pytest.raises(ValueError, match=r"query_regularizers: df-flops .* the 4 texts of a batch"):
        Train(batch_size=4, negatives=7, query_regularizers=[common])
    with pytest.raises(ValueError, match="group_size belongs to flops"):
        Train(passage_regularizers=[{"kind": "l1", "weight": 0.1, "group_size": 8}])


TARGET = {"kind": "flops", "weight": 0.1, "target_terms": 50}


@pytest.mark.parametrize("side", ["query", "passage"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_terms": 0}, "greater than or equal to 1"),
        ({"weight": 0}, "`weight`, which is 0"),
        ({"kind": "anti-zero"}, "no meaning with anti-zero"),
        ({"threshold": 50}, "out of reach: texts with at most 50 terms are exempt"),
        ({"kind": "custom", "cls": "math:sqrt"}, "target_terms"),
    ],
)
def test_a_target_that_cannot_be_held_is_refused(side, changes, words):
    with pytest.raises(ValueError, match=words):
        Train(**{f"{side}_regularizers": [{**TARGET, **changes}]})


def test_one_target_per_side_and_none_for_a_fixed_number_of_terms():
    other = {"kind": "l1", "weight": 0.1, "target_terms": 60}
    train = Train(query_regularizers=[other], passage_regularizers=[{"kind": "l1", "weight": 1}, TARGET])
    assert {side: term.target_terms for side, term in train.targets.items()} == {"query": 60, "passage": 50}
    with pytest.raises(ValueError, match="passage_regularizers: only one regulariser"):
        Train(passage_regularizers=[TARGET, other])
    message = refused(student={"kind": "csr", "model": "m"}, train={"passage_regularizers": [TARGET]})
    assert "train.passage_regularizers: target_terms has no effect on a student of kind csr" in message


def test_a_target_changes_fingerprint_inputs_only_where_it_is_set():
    plain, held = (
        meaning_of(Train(passage_regularizers=[{**TARGET, "target_terms": terms}]))["passage_regularizers"][0]
        for terms in (None, 50)
    )
    assert held == {**plain, "target_terms": 50} and "target_terms" not in plain
