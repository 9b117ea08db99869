"""What a later stage would refuse is refused before mining, by the same function."""

from __future__ import annotations

import shutil

import pytest

from distill.errors import DataError, RecipeError, StorageError, StudentError, TeacherError
from distill.pipeline.run import run_pipeline
from distill.pipeline.status import stage_states
from distill.recipe.expand import open_runs
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.store.texts import TextStore
from distill.store.tokens import build_token_store
from tests.importing.files import lines

ROWS = [{"query": f"number {i}", "positive": f"the number {i}", "negative": f"the word {i}"} for i in range(12)]


def recipe(tmp_path, rows: list[dict], student: dict, teachers: dict | None = None):
    for row in rows:
        row.pop("negative", None)  # candidates are mined
    return parse_recipe(
        {
            "name": "t",
            "run_dir": str(tmp_path / "run"),
            "data": {"source": {"kind": "jsonl", "path": str(lines(tmp_path / "rows.jsonl", rows)), "test_queries": 2}},
            "mine": {"miners": {"bm25": {"kind": "bm25", "top": 3}}},
            "teachers": teachers or {"bm25": {"kind": "bm25"}},
            "student": {"query_max_length": 8, "passage_max_length": 12, **student},
            "train": {"steps": 1},
        }
    )


def refused(tmp_path, *arguments) -> str:
    """The message of the refusal; the data were imported, and nothing was mined."""
    loaded = recipe(tmp_path, *arguments)
    with pytest.raises((RecipeError, TeacherError, StudentError)) as caught:
        run_pipeline(loaded)
    folder = RunFolder(loaded.folder)
    assert read_manifest(folder.data) is not None and not folder.candidates("train").exists()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["cross-encoder", "bi-encoder", "llm", "splade"])
def test_a_teacher_that_is_nowhere_is_refused_before_mining(tmp_path, tiny_mlm, kind):
    message = refused(tmp_path, ROWS, {"model": str(tiny_mlm)}, {"far": {"kind": kind, "model": "nobody/nothing"}})
    assert "'far'" in message and "nobody/nothing" in message


def test_a_fine_tuned_teachers_backbone_is_checked(tmp_path, tiny_mlm):
    teacher = {"kind": "cross-encoder", "model": str(tmp_path / "missing"), "fine_tune": {"folds": 2}}
    assert "missing: no such folder" in refused(tmp_path, ROWS, {"model": str(tiny_mlm)}, {"tuned": teacher})


def test_lengths_that_the_student_does_not_take_are_refused_before_mining(tmp_path, tiny_mlm):
    message = refused(tmp_path, ROWS, {"model": str(tiny_mlm), "passage_max_length": 4096})
    assert "student.passage_max_length is 4096" in message and "takes at most" in message


def test_lengths_of_a_dense_student_are_read_from_its_configuration(tmp_path, tiny_sentence):
    student = {"kind": "csr", "model": str(tiny_sentence), "k": 4, "latents": 32, "passage_max_length": 4096}
    assert "student.passage_max_length is 4096" in refused(tmp_path, ROWS, student)


def test_all_problems_are_told_at_once(tmp_path, tiny_mlm):
    student = {"model": str(tiny_mlm), "passage_max_length": 4096}
    message = refused(tmp_path, ROWS, student, {"far": {"kind": "cross-encoder", "model": "nobody/nothing"}})
    assert "nobody/nothing" in message and "passage_max_length" in message


def test_a_search_that_finds_no_negative_ends_the_run_before_scoring(tmp_path, tiny_mlm):
    rows = [{"query": f"only{i}", "positive": f"only{i} here{i}"} for i in range(6)]
    loaded = recipe(tmp_path, rows, {"model": str(tiny_mlm)})
    with pytest.raises(DataError, match=r"no training query has a negative: bm25 found nothing but positives"):
        run_pipeline(loaded)
    assert read_manifest(RunFolder(loaded.folder).candidates("train")) is None


@pytest.mark.parametrize(
    "text",
    [
        "東京は日本の首都です番号",
        "北京是中国的首都号码",
        "กรุงเทพเป็นเมืองหลวงหมายเลข",
        "ភ្នំពេញជារាជធានីលេខ",
        "서울은 대한민국의 수도입니다",
        "Москва столица России",
        "القاهرة عاصمة مصر",
    ],
)
def test_bm25_finds_negatives_in_any_script(tmp_path, tiny_mlm, text):
    rows = [{"query": f"{text}{i}", "positive": f"{text}{i}{text}"} for i in range(6)]
    loaded = recipe(tmp_path, rows, {"model": str(tiny_mlm)})
    run_pipeline(loaded, only="import")
    run_pipeline(loaded, only="mine")
    counts = read_manifest(RunFolder(loaded.folder).candidates("train")).counts
    assert counts["negatives"] == 3 * counts["queries"]


def test_inputs_are_verified_without_the_source(tmp_path, tiny_mlm):
    rows = [
        {"query": f"q{i}", "pos": [f"a{i}"], "neg": [f"b{i}"], "pos_scores": [2], "neg_scores": [1]} for i in range(9)
    ]
    given = recipe(tmp_path, rows, {"model": str(tiny_mlm)}, {"given": {"kind": "imported"}})
    run_pipeline(given, only="import")
    (tmp_path / "rows.jsonl").unlink()  # as on a machine that only trains
    run_pipeline(given, only="label")


def test_damaged_inputs_of_a_stage_are_named_before_it_starts(tmp_path, tiny_mlm):
    loaded = recipe(tmp_path, [dict(row) for row in ROWS], {"model": str(tiny_mlm)})
    run_pipeline(loaded, only="import")
    passages = RunFolder(loaded.folder).passages
    content = bytearray(passages.read_bytes())
    content[content.index(b"number 3")] ^= 1  # another text, in a whole Arrow file
    passages.write_bytes(content)
    with pytest.raises(StorageError, match=r"passages\.arrow: missing or damaged since they were written"):
        run_pipeline(loaded, only="mine")
    run_pipeline(loaded.model_copy(update={"verify_inputs": False}), only="mine")


def test_damaged_caches_are_found_by_status_and_made_again_by_the_next_stage(tmp_path, tiny_mlm, tiny_sentence, caplog):
    teachers = {"near": {"kind": "bi-encoder", "model": str(tiny_sentence), "max_length": 16, "dtype": "float32"}}
    loaded = recipe(tmp_path, [dict(row) for row in ROWS], {"model": str(tiny_mlm)}, teachers)
    folder = RunFolder(loaded.folder)
    for stage in ("import", "mine", "score"):
        run_pipeline(loaded, only=stage)
    build_token_store(TextStore.open(folder.passages), str(tiny_mlm), folder.tokens("key", "passages"), 8)
    caches = [
        folder.tokens("key", "passages"),
        *sorted(folder.vectors("near").rglob("*.arrow")),
        folder.execution("near"),
    ]
    before = [path.read_bytes() for path in caches]
    for path, content in zip(caches, before, strict=True):
        path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    states = stage_states(open_runs(loaded), verify=True)
    assert {file for state in states for file in state.damaged_caches} == set(map(str, caches))
    run_pipeline(loaded, only="label")
    assert all(f"{path}: damaged" in caplog.text for path in caches)
    assert not any(path.exists() for path in caches)
    assert not any(state.damaged_caches for state in stage_states(open_runs(loaded), verify=True))


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("teachers/tuned/fold-0/tokenizer_config.json", "score"),
        ("model/1_SpladePooling/config.json", "evaluate"),
        ("start/tokenizer.json", "train"),
    ],
)
def test_any_file_of_a_model_that_changed_is_named_before_the_model_is_used(finished, tmp_path, file, stage):
    root = tmp_path / "run"
    shutil.copytree(finished.folder, root)
    for output in {"score": ["scores"], "train": ["model"], "evaluate": ["metrics"]}[stage]:
        shutil.rmtree(root / output)
    changed = root / file
    changed.write_text(changed.read_text() + "\n")
    with pytest.raises(StorageError, match=f"{changed.name}: missing or damaged since"):
        run_pipeline(finished.model_copy(update={"run_dir": str(root)}), only=stage)
