"""Shares of texts that maximum lengths cut, against the models' own tokenizers with truncation switched on and off."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from distill.pipeline.estimate import dry_run
from distill.pipeline.run import run_pipeline
from distill.pipeline.truncation import record_truncation, truncation_of
from distill.recipe.expand import open_run
from distill.recipe.load import parse_recipe
from distill.run.manifest import read_manifest
from distill.run.truncation import read_truncation
from tests.importing.files import lines


@pytest.fixture
def recipe(tmp_path, tiny_mlm, tiny_sentence, tiny_classifier):
    rows = [
        {
            "query": " ".join([f"number {i}", *["the"] * (i % 8)]),
            "positive": " ".join([f"number {i}", *["is"] * (10 + i)]),
        }
        for i in range(40)
    ]
    return parse_recipe(
        {
            "name": "t",
            "run_dir": str(tmp_path / "run"),
            "data": {"source": {"kind": "jsonl", "path": str(lines(tmp_path / "rows.jsonl", rows)), "dev_queries": 8}},
            "mine": {
                "miners": {
                    "bm25": {"kind": "bm25", "top": 9},
                    "dense": {"kind": "dense", "model": str(tiny_sentence), "top": 2},
                }
            },
            "teachers": {
                "cross": {"kind": "cross-encoder", "model": str(tiny_classifier), "max_length": 40},
                "llm": {"kind": "llm", "model": str(tiny_mlm), "max_length": 60, "template": "{query} ? {passage}"},
                "bi": {"kind": "bi-encoder", "model": str(tiny_sentence), "max_length": 32},
                "bm25": {"kind": "bm25"},
            },
            "student": {"model": str(tiny_mlm), "query_max_length": 8, "passage_max_length": 48},
            "train": {"steps": 1, "batch_size": 4, "negatives": 1},
        }
    )


def test_shares_are_those_of_texts_that_the_tokenizer_truncates(recipe, tmp_path):
    from transformers import AutoTokenizer

    run_pipeline(recipe, only="import")
    run = open_run(recipe)
    figures = {(figure.reader, figure.texts): figure for figure in truncation_of(run).figures}
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]

    def share(model, max_length: int, *columns: str) -> float:
        tokenizer = AutoTokenizer.from_pretrained(model)
        cut = [
            len(tokenizer(*texts, truncation=True, max_length=max_length)["input_ids"])
            < len(tokenizer(*texts, truncation=False)["input_ids"])
            for texts in ([row[column] for column in columns] for row in rows)
        ]
        return float(np.mean(cut))

    assert figures["student", "passages"].cut == share(recipe.student.model, 48, "positive") > 0
    assert figures["teacher bi", "passages"].cut == share(recipe.teachers["bi"].model, 32, "positive") > 0
    assert figures["miner dense", "passages"].cut == share(recipe.teachers["bi"].model, 128, "positive") == 0
    train, dev = (figures["student", f"{split} queries"] for split in ("train", "dev"))
    assert (32 * train.cut + 8 * dev.cut) / 40 == share(recipe.student.model, 8, "query") > 0.05
    pairs = figures["teacher cross", "train pairs of query and positive"]
    assert pairs.cut > 0 and pairs.counted == "all 32"
    assert pairs.cut == pytest.approx(share(recipe.teachers["cross"].model, 40, "query", "positive"), abs=0.1)
    prompts = figures["teacher llm", "train pairs of query and positive"]
    tokenizer = AutoTokenizer.from_pretrained(recipe.student.model)
    lengths = [len(tokenizer(f"{row['query']} ? {row['positive']}")["input_ids"]) for row in rows]
    assert prompts.cut > 0 and prompts.cut == pytest.approx(np.mean(np.array(lengths) > 60), abs=0.1)
    for figure in figures.values():  # the length that is advised
        assert figure.sufficient % 8 == 0
    assert share(recipe.student.model, figures["student", "passages"].sufficient, "positive") <= 0.01


def test_a_warning_names_the_field_and_a_sufficient_value(recipe, caplog):
    run_pipeline(recipe, only="import")
    run = open_run(recipe)
    (shown,) = dry_run(recipe)
    assert shown.truncation is not None and not run.folder.truncation.exists()
    with caplog.at_level(logging.WARNING):
        record_truncation(run)
    assert "the student reads at most 8 tokens" in caplog.text
    assert "set student.query_max_length to 16 to cut at most 1%" in caplog.text
    assert "set teachers.bi.max_length to" in caplog.text and "set teachers.cross.max_length to" in caplog.text
    record = read_truncation(run.folder)
    assert record == shown.truncation and record.made_from["data"] == read_manifest(run.folder.data).fingerprint
    caplog.clear()
    written = run.folder.truncation.stat().st_mtime_ns
    record_truncation(run)
    assert not caplog.records and run.folder.truncation.stat().st_mtime_ns == written
    longer = recipe.model_copy(update={"student": recipe.student.model_copy(update={"query_max_length": 16})})
    record_truncation(open_run(longer))
    assert "student.query_max_length" not in " ".join(read_truncation(run.folder).warnings)


def test_a_model_that_is_not_here_is_named_and_the_others_are_counted(recipe):
    run_pipeline(recipe, only="import")
    far = recipe.teachers["bi"].model_copy(update={"model": "nobody/nothing"})
    record = truncation_of(open_run(recipe.model_copy(update={"teachers": {**recipe.teachers, "bi": far}})))
    assert list(record.unknown) == ["teacher bi"] and "nobody/nothing" in record.unknown["teacher bi"]
    assert any(figure.reader == "teacher llm" for figure in record.figures)


def test_report_and_card_state_what_was_cut(finished):
    run = open_run(finished)
    passages = next(
        figure
        for figure in read_truncation(run.folder).figures
        if (figure.reader, figure.texts) == ("student", "passages")
    )
    page, card = run.folder.report.read_text(), (run.folder.model / "README.md").read_text()
    assert f"<td>{passages.cut:.1%}</td>" in page and "Texts longer than a model reads" in page
    for sentence in read_truncation(run.folder).warnings:
        assert sentence in page and sentence in card
