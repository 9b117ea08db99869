"""Training from label shards to a saved model; killed and resumed it ends with the very same weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from make_recipe import make_recipe
from safetensors.torch import load_file
from sentence_transformers import SparseEncoder

from distill.data.files import locked
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.data.texts import TextStore
from distill.errors import FingerprintError, Preempted, RecipeError, StudentError, TrainingError
from distill.recipe_file import dump_recipe
from distill.student.checkpoint import load_checkpoint
from distill.training import checkpoints, launch, loop, opening
from distill.training.checkpoints import load, load_best, newest, save, save_best
from distill.training.datasets import Dataset, open_tokens
from distill.training.engine import Engine
from distill.training.loop import train
from distill.training.preemption import marker


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
    """Call `action` as soon as the training log has so many steps."""

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
    student = load_checkpoint(folder.model)
    ids = [np.array(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("about time", "work")]
    with torch.no_grad():
        ours = student.eval()(*student.assemble(ids, 24)).to_dense()
    theirs = encoder.encode_document(["about time", "work"], convert_to_sparse_tensor=False)
    torch.testing.assert_close(torch.as_tensor(theirs), ours, rtol=1e-5, atol=1e-5)


def test_prompts_are_trained_with_saved_and_put_there_by_sparse_encoder(tiny_mlm, run_folder):
    recipe = make_recipe(tiny_mlm, run_folder, {"prompts": {"query": "find time: ", "document": "work "}}, steps=2)
    run(recipe)
    folder = RunFolder(recipe.folder)
    student, encoder = load_checkpoint(folder.model), SparseEncoder(str(folder.model), device="cpu")
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
    run(recipe)
    began = time.monotonic()
    run(recipe)
    assert time.monotonic() - began < 1
    (RunFolder(recipe.folder).model / "manifest.json").unlink()
    with pytest.raises(FingerprintError, match=r"train\.lr"):
        run(make_recipe(tiny_mlm, run_folder, steps=4, lr=0.5))


def test_a_start_made_by_another_recipe_is_refused_before_there_is_any_checkpoint(tiny_mlm, run_folder, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    recipe = make_recipe(tiny_mlm, run_folder)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Engine, "step", killed)
        run(recipe)
    other = recipe.model_copy(update={"student": recipe.student.model_copy(update={"pooling": "sum"})})
    with pytest.raises(FingerprintError, match=r"student\.pooling"):
        run(other)


def test_an_activation_budget_set_when_a_run_goes_on_counts(tiny_mlm, run_folder, monkeypatch):
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


def test_asked_to_stop_it_saves_and_goes_on_to_the_very_same_weights(tiny_mlm, run_folder, copied):
    """With dropout and Adam: random draws, moments and order are all restored."""
    expected = run(make_recipe(tiny_mlm, run_folder, steps=8))
    recipe = make_recipe(tiny_mlm, copied, steps=8)
    with once_logged(recipe, 3, lambda: os.kill(os.getpid(), signal.SIGUSR1)), pytest.raises(Preempted) as stopped:
        run(recipe)
    assert stopped.value.exit_status == 75
    assert marker(RunFolder(recipe.folder)).exists()
    assert_equal(run(recipe), expected)
    assert not marker(RunFolder(recipe.folder)).exists()
    assert [line["step"] for line in steps(recipe)] == list(range(1, 9))


def apart(recipe, place):
    """`train` in a process of its own, whose numbers nothing that ran before it can touch."""
    place.mkdir(exist_ok=True)
    (place / "recipe.yaml").write_text(dump_recipe(recipe))
    return subprocess.Popen(
        [sys.executable, "-m", "distill.training.worker", place / "recipe.yaml", recipe.folder, place / "outcome"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_datasets_train_with_losses_of_their_own_and_resume_exactly(
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


def test_another_runs_labels_are_part_of_what_is_trained_and_must_be_there(tiny_mlm, run_folder, tmp_path, copied):
    plain = opening.training_fields(make_recipe(tiny_mlm, run_folder), RunFolder(run_folder / "run"))
    assert "datasets" not in plain["train"] and "mixing" not in plain["train"]
    there, moved = (
        opening.training_fields(
            make_recipe(tiny_mlm, run_folder, datasets={"more": {"run": str(path / "run")}}),
            RunFolder(run_folder / "run"),
        )
        for path in (copied, run_folder)
    )
    assert there == moved and there["train"]["datasets"]["more"]["labels"] == plain["labels"]
    with pytest.raises(TrainingError, match=r"datasets\.more\.run: .*nowhere has no finished labels"):
        run(make_recipe(tiny_mlm, run_folder, datasets={"more": {"run": str(tmp_path / "nowhere")}}))


def test_a_file_of_query_weights_counts_by_its_content(tiny_mlm, run_folder, tmp_path):
    def fields(name, weights):
        (tmp_path / name).write_text(json.dumps(weights))
        query = {"kind": "idf", "file": str(tmp_path / name)}
        recipe = make_recipe(tiny_mlm, run_folder, student={"query": query}, query_regularizers=[])
        return opening.training_fields(recipe, RunFolder(run_folder / "run"))["student"]

    first = fields("idf.json", {"wind": 1.5})
    assert fields("moved.json", {"wind": 1.5}) == first != fields("idf.json", {"wind": 2.5})


def test_killed_outright_it_goes_on_from_its_last_checkpoint(tiny_mlm, run_folder, copied, tmp_path):
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


def test_stopped_while_it_starts_it_says_so_and_starts_again(tiny_mlm, run_folder, tmp_path):
    recipe = make_recipe(tiny_mlm, run_folder, steps=4)
    worker = apart(recipe, tmp_path / "stopped")
    while "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text():  # its imports are under way
        assert worker.poll() is None
    worker.terminate()
    assert worker.wait(timeout=120) == 75
    assert marker(RunFolder(recipe.folder)).exists()
    assert apart(recipe, tmp_path / "again").wait(timeout=120) == 0
    assert len(steps(recipe)) == 4 and not marker(RunFolder(recipe.folder)).exists()


@pytest.mark.parametrize("kind", ["learned", "idf"])
def test_a_query_table_is_trained_or_left_alone_saved_and_taken_up_again(tiny_mlm, run_folder, copied, kind):
    changes = {"steps": 8, "query_regularizers": [], **({"table_lr": 0.05} if kind == "learned" else {})}
    undisturbed, recipe = (
        make_recipe(tiny_mlm, root, student={"query": {"kind": kind}}, **changes) for root in (run_folder, copied)
    )
    expected = run(undisturbed)
    with once_logged(recipe, 3, lambda: os.kill(os.getpid(), signal.SIGUSR1)), pytest.raises(Preempted):
        run(recipe)
    assert_equal(run(recipe), expected)
    folder, first = RunFolder(recipe.folder), RunFolder(undisturbed.folder)
    start, end, other = (
        load_checkpoint(path).table.weight.detach() for path in (folder.start, folder.model, first.model)
    )
    assert torch.equal(end, other)
    texts = TextStore.open(folder.passages).texts(np.arange(TextStore.open(folder.passages).collection_size))
    tokenizer = load_checkpoint(folder.start).tokenizer
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
def test_processes_of_a_launcher_share_the_work(tiny_mlm, run_folder, copied, tmp_path, launcher):
    changes = {"steps": 4, "optimizer": "sgd", "lr": 0.01, "dropout": 0.0}
    expected = run(make_recipe(tiny_mlm, run_folder, **changes))
    recipe = make_recipe(tiny_mlm, copied, **changes)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", *launcher, "--module", "distill.cli", "train", tmp_path / "recipe.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.run(command, env=environment, check=True, timeout=180)
    assert read_manifest(RunFolder(recipe.folder).model).counts["processes"] == 2
    assert_close(weights(recipe), expected)


def test_activation_checkpointing_holds_less_and_changes_nothing(tiny_mlm, run_folder, copied):
    """With dropout: what is computed again draws what was drawn before."""
    changes = {"steps": 4, "activation_budget": 1.0, "checkpoints": {"every": 2}}
    plain = make_recipe(tiny_mlm, run_folder, **changes)
    checkpointed = make_recipe(tiny_mlm, copied, **changes, activation_checkpointing=True)
    assert_close(run(checkpointed), run(plain))
    held = [
        load(newest(RunFolder(recipe.folder), opening.training_fields(recipe, RunFolder(recipe.folder))))["standing"][
            "graph_bytes"
        ]
        for recipe in (plain, checkpointed)
    ]
    assert held[1] < 0.7 * held[0]


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_stopped_on_two_processes_it_goes_on_on_one(tiny_mlm, run_folder, copied, stage):
    """ZeRO on two processes, then no ZeRO on one, as if one process had done it all (SGD, no dropout)."""
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
def test_a_chunk_without_memory_halves_the_token_budget(tiny_mlm, run_folder, copied, monkeypatch, error):
    changes = {"steps": 4, "optimizer": "sgd", "lr": 0.01, "dropout": 0.0, "chunk_tokens": 240}
    expected = run(make_recipe(tiny_mlm, run_folder, **changes))
    encode, init, students = Engine.encode, Engine.__init__, []

    def one_at_a_time(self, student, *arguments):
        assert not [earlier for earlier in students if earlier() is not None], "the attempt before holds its memory"
        students.append(weakref.ref(student))
        init(self, student, *arguments)

    def too_large(self, input_ids, attention_mask, cached=None, side="passage"):
        if cached is not None and input_ids.numel() > 130:
            raise error("no memory for this")
        return encode(self, input_ids, attention_mask, cached, side)

    monkeypatch.setattr(Engine, "__init__", one_at_a_time)
    monkeypatch.setattr(Engine, "encode", too_large)
    recipe = make_recipe(tiny_mlm, copied, **changes)
    assert_close(run(recipe), expected)
    events = [json.loads(line) for line in RunFolder(recipe.folder).train_log.read_text().splitlines()]
    assert [event["chunk_tokens"] for event in events if event.get("event") == "out of memory"] == [120]


def test_losses_without_memory_free_the_graphs_that_are_kept(tiny_mlm, run_folder, monkeypatch):
    objective, kept = loop.objective, []

    def too_large(*arguments, **more):
        if not kept:
            kept.append(True)
            raise torch.OutOfMemoryError("no memory for the scores")
        return objective(*arguments, **more)

    monkeypatch.setattr(loop, "objective", too_large)
    recipe = make_recipe(tiny_mlm, run_folder, steps=2, chunk_tokens=240, activation_budget=1.0)
    run(recipe)
    events = [json.loads(line) for line in RunFolder(recipe.folder).train_log.read_text().splitlines()]
    assert [event["chunk_tokens"] for event in events if event.get("event") == "out of memory"] == [120]


def test_a_best_model_of_a_lost_attempt_is_not_taken(tmp_path):
    folder, parameters = RunFolder(tmp_path), {step: {"w": torch.full((1,), float(step))} for step in (2, 4, 6)}
    save_best(folder, 2, parameters[2])
    save(folder, 3, {}, {}, keep_last=2, best=2)
    save_best(folder, 4, parameters[4])  # and then the run was killed, and went on from step 3
    assert load_best(folder, 2) == parameters[2]
    save(folder, 5, {}, {}, keep_last=2, best=2)
    assert [path.name for path in folder.checkpoints.glob("best-*")] == ["best-00000002.pt"]
    save_best(folder, 6, parameters[6])
    for step in (7, 9):  # the checkpoint of step 5, that names step 2, goes with the second
        assert load_best(folder, 2) == parameters[2]
        save(folder, step, {}, {}, keep_last=2, best=6)
    assert [path.name for path in folder.checkpoints.glob("best-*")] == ["best-00000006.pt"]


def test_damaged_checkpoints_make_way_and_one_being_replaced_counts(tmp_path):
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


def test_smaller_chunks_and_a_precision_in_the_recipe_count_when_a_run_goes_on(tiny_mlm, run_folder, monkeypatch):
    def stopped(self, *_):
        raise KeyboardInterrupt

    changes = {"steps": 4, "checkpoints": {"every": 2}, "evaluate_every": 2}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop.Run, "_evaluate", stopped)  # after step 2, which is saved
        run(make_recipe(tiny_mlm, run_folder, **changes, chunk_tokens=240))
    recipe = make_recipe(tiny_mlm, run_folder, **changes, chunk_tokens=60, precision="bf16")
    run(recipe)
    counts = read_manifest(RunFolder(recipe.folder).model).counts
    assert counts["precision"] == "bf16"
    chunks = [line["chunks"] for line in steps(recipe)]
    assert min(chunks[2:]) > max(chunks[:2])
    log = map(json.loads, RunFolder(recipe.folder).train_log.read_text().splitlines())
    assert [line["step"] for line in log if line.get("event") == "evaluation"] == [2, 4]


def test_a_start_that_fails_claims_nothing(tiny_mlm, run_folder):
    with pytest.raises(StudentError, match="nosuch"):
        run(make_recipe(run_folder / "nosuch", run_folder, steps=2))
    run(make_recipe(tiny_mlm, run_folder, steps=2))


def test_what_chooses_the_saved_model_and_the_order_of_datasets_count(tiny_mlm, run_folder, copied):
    def fields(metrics=("nDCG@10",), **train):
        recipe = make_recipe(tiny_mlm, run_folder, **train)
        evaluate = recipe.evaluate.model_copy(update={"metrics": metrics})
        return opening.training_fields(recipe.model_copy(update={"evaluate": evaluate}), RunFolder(run_folder / "run"))

    assert fields() == fields(metrics=("RR@10",))
    assert fields(evaluate_every=2) != fields(metrics=("RR@10",), evaluate_every=2)
    more = {name: {"run": str(copied / "run")} for name in ("one", "two")}
    assert fields(datasets=more) != fields(datasets=dict(reversed(more.items())))


def test_a_signal_during_the_evaluation_is_heeded_and_the_evaluation_made_up_for(tiny_mlm, run_folder, tmp_path):
    def asked(self, *_):
        os.kill(os.getpid(), signal.SIGUSR1)
        return evaluating(self)

    changes = {"steps": 4, "evaluate_every": 2}
    expected = run(make_recipe(tiny_mlm, run_folder, **changes))
    copy = tmp_path / "other"
    shutil.copytree(run_folder, copy, ignore=shutil.ignore_patterns("model", "checkpoints", "start", "logs"))
    recipe = make_recipe(tiny_mlm, copy, **changes)
    evaluating = loop.Run._stop_evaluating
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop.Run, "_stop_evaluating", asked)
        with pytest.raises(Preempted, match="saved at step 2 of 4"):
            run(recipe)
    assert_equal(run(recipe), expected)
    log = map(json.loads, RunFolder(recipe.folder).train_log.read_text().splitlines())
    assert [line["step"] for line in log if line.get("event") == "evaluation"] == [2, 4]


def test_a_checkpoint_that_is_seen_late_is_waited_for(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    path = save(folder, 3, {"step": 3}, {}, keep_last=1)
    hidden = path.rename(path.with_name("elsewhere"))
    threading.Timer(1.0, hidden.rename, [path]).start()
    assert load(path) == {"step": 3}
    monkeypatch.setattr(checkpoints, "SIGHT_SECONDS", 0.1)
    with pytest.raises(TrainingError, match="run_dir must be on a file system that all machines share"):
        load(path.with_name("step-00000009"))


def test_a_finished_model_of_another_recipe_is_not_trained_over(tiny_mlm, run_folder):
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


def test_a_batch_smaller_than_the_processes_is_refused(tiny_mlm, run_folder):
    with pytest.raises(RecipeError, match=r"train\.batch_size is 1"):
        run(make_recipe(tiny_mlm, run_folder, batch_size=1, processes=2))


def test_a_second_training_into_the_same_folder_is_refused(tiny_mlm, run_folder):
    recipe = make_recipe(tiny_mlm, run_folder)
    folder = RunFolder(recipe.folder)
    with locked(folder.checkpoints), pytest.raises(TrainingError, match="another process is training"):
        train(recipe, folder)
