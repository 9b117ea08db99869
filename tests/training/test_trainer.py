"""Training from label shards to a saved model; a run killed and resumed ends with the same weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SparseEncoder

from distill.errors import FingerprintError, ModelError, Preempted, RecipeError, TrainingError
from distill.evaluation.evaluate import evaluate_student
from distill.recipe.load import dump_recipe
from distill.run.files import locked
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.run.run import Run
from distill.store.texts import TextStore
from distill.student.checkpoint import load_student
from distill.training import checkpoints, development, launch, trainer
from distill.training.checkpoints import load, load_best, newest, save, save_best
from distill.training.datasets import Dataset, open_tokens
from distill.training.development import Development
from distill.training.engine import Engine
from distill.training.fields import training_fields
from tests.helpers.stages import train
from tests.training.conftest import build_labelled
from tests.training.make_recipe import make_recipe


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def steps(recipe):
    lines = RunFolder(recipe.folder).train_log.read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def weights(recipe):
    return load_file(RunFolder(recipe.folder).model / "model.safetensors")


def run(recipe):
    train(recipe, RunFolder(recipe.folder))
    return weights(recipe)


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def assert_close(got, expected):
    for name, value in expected.items():
        assert (got[name] - value).norm() <= 1e-5 * value.norm() + 1e-7, name


@contextmanager
def once_logged(recipe, step, action):
    """Call `action` as soon as the training log has `step` steps."""

    def watch():
        while not over.wait(0.005):
            if RunFolder(recipe.folder).train_log.exists() and len(steps(recipe)) >= step:
                action()
                return

    over, watcher = threading.Event(), threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_training_lowers_the_loss_and_saves_a_model_that_sparse_encoder_loads(tiny_mlm, run_folder):
    recipe = make_recipe(tiny_mlm, run_folder, steps=40, evaluate_every=20)
    run(recipe)
    log = steps(recipe)
    assert [line["step"] for line in log] == list(range(1, 41))
    assert np.mean([line["loss"] for line in log[-5:]]) < 0.5 * np.mean([line["loss"] for line in log[:5]])
    assert {
        "kl",
        "margin-mse",
        "query-l1",
        "passage-flops",
        "query_active",
        "passage_active",
        "flops",
        "grad_norm",
        "lr",
        "tokens_per_second",
        "mfu",
        "peak_memory_gib",
    } <= log[0].keys()
    folder = RunFolder(recipe.folder)
    encoder = SparseEncoder(str(folder.model), device="cpu")
    student = load_student(folder.model)
    ids = [np.array(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("about time", "work")]
    with torch.no_grad():
        ours = student.eval()(*student.assemble(ids, 24)).to_dense()
    theirs = encoder.encode_document(["about time", "work"], convert_to_sparse_tensor=False)
    torch.testing.assert_close(torch.as_tensor(theirs), ours, rtol=1e-5, atol=1e-5)


def test_prompts_are_used_in_training_saved_and_applied_by_sparse_encoder(tiny_mlm, run_folder):
    recipe = make_recipe(tiny_mlm, run_folder, {"prompts": {"query": "find time: ", "document": "work "}}, steps=2)
    run(recipe)
    folder = RunFolder(recipe.folder)
    student, encoder = load_student(folder.model), SparseEncoder(str(folder.model), device="cpu")
    for side, prompt, tokens, texts, encode in (
        ("query", "find time: ", 0, folder.queries("train"), encoder.encode_query),
        ("passage", "work ", 1, folder.passages, encoder.encode_document),
    ):
        texts = TextStore.open(texts).texts(np.arange(5))
        ids = open_tokens(student, Dataset(folder, recipe.train))[tokens].take(np.arange(5))  # what training read
        plain = encoder.tokenizer([prompt + text for text in texts], add_special_tokens=False)["input_ids"]
        assert [list(row) for row in ids] == [row[: student.max_length(side)] for row in plain]
        with torch.no_grad():
            ours = student.eval()(*student.assemble(ids, student.max_length(side))).to_dense()
        torch.testing.assert_close(encode(texts, convert_to_sparse_tensor=False), ours, rtol=1e-5, atol=1e-5)
    with pytest.raises(RecipeError, match=r"prompts\.query"):
        make_recipe(tiny_mlm, run_folder, {"query": {"kind": "binary"}, "prompts": {"query": "find: "}})


def test_a_finished_training_is_not_repeated_and_another_recipe_is_refused(tiny_mlm, run_folder):
    recipe = make_recipe(tiny_mlm, run_folder, steps=4, checkpoints={"every": 2})
    folder = RunFolder(recipe.folder)

    def written():
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.root.rglob("*")}

    run(recipe)
    before = written()
    run(recipe)
    assert written() == before
    (folder.model / "manifest.json").unlink()
    with pytest.raises(FingerprintError, match=r"train\.lr"):
        run(make_recipe(tiny_mlm, run_folder, steps=4, lr=0.5))


def test_a_start_of_another_recipe_is_refused_before_the_first_checkpoint(tiny_mlm, run_folder, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    recipe = make_recipe(tiny_mlm, run_folder)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Engine, "step", killed)
        run(recipe)
    other = recipe.model_copy(update={"student": recipe.student.model_copy(update={"pooling": "sum"})})
    with pytest.raises(FingerprintError, match=r"student\.pooling"):
        run(other)


def test_an_activation_budget_set_on_resume_takes_effect(tiny_mlm, run_folder, monkeypatch):
    calls, step = [], Engine.step

    def killed_at_the_third(self, lr_factor):
        calls.append(lr_factor)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, lr_factor)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Engine, "step", killed_at_the_third)
        run(make_recipe(tiny_mlm, run_folder, steps=4, checkpoints={"every": 2}))
    recipe = make_recipe(tiny_mlm, run_folder, steps=4, checkpoints={"every": 2}, activation_budget=1.0)
    run(recipe)
    assert [line["kept_graphs"] > 0 for line in steps(recipe)] == [False, False, True, True]


def test_a_preempted_run_saves_and_resumes_to_the_same_weights(tiny_mlm, run_folder, copied):
    """With dropout and Adam: random draws, moments and order are all restored."""
    expected = run(make_recipe(tiny_mlm, run_folder, steps=8))
    recipe = make_recipe(tiny_mlm, copied, steps=8)
    with once_logged(recipe, 3, lambda: os.kill(os.getpid(), signal.SIGUSR1)), pytest.raises(Preempted) as stopped:
        run(recipe)
    assert stopped.value.exit_status == 75
    assert RunFolder(recipe.folder).preempted.exists()
    assert_equal(run(recipe), expected)
    assert not RunFolder(recipe.folder).preempted.exists()
    assert [line["step"] for line in steps(recipe)] == list(range(1, 9))


HELD = {
    "query_regularizers": [{"kind": "l1", "weight": 1e-2, "ramp_steps": 4, "target_terms": 150}],
    "passage_regularizers": [{"kind": "flops", "weight": 1e-2, "ramp_steps": 4, "target_terms": 200}],
}


def weights_in_force(recipe):
    return [(line["query_l1_weight"], line["passage_flops_weight"]) for line in steps(recipe)]


def test_weights_with_a_target_are_saved_and_resumed(tiny_mlm, run_folder, copied):
    undisturbed, recipe = (make_recipe(tiny_mlm, root, steps=8, **HELD) for root in (run_folder, copied))
    expected = run(undisturbed)
    with once_logged(recipe, 3, lambda: os.kill(os.getpid(), signal.SIGUSR1)), pytest.raises(Preempted):
        run(recipe)
    assert_equal(run(recipe), expected)
    assert weights_in_force(recipe) == weights_in_force(undisturbed)
    assert len(set(weights_in_force(recipe)[3:])) > 1, "the weights change after the ramp"


def test_weights_with_a_target_are_the_same_on_two_processes(tiny_mlm, run_folder, copied):
    changes = {"steps": 6, "optimizer": "sgd", "lr": 0.01, "dropout": 0.0, **HELD}
    one = make_recipe(tiny_mlm, run_folder, **changes)
    expected = run(one)
    two = make_recipe(tiny_mlm, copied, **changes, processes=2)
    assert_close(run(two), expected)
    assert np.array(weights_in_force(two)) == pytest.approx(np.array(weights_in_force(one)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("queries", "words_per_passage"), [(64, (2, 5)), (96, (8, 12))])
def test_a_target_is_held_on_other_collections_from_weights_ten_times_off(
    tiny_mlm, tmp_path, queries, words_per_passage
):
    """A fixed weight of 0.003 holds about the target."""
    for weight in (0.0003, 0.03):
        root = tmp_path / str(weight)
        root.mkdir()
        target = {"kind": "flops", "weight": weight, "ramp_steps": 16, "target_terms": 100}
        settings = {"batch_size": 16, "steps": 160, "lr": 2e-3, "chunk_tokens": 2048, "query_regularizers": []}
        build_labelled(root, queries, words_per_passage, seed=queries)
        recipe = make_recipe(tiny_mlm, root, **settings, passage_regularizers=[target])
        run(recipe)
        end = np.mean([line["passage_active"] for line in steps(recipe)[-8:]])
        assert abs(np.log(end / 100)) < 0.25, (weight, end)


def apart(recipe, place):
    """Start `train` in a separate process, independent of the state that earlier tests left in this one."""
    place.mkdir(exist_ok=True)
    (place / "recipe.yaml").write_text(dump_recipe(recipe))
    return subprocess.Popen(
        [sys.executable, "-m", "distill.training.worker", place / "recipe.yaml", recipe.folder, place / "outcome"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_datasets_train_with_their_own_losses_and_resume_exactly(
    tiny_mlm, run_folder, copied, labelled_folder, tmp_path
):
    shutil.copytree(labelled_folder / "run", tmp_path / "else")
    mixing = {
        "steps": 8,
        "checkpoints": {"every": 3},
        "mixing": {"by": "round-robin"},
        "datasets": {
            "else": {
                "run": str(tmp_path / "else"),
                "prompts": {"query": "work "},
                "losses": [{"kind": "infonce", "temperature": 5.0}],
            }
        },
    }
    expected = run(make_recipe(tiny_mlm, run_folder, **mixing))
    recipe = make_recipe(tiny_mlm, copied, **mixing)
    with once_logged(recipe, 3, lambda: os.kill(os.getpid(), signal.SIGUSR1)), pytest.raises(Preempted):
        run(recipe)
    assert_equal(run(recipe), expected)
    log = steps(recipe)
    assert [line["dataset"] for line in log] == ["own", "else"] * 4
    assert all(
        ("infonce" in line, "kl" in line) == ((True, False) if line["dataset"] == "else" else (False, True))
        for line in log
    )


def test_labels_of_another_run_are_fingerprint_inputs_and_must_exist(tiny_mlm, run_folder, tmp_path, copied):
    def fields(**train):
        return training_fields(Run(make_recipe(tiny_mlm, run_folder, **train), RunFolder(run_folder / "run")))

    plain = fields()
    assert plain["train"]["datasets"] == {}
    with_copy, with_original = (fields(datasets={"more": {"run": str(path / "run")}}) for path in (copied, run_folder))
    assert with_copy == with_original
    assert with_copy["train"]["datasets"]["more"]["labels"] == plain["labels"]
    with pytest.raises(TrainingError, match=r"datasets\.more\.run: .*nowhere has no finished labels"):
        run(make_recipe(tiny_mlm, run_folder, datasets={"more": {"run": str(tmp_path / "nowhere")}}))


def test_a_query_weights_file_is_fingerprinted_by_its_content(tiny_mlm, run_folder, tmp_path):
    def fields(name, weights):
        (tmp_path / name).write_text(json.dumps(weights))
        query = {"kind": "idf", "file": str(tmp_path / name)}
        recipe = make_recipe(tiny_mlm, run_folder, student={"query": query}, query_regularizers=[])
        return training_fields(Run(recipe, RunFolder(run_folder / "run")))["student"]

    first = fields("idf.json", {"wind": 1.5})
    assert fields("moved.json", {"wind": 1.5}) == first != fields("idf.json", {"wind": 2.5})


def test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_weights(tiny_mlm, run_folder, copied, tmp_path):
    changes = {"steps": 8, "checkpoints": {"every": 2, "keep_last": 1}, "activation_budget": 1e-4}
    undisturbed = make_recipe(tiny_mlm, run_folder, **changes)
    assert apart(undisturbed, tmp_path / "undisturbed").wait(timeout=120) == 0
    recipe = make_recipe(tiny_mlm, copied, **changes)
    worker = apart(recipe, tmp_path / "killed")
    with once_logged(recipe, 5, worker.kill):
        assert worker.wait(timeout=120) == -signal.SIGKILL
    assert len(list(RunFolder(recipe.folder).checkpoints.glob("step-*"))) == 1
    assert apart(recipe, tmp_path / "killed").wait(timeout=120) == 0
    assert_equal(weights(recipe), weights(undisturbed))


def test_a_run_stopped_during_startup_exits_as_preempted_and_can_be_restarted(tiny_mlm, run_folder, tmp_path):
    recipe = make_recipe(tiny_mlm, run_folder, steps=4)
    worker = apart(recipe, tmp_path / "stopped")
    while "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text():  # its imports are under way
        assert worker.poll() is None
    worker.terminate()
    assert worker.wait(timeout=120) == 75
    assert RunFolder(recipe.folder).preempted.exists()
    assert apart(recipe, tmp_path / "again").wait(timeout=120) == 0
    assert len(steps(recipe)) == 4 and not RunFolder(recipe.folder).preempted.exists()


@pytest.mark.parametrize("kind", ["learned", "idf"])
def test_a_query_table_is_trained_or_frozen_saved_and_resumed(tiny_mlm, run_folder, copied, kind):
    changes = {"steps": 8, "query_regularizers": [], **({"table_lr": 0.05} if kind == "learned" else {})}
    undisturbed, recipe = (
        make_recipe(tiny_mlm, root, student={"query": {"kind": kind}}, **changes) for root in (run_folder, copied)
    )
    expected = run(undisturbed)
    with once_logged(recipe, 3, lambda: os.kill(os.getpid(), signal.SIGUSR1)), pytest.raises(Preempted):
        run(recipe)
    assert_equal(run(recipe), expected)
    folder, first = RunFolder(recipe.folder), RunFolder(undisturbed.folder)
    start, end, other = (load_student(path).table.weight.detach() for path in (folder.start, folder.model, first.model))
    assert torch.equal(end, other)
    texts = TextStore.open(folder.passages).texts(np.arange(TextStore.open(folder.passages).collection_size))
    tokenizer = load_student(folder.start).tokenizer
    has = [set(tokenizer(text, add_special_tokens=False)["input_ids"][:24]) for text in texts]
    for term in (60, 200, 300):
        n = sum(term in tokens for tokens in has)
        assert start[term] == pytest.approx(np.log(1 + (len(texts) - n + 0.5) / (n + 0.5)), rel=1e-6)
    assert torch.equal(start, end) == (kind == "idf")
    encoder = SparseEncoder(str(folder.model), device="cpu")
    torch.testing.assert_close(
        encoder.encode_query("about time", convert_to_sparse_tensor=False).nonzero()[:, 0],
        torch.tensor(sorted(tokenizer("about time", add_special_tokens=False)["input_ids"])),
    )


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"],
        pytest.param(["deepspeed.launcher.runner", "--num_gpus", "2", "--no_local_rank"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_of_a_launcher_train_like_one_process(tiny_mlm, run_folder, copied, tmp_path, launcher):
    changes = {"steps": 4, "optimizer": "sgd", "lr": 0.01, "dropout": 0.0}
    expected = run(make_recipe(tiny_mlm, run_folder, **changes))
    recipe = make_recipe(tiny_mlm, copied, **changes)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", *launcher, "--module", "distill.cli", "train", tmp_path / "recipe.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.run(command, env=environment, check=True, timeout=180)
    assert read_manifest(RunFolder(recipe.folder).model).counts["processes"] == 2
    assert_close(weights(recipe), expected)


def test_activation_checkpointing_saves_memory_and_changes_no_weights(tiny_mlm, run_folder, copied):
    """With dropout: recomputed layers repeat their draws."""
    changes = {"steps": 4, "activation_budget": 1.0, "checkpoints": {"every": 2}}
    plain = make_recipe(tiny_mlm, run_folder, **changes)
    checkpointed = make_recipe(tiny_mlm, copied, **changes, activation_checkpointing=True)
    assert_close(run(checkpointed), run(plain))
    held = [
        load(newest(RunFolder(recipe.folder), training_fields(Run(recipe, RunFolder(recipe.folder)))))["state"][
            "graph_bytes"
        ]
        for recipe in (plain, checkpointed)
    ]
    assert held[1] < 0.7 * held[0]


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_stopped_on_two_processes_resumes_on_one(tiny_mlm, run_folder, copied, stage):
    """ZeRO on two processes, then one without ZeRO, equals a single process throughout (SGD, no dropout)."""
    changes = {
        "steps": 8,
        "optimizer": "sgd",
        "lr": 0.01,
        "dropout": 0.0,
        "losses": [{"kind": "kl"}, {"kind": "infonce"}],
    }
    expected = run(make_recipe(tiny_mlm, run_folder, **changes))
    two = make_recipe(tiny_mlm, copied, **changes, processes=2, deepspeed={"zero_optimization": {"stage": stage}})
    with once_logged(two, 3, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Preempted):
        run(two)
    assert 3 <= len(steps(two)) < 8
    assert_close(run(make_recipe(tiny_mlm, copied, **changes)), expected)


def test_a_diverged_run_stops_and_names_the_batch(tiny_mlm, run_folder):
    recipe = make_recipe(tiny_mlm, run_folder, steps=20, lr=1e30, optimizer="sgd", max_grad_norm=0.0, max_bad_steps=2)
    with pytest.raises(TrainingError, match=r"non-finite \w+ at step \d+, batch of queries .*max_bad_steps"):
        run(recipe)
    events = [json.loads(line) for line in RunFolder(recipe.folder).train_log.read_text().splitlines()]
    assert len([event for event in events if "non-finite" in event.get("event", "")]) == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])  # torch's, and the head's CPU kernel's
def test_running_out_of_memory_in_a_chunk_halves_chunk_tokens(tiny_mlm, run_folder, copied, monkeypatch, error):
    changes = {"steps": 4, "optimizer": "sgd", "lr": 0.01, "dropout": 0.0, "chunk_tokens": 240}
    expected = run(make_recipe(tiny_mlm, run_folder, **changes))
    surrogate, init, students = Engine.surrogate, Engine.__init__, []

    def one_at_a_time(self, student, *arguments):
        assert not [earlier for earlier in students if earlier() is not None], "the previous attempt was not freed"
        students.append(weakref.ref(student))
        init(self, student, *arguments)

    def too_large(self, input_ids, *others):
        if input_ids.numel() > 130:
            raise error("no memory for this")
        return surrogate(self, input_ids, *others)

    monkeypatch.setattr(Engine, "__init__", one_at_a_time)
    monkeypatch.setattr(Engine, "surrogate", too_large)
    recipe = make_recipe(tiny_mlm, copied, **changes)
    assert_close(run(recipe), expected)
    events = [json.loads(line) for line in RunFolder(recipe.folder).train_log.read_text().splitlines()]
    assert [event["chunk_tokens"] for event in events if event.get("event") == "out of memory"] == [120]


def test_running_out_of_memory_in_the_losses_halves_chunk_tokens(tiny_mlm, run_folder, monkeypatch):
    objective, failures = trainer.objective, []

    def too_large(*arguments, **more):
        if not failures:
            failures.append(True)
            raise torch.OutOfMemoryError("no memory for the scores")
        return objective(*arguments, **more)

    monkeypatch.setattr(trainer, "objective", too_large)
    recipe = make_recipe(tiny_mlm, run_folder, steps=2, chunk_tokens=240, activation_budget=1.0)
    run(recipe)
    events = [json.loads(line) for line in RunFolder(recipe.folder).train_log.read_text().splitlines()]
    assert [event["chunk_tokens"] for event in events if event.get("event") == "out of memory"] == [120]


def test_best_parameters_of_a_lost_attempt_are_not_used(tmp_path):
    folder, parameters = RunFolder(tmp_path), {step: {"w": torch.full((1,), float(step))} for step in (2, 4, 6)}
    save_best(folder, 2, parameters[2])
    save(folder, 3, {}, {}, keep_last=2, best=2)
    save_best(folder, 4, parameters[4])  # then the run was killed, and resumed from step 3
    assert load_best(folder, 2) == parameters[2]
    save(folder, 5, {}, {}, keep_last=2, best=2)
    assert [path.name for path in folder.checkpoints.glob("best-*")] == ["best-00000002.pt"]
    save_best(folder, 6, parameters[6])
    for step in (7, 9):  # the second removes the checkpoint of step 5, which names step 2
        assert load_best(folder, 2) == parameters[2]
        save(folder, step, {}, {}, keep_last=2, best=6)
    assert [path.name for path in folder.checkpoints.glob("best-*")] == ["best-00000006.pt"]


def test_damaged_checkpoints_are_skipped_and_one_being_replaced_counts(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (4, 6, 8):
        save(folder, step, {"step": step}, {}, keep_last=3)
    for step in (6, 8):
        (folder.checkpoint(step) / "state.pt").write_bytes(b"damaged")
    assert load(newest(folder, {})) == {"step": 4}
    save(folder, 5, {"step": 5}, {}, keep_last=1)
    assert [path.name for path in folder.checkpoints.glob("step-*")] == ["step-00000005"]
    folder.checkpoint(5).rename(folder.checkpoints / ".step-00000005.abc.old")  # killed while it was saved again
    assert load(newest(folder, {})) == {"step": 5}


def test_smaller_chunks_and_an_explicit_precision_take_effect_on_resume(tiny_mlm, run_folder, monkeypatch):
    def stopped(self, *_):
        raise KeyboardInterrupt

    changes = {"steps": 4, "checkpoints": {"every": 2}, "evaluate_every": 2}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Development, "evaluate", stopped)  # after step 2, which is saved
        run(make_recipe(tiny_mlm, run_folder, **changes, chunk_tokens=240))
    recipe = make_recipe(tiny_mlm, run_folder, **changes, chunk_tokens=60, precision="bf16")
    run(recipe)
    counts = read_manifest(RunFolder(recipe.folder).model).counts
    assert counts["precision"] == "bf16"
    chunks = [line["chunks"] for line in steps(recipe)]
    assert min(chunks[2:]) > max(chunks[:2])
    log = map(json.loads, RunFolder(recipe.folder).train_log.read_text().splitlines())
    assert [line["step"] for line in log if line.get("event") == "evaluation"] == [0, 2, 4]


def test_the_start_becomes_the_model_if_no_evaluated_step_is_better(tiny_mlm, run_folder, monkeypatch, caplog):
    scores = iter([0.5, 0.4, 0.5])  # of the start, and after steps 2 and 4
    monkeypatch.setattr(development, "evaluate_student", lambda *_: {"nDCG@10": next(scores)})
    recipe = make_recipe(tiny_mlm, run_folder, steps=4, evaluate_every=2)
    trained, folder = run(recipe), RunFolder(recipe.folder)
    assert_equal(trained, load_file(folder.start / "model.safetensors"))
    assert read_manifest(folder.model).counts["best_step"] == 0
    assert "than the untrained student (nDCG@10 0.5), which becomes the model" in caplog.text


def test_evaluations_leave_the_steps_as_they_are(tiny_mlm, run_folder, tmp_path):
    copy = tmp_path / "other"
    shutil.copytree(run_folder, copy)
    evaluated, plain = (
        make_recipe(tiny_mlm, run_folder, steps=4, evaluate_every=2),
        make_recipe(tiny_mlm, copy, steps=4),
    )
    for recipe in (evaluated, plain):
        run(recipe)
    assert [line["loss"] for line in steps(evaluated)] == [line["loss"] for line in steps(plain)]


def test_the_first_development_score_is_that_of_the_saved_start(tiny_mlm, run_folder):
    recipe = make_recipe(tiny_mlm, run_folder, steps=2, evaluate_every=2)
    run(recipe)
    folder = RunFolder(recipe.folder)
    first = json.loads(folder.train_log.read_text().splitlines()[0])
    expected = evaluate_student(load_student(folder.start).eval(), Run(recipe, folder), "dev")
    assert first["step"] == 0 and first["event"] == "evaluation"
    assert {name: first[name] for name in expected} == pytest.approx(expected)


def test_a_failed_start_does_not_claim_the_folder(tiny_mlm, run_folder):
    with pytest.raises(ModelError, match="nosuch"):
        run(make_recipe(run_folder / "nosuch", run_folder, steps=2))
    run(make_recipe(tiny_mlm, run_folder, steps=2))


def test_model_selection_and_the_order_of_datasets_are_fingerprint_inputs(tiny_mlm, run_folder, copied):
    def fields(metrics=("nDCG@10",), **train):
        recipe = make_recipe(tiny_mlm, run_folder, **train)
        evaluate = recipe.evaluate.model_copy(update={"metrics": metrics})
        return training_fields(Run(recipe.model_copy(update={"evaluate": evaluate}), RunFolder(run_folder / "run")))

    assert fields() == fields(metrics=("RR@10",))
    assert fields(evaluate_every=2) != fields(metrics=("RR@10",), evaluate_every=2)
    more = {name: {"run": str(copied / "run")} for name in ("one", "two")}
    assert fields(datasets=more) != fields(datasets=dict(reversed(more.items())))


@pytest.mark.parametrize("step", [0, 2])
def test_a_stop_signal_interrupts_an_evaluation_which_is_repeated_on_resume(
    tiny_mlm, run_folder, tmp_path, monkeypatch, step
):
    evaluated = iter([0, 2])

    def evaluate_after_a_signal(*arguments):
        if next(evaluated) == step:
            os.kill(os.getpid(), signal.SIGUSR1)
        return evaluate_student(*arguments)

    changes = {"steps": 4, "evaluate_every": 2}
    expected = run(make_recipe(tiny_mlm, run_folder, **changes))
    copy = tmp_path / "other"
    shutil.copytree(run_folder, copy, ignore=shutil.ignore_patterns("model", "checkpoints", "start", "logs"))
    recipe = make_recipe(tiny_mlm, copy, **changes)
    with monkeypatch.context() as patched, pytest.raises(Preempted, match=f"saved at step {step} of 4"):
        patched.setattr(development, "evaluate_student", evaluate_after_a_signal)
        run(recipe)
    assert_equal(run(recipe), expected)
    log = map(json.loads, RunFolder(recipe.folder).train_log.read_text().splitlines())
    assert [line["step"] for line in log if line.get("event") == "evaluation"] == [0, 2, 4]


def test_loading_waits_for_a_checkpoint_that_appears_late(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    path = save(folder, 3, {"step": 3}, {}, keep_last=1)
    hidden = path.rename(path.with_name("elsewhere"))
    threading.Timer(1.0, hidden.rename, [path]).start()
    assert load(path) == {"step": 3}
    monkeypatch.setattr(checkpoints, "SIGHT_SECONDS", 0.1)
    with pytest.raises(TrainingError, match="run_dir must be on a file system that all machines share"):
        load(path.with_name("step-00000009"))


def test_a_finished_model_of_another_recipe_is_not_overwritten(tiny_mlm, run_folder):
    before = run(make_recipe(tiny_mlm, run_folder, steps=2))
    other = make_recipe(tiny_mlm, run_folder, steps=3)
    with pytest.raises(FingerprintError, match=r"train\.steps"):
        run(other)
    assert_equal(weights(other), before)


def test_the_process_that_failed_first_is_named(tiny_mlm, run_folder, monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1)
    recipe = make_recipe(tiny_mlm, run_folder, steps=2000, processes=2)

    def kill_rank_1():
        for process in psutil.Process().children():
            if process.environ().get("RANK") == "1":
                process.kill()

    with once_logged(recipe, 1, kill_rank_1), pytest.raises(TrainingError, match=r"process 1 .*train-rank-1\.log"):
        run(recipe)


def test_fewer_queries_per_batch_than_processes_are_refused(tiny_mlm, run_folder):
    with pytest.raises(RecipeError, match=r"train\.batch_size is 1"):
        run(make_recipe(tiny_mlm, run_folder, batch_size=1, processes=2))


def test_a_second_training_in_the_same_folder_is_refused(tiny_mlm, run_folder):
    recipe = make_recipe(tiny_mlm, run_folder)
    folder = RunFolder(recipe.folder)
    with locked(folder.checkpoints), pytest.raises(TrainingError, match="another process is training"):
        train(recipe, folder)
