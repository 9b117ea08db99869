"""Every stage in one run, on real Ray and real DeepSpeed, from a folder of texts to a checkpoint that others load."""

import json

import numpy as np
import pytest
import torch

from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.errors import FingerprintError
from distill.pipeline import run, stage_states
from distill.recipe_file import parse_recipe

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THINGS = ("book", "house", "river", "road", "table", "market", "school", "garden", "window", "paper")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_mlm, tiny_sentence):
    """A finished run over a hundred passages, and its recipe."""
    root = tmp_path_factory.mktemp("pipeline")
    data = root / "data"
    (data / "qrels").mkdir(parents=True)
    passages = [{"_id": f"{a}-{b}", "title": f"{a} {b}", "text": f"the {b} of number {a} is here , and people see it ."}
                for a in NUMBERS for b in THINGS]
    queries = [{"_id": f"q-{p['_id']}", "text": f"where is {p['title']}"} for p in passages[::2]]
    (data / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))
    (data / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    for split, rows in (("train", queries[:30]), ("dev", queries[30:40]), ("test", queries[40:])):
        lines = "".join(f"{query['_id']}\t{query['_id'][2:]}\t1\n" for query in rows)
        (data / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    recipe = parse_recipe({
        "name": "whole", "run_dir": str(root / "run"), "data": {"source": {"kind": "beir", "path": str(data)}},
        "mine": {"miners": {"bm25": {"kind": "bm25", "top": 5, "sample": 2, "depth": 20}}, "rerank_depth": 5,
                 "shard_queries": 10},
        "teachers": {
            "tuned": {"kind": "cross-encoder", "model": str(tiny_sentence), "max_length": 32, "dtype": "float32",
                      "fine_tune": {"folds": 2, "negatives": 2, "batch_size": 16, "lr": 1e-3}},
            "bi-encoder": {"kind": "bi-encoder", "model": str(tiny_sentence), "dtype": "float32"},
            "bm25": {"kind": "bm25"}},
        "label": {"map_to": "tuned"},
        "student": {"model": str(tiny_mlm), "query_max_length": 16, "passage_max_length": 24},
        "train": {"batch_size": 8, "negatives": 3, "steps": 6, "lr": 1e-3, "precision": "fp32", "evaluate_every": 3,
                  "losses": [{"kind": "kl"}, {"kind": "margin-mse", "weight": 0.05}],
                  "passage_regularizers": [{"kind": "flops", "weight": 1e-3, "ramp_steps": 4}]},
    })
    run(recipe)
    return recipe


def test_the_table_has_every_system_and_the_run_every_file(finished):
    folder = RunFolder(finished.folder)
    evaluation = json.loads(folder.evaluation.read_text())
    assert [row["name"] for row in evaluation["rows"]] == [
        "BM25", "rerank-tuned", "rerank-bi-encoder", "rerank-bm25", "rerank-ensemble", "start", "student"]
    for path in (folder.recipe, folder.report, folder.train_log, folder.model / "README.md",
                 folder.trec_run("student"), folder.start / "model.safetensors"):
        assert path.is_file(), path


def test_sparse_encoder_loads_the_model_and_encodes_as_training_does(finished):
    from sentence_transformers import SparseEncoder

    from distill.student.checkpoint import load_checkpoint

    folder = RunFolder(finished.folder)
    texts = TextStore.open(folder.passages).texts(np.arange(20))
    theirs = SparseEncoder(str(folder.model), device="cpu").encode_document(texts, convert_to_sparse_tensor=False)
    student = load_checkpoint(folder.model).eval()
    ids = [np.array(student.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    with torch.no_grad():
        ours = student(*student.assemble(ids, finished.student.passage_max_length)).to_dense()
    torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-5, atol=1e-5)


def test_a_second_run_finds_everything_done(finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.is_file()}
    with caplog.at_level("INFO"):
        run(finished)
    assert "everything was done already" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.is_file()}
    assert {state.state for state in stage_states(finished, verify=True)} == {"done"}


def test_a_changed_recipe_is_refused_at_the_stage_it_changes_and_names_the_field(finished):
    changed = finished.model_copy(update={"label": finished.label.model_copy(update={"normalise": "z-score"})})
    with pytest.raises(FingerprintError, match=r"stage 'label' must run again: .*normalise \"min-max\" -> \"z-score\""):
        run(changed)
    weights = finished.train.model_copy(update={"lr": 5e-4})
    with pytest.raises(FingerprintError, match=r"stage 'train' must run again: .*train\.lr 0\.001 -> 0\.0005"):
        run(finished.model_copy(update={"train": weights}))

