"""The command line in real processes: output and exit status."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distill.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]


def distill(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "distill.cli", *map(str, arguments)],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_output_in_other_encodings_has_similar_characters_instead_of_a_traceback(tmp_path, encoding):
    for name, order in (("a", "d1 d2"), ("b", "d2 d1")):
        rows = [
            f"q{i} Q0 {doc} {rank} {3 - rank} ü{name}" for i in range(3) for rank, doc in enumerate(order.split(), 1)
        ]
        (tmp_path / f"{name}.run").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "qrels").write_text("".join(f"q{i} 0 d1 1\n" for i in range(3)))
    command = [sys.executable, "-m", "distill.cli", "compare", "a.run", "b.run", "--qrels", "qrels"]
    shown = subprocess.run(
        command, cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, timeout=100
    )
    assert shown.returncode == 0 and b"Traceback" not in shown.stderr
    assert "nDCG" in shown.stdout.decode(encoding)


@pytest.fixture
def beir(tmp_path) -> Path:
    folder = tmp_path / "corpus's folder"  # a quote and a space, which no code may interpret
    (folder / "qrels").mkdir(parents=True)
    passages = [
        {"_id": f"d{i}", "title": f"Number {i}", "text": f"The passage about the number {i} and its friends."}
        for i in range(12)
    ]
    queries = [{"_id": f"q{i}", "text": f"tell me about number {i}"} for i in range(6)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    for split, rows in (("train", range(4)), ("test", range(4, 6))):
        lines = "".join(f"q{i}\td{i}\t1\n" for i in rows)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


@pytest.fixture
def recipe(tmp_path, beir) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "cli",
                "run_dir": str(tmp_path / "run"),
                "data": {"source": {"kind": "beir", "path": str(beir)}},
                "mine": {"miners": {"bm25": {"kind": "bm25", "top": 3}}, "rerank_depth": 5},
                "teachers": {"bm25": {"kind": "bm25"}},
                "student": {"model": str(tmp_path / "nowhere")},
            }
        )
    )
    return path


def test_the_command_line_imports_no_heavy_library():
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, distill.cli.app; print({'torch', 'ray', 'transformers', 'datasets', 'deepspeed'} & "
            "set(sys.modules))",
        ],
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.strip() == "set()"


def test_bad_input_ends_with_one_message_and_status_2(recipe, beir):
    shown = distill("run", recipe, "train.lrr=3")
    assert shown.returncode == 2 and shown.stderr.count("\n") == 1 and "did you mean 'lr'" in shown.stderr
    (beir / "corpus.jsonl").write_text('{"_id": "d0", "text": "fine"}\n{"_id": "d1", "text": \n')
    shown = distill("import", recipe)
    assert shown.returncode == 2 and "corpus.jsonl:2" in shown.stderr and "Traceback" not in shown.stderr
    assert not (recipe.parent / "run" / "data" / "manifest.json").exists()


def test_settings_that_evaluation_would_refuse_are_refused_before_mining(recipe):
    for override, message in (
        ("evaluate.metrics=[nDGC@10]", "'nDGC@10' is not a measure"),
        ("evaluate.split=dev", "no judged dev queries; set evaluate.split=test"),
    ):
        shown = distill("run", recipe, override)
        assert shown.returncode == 2 and message in shown.stderr and "Traceback" not in shown.stderr
    assert not (recipe.parent / "run" / "candidates").exists()


def test_stages_run_one_by_one_and_report_what_is_done(recipe):
    run = recipe.parent / "run"
    assert distill("import", recipe).returncode == 0
    assert (run / "data" / "manifest.json").is_file() and not (run / "candidates").exists()
    assert distill("mine", recipe).returncode == 0
    assert "done already" in distill("import", recipe).stderr
    states = {state["stage"]: state["state"] for state in json.loads(distill("status", recipe, "--json").stdout)}
    assert states["import"] == states["mine"] == states["teach"] == "done" and states["score"] == "pending"


def test_a_changed_recipe_is_refused_with_the_changed_field_and_redo_sets_its_output_aside(recipe):
    assert distill("mine", recipe).returncode == 2  # nothing imported yet
    assert distill("import", recipe).returncode == 0
    assert distill("mine", recipe).returncode == 0
    shown = distill("mine", recipe, "mine.miners.bm25.top=2")
    assert shown.returncode == 2 and "miners.bm25.top 3 -> 2" in shown.stderr
    redone = distill("mine", recipe, "mine.miners.bm25.top=2", "--redo")
    assert redone.returncode == 0 and "miners.bm25.top 3 -> 2" in redone.stderr
    assert len(list((recipe.parent / "run" / "replaced").glob("*/candidates/train/manifest.json"))) == 1


def test_status_gives_the_reason_why_a_stage_cannot_start(recipe, beir):
    shutil.move(beir, beir.with_name("elsewhere"))
    shown = distill("status", recipe)
    assert shown.returncode == 0 and "cannot start" in shown.stdout and "no such folder" in shown.stdout


def test_status_verify_finds_a_damaged_file(recipe):
    distill("import", recipe)
    assert distill("status", recipe, "--verify").returncode == 0
    store = recipe.parent / "run" / "data" / "passages.arrow"
    content = bytearray(store.read_bytes())
    content[len(content) // 2] ^= 1
    store.write_bytes(content)
    shown = distill("status", recipe, "--verify")
    assert shown.returncode == 2 and "passages.arrow" in shown.stdout


def test_init_writes_a_recipe_that_validates_and_never_overwrites(tmp_path, beir):
    made = tmp_path / "made.yaml"
    shown = distill("init", beir, "-o", made)
    assert shown.returncode == 0 and "12 passages" in shown.stdout
    assert distill("run", made, "--dry-run").returncode == 0
    planned = json.loads(distill("plan", made, "--json").stdout)
    assert planned["not_counted"] == 0 and all(stage["wall_seconds"] is not None for stage in planned["stages"])
    again = distill("init", beir, "-o", made)
    assert again.returncode == 2 and "--force" in again.stderr
    into = distill("init", beir, "-o", tmp_path, "--force")
    assert into.returncode == 2 and "is a folder; name the recipe's file with -o" in into.stderr


@pytest.mark.parametrize("queries", [True, False])
def test_init_without_judgements_evaluates_on_development_queries_generated_from_passages(tmp_path, beir, queries):
    shutil.rmtree(beir / "qrels")
    if not queries:
        (beir / "queries.jsonl").unlink()
    made = tmp_path / "2024.yaml"
    assert distill("init", beir.rename(tmp_path / "2024"), "-o", made).returncode == 0
    recipe = load_recipe(made)
    assert recipe.name == "2024" and recipe.data.generate is not None and recipe.evaluate.split == "dev"


@pytest.mark.parametrize(
    ("scores", "label"),
    [([7.5, -2.0], {"normalise": "none", "scale": 1.0}), ([0.9, 0.4], {"normalise": "min-max", "scale": 8.0})],
)
def test_init_uses_the_scores_of_rows_as_a_teacher(tmp_path, scores, label):
    rows = [{"query": f"q {i}", "positive": f"p {i}", "negative": "n", "scores": scores} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = tmp_path / "made.yaml"
    shown = distill("init", tmp_path / "rows.jsonl", "-o", made)
    assert shown.returncode == 0 and f"scores from {scores[1]:g} to {scores[0]:g} in the first 20 rows" in shown.stdout
    recipe = load_recipe(made)
    assert {name: teacher.kind for name, teacher in recipe.teachers.items()} == {"given": "imported"}
    assert recipe.label.model_dump(include={"normalise", "scale", "map_to"}) == {**label, "map_to": None}
    assert distill("run", made, "--dry-run").returncode == 0


def test_the_recipe_that_init_writes_for_rows_with_scores_runs(tmp_path):
    rows = [{"query": f"q {i}", "positive": f"p {i}", "negative": "n", "scores": [0.9, 0.4]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made, override = tmp_path / "made.yaml", f"run_dir={tmp_path / 'run'}"
    assert distill("init", tmp_path / "rows.jsonl", "-o", made).returncode == 0
    shown = distill("score", made, override)
    assert shown.returncode == 2 and "run `distill import` first" in shown.stderr
    for stage in ("import", "score", "label"):
        shown = distill(stage, made, override)
        assert shown.returncode == 0, shown.stderr


def test_dry_run_counts_the_sources_files_and_respects_the_limit(recipe):
    shown = distill("run", recipe, "--dry-run", "--limit", 3)
    assert "12 passages, 3 train queries, 2 test queries" in shown.stdout, shown.stdout + shown.stderr


def test_dry_run_uses_existing_files_else_the_sizes_declared_in_the_recipe(beir, tmp_path):
    arguments = ("run", "configs/beir.yaml", f"run_dir={tmp_path / 'run'}", "--dry-run")
    shown = distill(*arguments, f"data.source.path={json.dumps(str(beir))}")
    assert "sizes from the source's files" in shown.stdout, shown.stderr
    assert "12 passages, 11 train queries, 1 dev queries, 2 test queries" in shown.stdout
    shown = distill(*arguments, f"data.source.path={tmp_path / 'nowhere'}")
    assert f"sizes from data.sizes of the recipe ({tmp_path / 'nowhere'}: no such folder)" in shown.stdout
    assert "1,400 passages, 2,017 train queries" in shown.stdout


def test_dry_run_prints_every_stage_of_the_published_recipe():
    shown = distill("run", "configs/splade-v3.yaml", "--dry-run")
    assert shown.returncode == 0
    for expected in (
        "8,841,823 passages",
        "500,000 training queries",
        "31,250 steps of 80 queries x 9 passages",
        "pairs x 5 teachers",
    ):
        assert expected in shown.stdout, shown.stdout


def test_export_writes_scores_and_refuses_labels_that_do_not_exist(recipe, tmp_path):
    rows = [
        {"query": f"query {i}", "positive": f"passage {i}", "negative": "none", "scores": [i, 0.1]} for i in range(3)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe.write_text(
        yaml.safe_dump(
            {
                "name": "cli",
                "run_dir": str(tmp_path / "run"),
                "student": {"model": "nowhere"},
                "data": {"source": {"kind": "jsonl", "path": str(tmp_path / "in.jsonl")}},
                "teachers": {"given": {"kind": "imported"}},
            }
        )
    )
    assert distill("import", recipe).returncode == 0
    shown = distill("export", recipe, "--teacher", "given", "--format", "triplet", "-o", tmp_path / "out.jsonl")
    assert shown.returncode == 0 and "3 queries, 6 pairs" in shown.stdout
    assert [json.loads(line)["positive"] for line in (tmp_path / "out.jsonl").open()] == [
        row["positive"] for row in rows
    ]
    shown = distill("export", recipe, "-o", tmp_path / "labels.jsonl")
    assert shown.returncode == 2 and "run `distill label` first" in shown.stderr and "Traceback" not in shown.stderr
    assert not (tmp_path / "labels.jsonl").exists()


def test_inspect_joins_shards_with_their_texts(recipe):
    distill("import", recipe)
    distill("mine", recipe)
    shown = distill("inspect", recipe.parent / "run" / "candidates" / "train" / "part-00000.arrow").stdout
    assert "tell me about number 0" in shown and "(d0): Number 0 The passage" in shown


def test_limit_rehearses_in_a_separate_run_folder(recipe):
    assert distill("import", recipe, "--limit", 2).returncode == 0
    manifest = json.loads((recipe.parent / "run-limit-2" / "data" / "manifest.json").read_text())
    assert manifest["counts"]["queries.train"] == 2 and not (recipe.parent / "run").exists()
