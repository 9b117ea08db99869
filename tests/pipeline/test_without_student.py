"""A recipe without a student scores candidates: it ends with labels, and every command knows where it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from distill.cli.app import app
from distill.config import Recipe
from distill.errors import HubError, RecipeError
from distill.importing.readers.naver import run_lines
from distill.pipeline.registry import stages_of
from distill.pipeline.run import run_part, run_pipeline
from distill.pipeline.status import stage_states
from distill.recipe.load import dump_recipe, load_recipe, parse_recipe
from distill.reporting.hub import push
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.texts import TextStore
from tests.helpers.whole_run import write_beir

RECIPE = Path(__file__).parents[2] / "configs" / "score-candidates.yaml"
STAGES = ["import", "mine", "teach", "score", "label"]
LISTS = {  # the positive of q-zero-book is zero-book, and so on
    "q-zero-book": ["zero-road", "zero-book", "one-river", "two-house"],
    "q-one-river": ["nine-paper", "one-road"],
    "q-five-table": ["five-table", "five-book", "five-road"],
    "q-nine-school": ["nine-paper"],  # a test query
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tiny_classifier) -> Recipe:
    """The recipe in configs/ on a small collection, with a small teacher, after all its stages."""
    root = tmp_path_factory.mktemp("scored")
    write_beir(root / "data")
    return scoring(root, tiny_classifier, "teachers.bm25={kind: bm25}")


def scoring(root: Path, teacher: Path, *overrides: str) -> Recipe:
    (root / "lists.json").write_text(json.dumps(LISTS))
    recipe = load_recipe(
        RECIPE,
        [
            f"data.source.path={root / 'data'}",
            f"run_dir={root / 'run'}",
            f"mine.miners.given.path={root / 'lists.json'}",
            f"teachers.cross-encoder.model={teacher}",
            "teachers.cross-encoder.dtype=float32",
            *overrides,
        ],
    )
    (root / "recipe.yaml").write_text(dump_recipe(recipe))
    for stage in ("import", "mine"):
        run_pipeline(recipe, only=stage)
    run_part(Run.of(recipe), "score", (0, 1))  # in this process
    run_pipeline(recipe)
    return recipe


def distill(recipe: Recipe, *arguments: str) -> str:
    """The output of a command, in which RECIPE is the recipe's file."""
    path = str(recipe.folder.parent / "recipe.yaml")
    words = [path if argument == "RECIPE" else argument for argument in arguments]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_every_listed_passage_and_positive_is_scored_as_the_model_scores_it(scored, tiny_classifier):
    output = scored.folder / "scores.run"
    distill(scored, "export", "RECIPE", "--teacher", "cross-encoder", "--format", "trec", "-o", str(output))
    pairs = {(query, passage): score for query, passage, score, _ in run_lines(output)}
    for query in ("q-zero-book", "q-one-river", "q-five-table"):
        assert {p for q, p in pairs if q == query} == {*LISTS[query], query[2:]}
    folder = RunFolder(scored.folder)
    queries, passages = TextStore.open(folder.queries("train")), TextStore.open(folder.passages)
    listed = [pair for pair in pairs if pair[0] in LISTS]
    texts = [
        store.texts(store.rows_of([pair[side] for pair in listed])) for side, store in enumerate((queries, passages))
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny_classifier)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_classifier).eval()
    with torch.no_grad():
        logits = model(**tokenizer(*texts, padding=True, truncation="longest_first", return_tensors="pt")).logits[:, 0]
    torch.testing.assert_close(torch.tensor([pairs[pair] for pair in listed]), logits, rtol=1e-4, atol=1e-5)


def test_scores_and_labels_are_exported_in_every_kind_of_file(scored, tmp_path):
    distill(scored, "export", "RECIPE", "-o", str(tmp_path / "labels.parquet"))
    rows = {row["query_id"]: row["passage_ids"] for row in pq.read_table(tmp_path / "labels.parquet").to_pylist()}
    assert rows["q-one-river"] == ["one-river", "nine-paper", "one-road"]
    for name, options in (("a.jsonl", ["--teacher", "bm25"]), ("folder", []), ("a.json", ["--format", "naver"])):
        distill(scored, "export", "RECIPE", *options, "-o", str(tmp_path / name))
        assert (tmp_path / name).exists()


def test_commands_end_with_the_labels(scored):
    assert [(state.stage, state.state) for state in stage_states([Run.of(scored)])] == [
        (name, "done") for name in STAGES
    ]
    assert not RunFolder(scored.folder).model.exists() and RunFolder(scored.folder).report.exists()
    status = distill(scored, "status", "RECIPE")
    assert all(name in status for name in STAGES) and "evaluate" not in status
    shown = distill(scored, "run", "RECIPE", "--dry-run")
    first_words = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert first_words[1:][: 1 + len(STAGES)] == ["data.language:", *STAGES] and not {"train", "evaluate"} & set(
        first_words
    )
    plan = json.loads(distill(scored, "plan", "RECIPE", "--gpus", "1", "--gpu-type", "h100", "--json"))
    assert {stage["stage"] for stage in plan["stages"]} <= set(STAGES) and plan["training"] is None
    assert "memory per training process" not in distill(scored, "plan", "RECIPE", "--gpus", "1", "--gpu-type", "h100")
    assert parse_recipe(yaml.safe_load(distill(scored, "show", "RECIPE"))) == scored
    assert str(scored.folder / "labels") in distill(scored, "run", "RECIPE")


def test_a_run_without_a_student_is_submitted_up_to_its_labels(scored, tmp_path):
    jobs = distill(scored, "submit", "RECIPE", f"run_dir={tmp_path / 'new'}", "--all", "--dry-run")
    assert "label" in jobs and "train.sbatch" not in jobs and "evaluate" not in jobs


def test_lists_are_scored_without_any_judgement(tmp_path, tiny_classifier):
    write_beir(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "qrels")
    recipe = scoring(tmp_path, tiny_classifier)
    assert RunFolder(recipe.folder).candidates("train").exists()
    distill(
        recipe, "export", "RECIPE", "--teacher", "cross-encoder", "--format", "naver", "-o", str(tmp_path / "a.json")
    )
    scores = json.loads((tmp_path / "a.json").read_text())
    assert {query: set(of_query) for query, of_query in scores.items()} == {q: set(ids) for q, ids in LISTS.items()}
    distill(recipe, "export", "RECIPE", "-o", str(tmp_path / "labels.parquet"))
    rows = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    labels = {row["query_id"]: dict(zip(row["passage_ids"], row["scores"], strict=True)) for row in rows}
    assert labels["q-zero-book"].keys() == set(LISTS["q-zero-book"])


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_stages_that_need_a_student_say_so(scored, stage):
    with pytest.raises(RecipeError, match=f"stage '{stage}' needs a student, and the recipe has none") as refused:
        run_pipeline(scored, only=stage)
    assert refused.value.exit_status == 2
    with pytest.raises(RecipeError, match="has no student"):
        assert scored.trained_student
    with pytest.raises(HubError, match="trains no student"):
        push(Run.of(scored), "a/b")


def test_sections_that_only_a_student_reads_are_refused(scored):
    tree = yaml.safe_load(dump_recipe(scored))
    for section, value in (("train", {"steps": 3}), ("evaluate", {"split": "dev"}), ("rounds", [{"mine": {}}])):
        with pytest.raises(RecipeError, match=f"`{section}` has no effect without a student: add the section"):
            parse_recipe({**tree, section: value})
    with pytest.raises(RecipeError, match=r"data\.train_queries is auto, .* without a student nothing is trained"):
        parse_recipe({**tree, "data": {**tree["data"], "train_queries": "auto"}})


def test_a_student_that_is_added_later_trains_on_the_scores_that_are_there(scored):
    tree = yaml.safe_load(dump_recipe(scored))
    run = Run.of(parse_recipe({**tree, "student": {"model": "m"}, "train": {"steps": 1}}))
    states = {
        (stage.name, *output.key): output.state().kind
        for stage in stages_of(run)
        if stage.name in STAGES
        for output in stage.outputs(run)
    }
    assert {key for key, state in states.items() if state == "missing"} == {("mine", "dev"), ("mine", "test")}
    assert all(state in ("done", "missing") for state in states.values())
