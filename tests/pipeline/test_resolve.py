"""Lengths chosen from the data: what is chosen, where it is recorded, and that it is a number everywhere after."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distill.errors import FingerprintError, RecipeError, StorageError
from distill.pipeline.estimate import dry_run
from distill.pipeline.resolve import resolve
from distill.pipeline.run import run_part, run_pipeline
from distill.pipeline.status import stage_states
from distill.recipe.expand import open_run, open_runs
from distill.recipe.load import load_recipe, parse_recipe
from distill.reporting.model_card import model_card
from distill.run.layout import RunFolder
from distill.run.truncation import read_truncation
from distill.student.checkpoint import load_student
from distill.training.fields import start_fields, training_fields
from tests.importing.files import lines
from tests.training.make_recipe import make_recipe

AUTO = {"query_max_length": "auto", "passage_max_length": "auto"}


def recipe(tmp_path, model, student: dict | None = None, words: int = 30):
    """Queries of 3 to 42 words; passages of `words` words, but for one of 400."""
    lengths = [words] * 40 + [400]
    rows = [
        {"query": " ".join(["number", *["the"] * (2 + i)]), "positive": " ".join([f"number {i}", *["is"] * (n - 2)])}
        for i, n in enumerate(lengths)
    ]
    return parse_recipe(
        {
            "name": "t",
            "run_dir": str(tmp_path / "run"),
            "data": {"source": {"kind": "jsonl", "path": str(lines(tmp_path / "rows.jsonl", rows)), "dev_queries": 5}},
            "mine": {"miners": {"bm25": {"kind": "bm25", "top": 9}}},
            "teachers": {"bm25": {"kind": "bm25"}},
            "student": {"model": str(model), **AUTO, **(student or {})},
            "train": {"steps": 1, "batch_size": 4, "negatives": 1},
        }
    )


def chosen(loaded) -> dict:
    return {entry["field"]: entry for entry in json.loads(RunFolder(loaded.folder).resolved.read_text())}


def test_lengths_are_percentiles_of_the_tokenised_texts(tmp_path, tiny_mlm):
    from transformers import AutoTokenizer

    loaded = recipe(tmp_path, tiny_mlm, {"prompts": {"query": "where is the "}})
    run_pipeline(loaded, only="import")
    run = resolve(open_run(loaded))
    tokenizer = AutoTokenizer.from_pretrained(tiny_mlm)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for side, text, share in (("query", "where is the {query}", 0.99), ("passage", "{positive}", 0.95)):
        counts = [len(tokenizer(text.format(**row), truncation=False)["input_ids"]) for row in rows]
        length = getattr(run.recipe.student, f"{side}_max_length")
        assert length % 8 == 0 and np.mean(np.array(counts) > length) <= 1 - share + 1e-9
        assert length - 8 < np.quantile(counts, share, method="inverted_cdf")
        entry = chosen(loaded)[f"student.{side}_max_length"]
        assert entry["value"] == length and "have at most" in entry["reason"] and "all" in entry["reason"]


def test_lengths_stay_within_budget_and_window(tmp_path, tiny_mlm):
    loaded = recipe(tmp_path, tiny_mlm, words=200)
    run_pipeline(loaded, only="import")
    assert resolve(open_run(loaded)).recipe.student.passage_max_length == 128  # positions of the tiny model
    assert chosen(loaded)["student.passage_max_length"]["reason"].startswith("the model's limit, although 95%")


def test_a_run_records_the_lengths_once_and_equals_one_with_the_same_numbers(tmp_path, tiny_mlm, caplog):
    loaded = recipe(tmp_path, tiny_mlm)
    run_pipeline(loaded, only="import")
    before = list(dry_run(loaded)[0].chosen.values())
    run_pipeline(loaded, only="mine")
    record = RunFolder(loaded.folder).resolved.read_bytes()
    run_part(open_run(loaded), "score", (0, 1))  # in this process
    run_pipeline(loaded, only="label")
    assert [f"{entry['value']} ({entry['reason']})" for entry in chosen(loaded).values()] == before
    run = resolve(open_run(loaded))
    lengths = run.recipe.student.query_max_length, run.recipe.student.passage_max_length
    numbers = loaded.student.model_copy(update=dict(zip(AUTO, lengths, strict=True)))
    explicit = loaded.model_copy(update={"student": numbers})
    assert training_fields(run) == training_fields(open_run(explicit))
    assert start_fields(run) == start_fields(open_run(explicit))
    run_pipeline(loaded, only="train")
    assert {state.stage: state.state for state in stage_states(open_runs(loaded))}["train"] == "done"
    assert {state.stage: state.state for state in stage_states(open_runs(explicit))}["train"] == "done"
    student = load_student(run.folder.model)
    assert (student.query_max_length, student.passage_max_length) == lengths
    assert f"| student.passage_max_length | {lengths[1]}, chosen from the data: 95% of the passages" in model_card(run)
    assert load_recipe(run.folder.recipe).student.passage_max_length == "auto"  # as written
    assert run.folder.resolved.read_bytes() == record
    other = loaded.student.model_copy(update={"passage_max_length": 24})
    with pytest.raises(FingerprintError, match=f"passage_max_length {lengths[1]} -> 24"):
        run_pipeline(loaded.model_copy(update={"student": other}), only="train")


def test_a_change_of_the_prompts_chooses_again(tmp_path, tiny_mlm):
    loaded = recipe(tmp_path, tiny_mlm)
    run_pipeline(loaded, only="import")
    before = resolve(open_run(loaded)).recipe.student
    longer = recipe(tmp_path, tiny_mlm, {"prompts": {"document": "the word " * 8}})
    assert resolve(open_run(longer)).recipe.student.passage_max_length == before.passage_max_length + 16


def test_before_the_import_the_dry_run_says_that_lengths_are_open(tmp_path, tiny_mlm):
    loaded = recipe(tmp_path, tiny_mlm)
    (round,) = dry_run(loaded)
    assert round.chosen == {
        "data.language": "auto, chosen after the import (english assumed here)",
        "student.query_max_length": "auto, chosen after the import (64 assumed here)",
        "student.passage_max_length": "auto, chosen after the import (256 assumed here)",
    }
    assert not RunFolder(loaded.folder).root.exists()


def test_other_words_than_auto_are_refused(tmp_path, tiny_mlm):
    for value in ("long", 0, 2.5):
        with pytest.raises(RecipeError, match=r"'student\.passage_max_length'.*(integer|greater|auto)"):
            make_recipe(tiny_mlm, tmp_path, student={"passage_max_length": value})


@pytest.mark.parametrize("content", ["null", "5", '{"a": 1}', "[1]", '[{"field": 3}]', '[{"unknown": 1}]'])
def test_a_record_that_is_not_ours_is_named_with_the_way_out(tmp_path, tiny_mlm, content):
    loaded = recipe(tmp_path, tiny_mlm)
    run_pipeline(loaded, only="import")
    run = open_run(loaded)
    for path in (run.folder.resolved, run.folder.truncation):
        path.write_text(content)
    with pytest.raises(StorageError, match=r"resolved\.json: damaged.*remove it"):
        resolve(run)
    with pytest.raises(StorageError, match=r"truncation\.json: damaged"):
        read_truncation(run.folder)
