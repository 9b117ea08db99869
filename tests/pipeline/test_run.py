"""All stages in one run, on real Ray and DeepSpeed, from a folder of texts to a checkpoint that other tools load."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.errors import FingerprintError, StorageError
from distill.pipeline.registry import stage_of
from distill.pipeline.run import run_part, run_pipeline, run_stage
from distill.pipeline.status import stage_states
from distill.recipe.expand import open_runs
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.texts import TextStore


def test_a_finished_run_has_a_row_per_system_and_every_file(finished):
    folder = RunFolder(finished.folder)
    evaluation = json.loads(folder.evaluation.read_text())
    assert [row["name"] for row in evaluation["rows"]] == [
        "BM25",
        "rerank-tuned",
        "rerank-bi-encoder",
        "rerank-bm25",
        "rerank-ensemble",
        "start",
        "student",
    ]
    for path in (
        folder.recipe,
        folder.report,
        folder.train_log,
        folder.model / "README.md",
        folder.trec_run("student"),
        folder.start / "model.safetensors",
    ):
        assert path.is_file(), path


def test_sparse_encoder_loads_the_final_model_and_encodes_as_training_does(finished):
    from sentence_transformers import SparseEncoder

    from distill.student.checkpoint import load_student

    folder = RunFolder(finished.folder)
    texts = TextStore.open(folder.passages).texts(np.arange(20))
    theirs = SparseEncoder(str(folder.model), device="cpu").encode_document(texts, convert_to_sparse_tensor=False)
    student = load_student(folder.model).eval()
    ids = [np.array(student.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    with torch.no_grad():
        ours = student(*student.assemble(ids, finished.student.passage_max_length)).to_dense()
    torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-5, atol=1e-5)


def test_a_second_run_writes_nothing(finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.is_file()}
    with caplog.at_level("INFO"):
        run_pipeline(finished)
    assert "everything was done already" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.is_file()}
    assert {state.state for state in stage_states(open_runs(finished), verify=True)} == {"done"}


def test_output_is_not_set_aside_while_its_stage_runs(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    first, second = (
        Run.of(
            finished.model_copy(
                update={
                    "run_dir": str(tmp_path / "run"),
                    "label": finished.label.model_copy(update={"normalise": normalise}),
                }
            )
        )
        for normalise in ("none", "z-score")
    )
    stage, tried = stage_of(first, "label"), []

    def execute(run, outputs):
        stage.execute(run, outputs)
        tried.append(len(list(run.folder.replaced.iterdir())))
        with pytest.raises(StorageError, match="another process runs stage 'label' here, from another recipe"):
            run_stage(stage, second, redo=True)
        assert outputs[0].state().kind == "done" and len(list(run.folder.replaced.iterdir())) == tried[0]

    assert run_stage(replace(stage, execute=execute), first, redo=True) and tried == [1]
    assert run_stage(stage, second, redo=True)


def test_a_changed_recipe_is_refused_at_the_stage_it_affects_with_the_changed_field(finished):
    changed = finished.model_copy(update={"label": finished.label.model_copy(update={"normalise": "z-score"})})
    with pytest.raises(FingerprintError, match=r"stage 'label' must run again: .*normalise \"min-max\" -> \"z-score\""):
        run_pipeline(changed)
    weights = finished.train.model_copy(update={"lr": 5e-4})
    with pytest.raises(FingerprintError, match=r"stage 'train' must run again: .*train\.lr 0\.001 -> 0\.0005"):
        run_pipeline(finished.model_copy(update={"train": weights}))


def test_a_single_stage_does_not_build_on_stale_stages(finished):
    before = RunFolder(finished.folder).recipe.read_text()
    changed = finished.model_copy(update={"label": finished.label.model_copy(update={"normalise": "z-score"})})
    for stage in ("train", "evaluate"):
        with pytest.raises(
            FingerprintError,
            match=rf"(?s)'{stage}' would build on stage 'label', which must run "
            r"again: .*normalise .*run `distill label --redo`",
        ):
            run_pipeline(changed, only=stage)
    other = finished.model_copy(update={"mine": finished.mine.model_copy(update={"rerank_depth": 7})})
    with pytest.raises(FingerprintError, match="'score' would build on stage 'mine'"):
        run_part(Run.of(other), "score", (0, 1))
    assert RunFolder(finished.folder).recipe.read_text() == before
