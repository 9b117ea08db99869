"""The small parts of the training room: schedules, chunks, alarms, checkpoint files, launchers, stop signals."""

import json
import math
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import SGD
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from distill.errors import FingerprintError, Preempted, TrainingError
from distill.run.layout import RunFolder
from distill.run.signals import STOP_SIGNALS
from distill.store.token_batches import padded_tokens
from distill.training import checkpoints, launch, preemption
from distill.training.chunks import cut, pad_chunks
from distill.training.deepspeed_config import deepspeed_config
from distill.training.diagnostics import diagnose
from distill.training.schedules import lr_factor
from tests.training.reference import train_section


@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_schedules_decay_as_in_transformers_after_a_warm_up_from_above_zero(name, theirs):
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = theirs(optimizer, 10, 100)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = [lr_factor(name, step, 100, 10) for step in range(1, 101)]
    assert ours[10:] == pytest.approx(expected[10:])
    assert ours[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert lr_factor("constant", 50, 100, 10) == 1.0


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_chunks_hold_every_text_once_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(2, 60, 37)
    chunks = cut(lengths, budget)
    assert sorted(np.concatenate([chunk.rows for chunk in chunks])) == list(range(37))
    assert all(padded_tokens(lengths, chunk.rows) <= budget or len(chunk.rows) == 1 for chunk in chunks)
    flat = lengths[np.concatenate([chunk.rows for chunk in chunks])]
    assert (np.diff(flat) <= 0).all()


@pytest.mark.parametrize("count", [3, 7, 12])
def test_chunks_padded_to_a_count_hold_the_same_texts_and_idle_chunks(count):
    chunks = pad_chunks(cut(np.array([9, 8, 7, 6, 5, 4, 3]), 20), count)
    assert len(chunks) == count
    assert sorted(row for chunk in chunks if not chunk.idle for row in chunk.rows) == list(range(7))
    assert sum(chunk.idle for chunk in chunks) == max(0, count - 7)


def line(**changes):
    """A line of the training log of a run without problems, with `changes`."""
    return {
        "kl": 1.0,
        "margin-mse": 0.1,
        "infonce": 0.2,
        "query_empty": 0.0,
        "passage_empty": 0.0,
        "query_active": 50.0,
        "passage_active": 200.0,
        "query-l1": 0.1,
        "passage-flops": 0.1,
        "teacher_confidence": 0.6,
        "label_spread": 3.0,
        "score_spread": 5.0,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_empty": 0.3}, "30% of the queries have no active term"),
        ({"passage_active": 20_000.0}, "passages still have 20,000 of 30,000 terms active"),
        ({"passage-flops": 5.0}, "the regularisers (5.1) exceed the ranking losses (1.3)"),
        ({"teacher_confidence": 0.99}, "the teacher is saturated"),
    ],
)
def test_alarms_describe_what_goes_wrong(changes, words):
    findings = diagnose(train_section(), line(**changes), 90, 100, 30_000)
    assert any(words in sentence for sentence in findings.values())
    assert not diagnose(train_section(), line(), 90, 100, 30_000)


def test_a_target_that_the_weight_cannot_reach_raises_an_alarm():
    target = {"kind": "flops", "weight": 0.01, "ramp": "linear", "ramp_steps": 200, "target_terms": 50}
    train = train_section(passage_regularizers=[target])
    assert not diagnose(train, line(passage_flops_weight=0.1), 100, 400, 30_000)
    for weight in (5.0, 5e-6):  # half the ramp, times a thousand or a thousandth
        findings = diagnose(train, line(passage_flops_weight=weight), 100, 400, 30_000)
        assert "passages have 200 terms active on the way to target_terms 50" in findings["passage-target"]


def test_a_dense_untrained_student_raises_no_alarm():
    assert not diagnose(train_section(), line(passage_active=30_000.0), 10, 100, 30_000)


def test_flat_labels_raise_an_alarm_at_the_first_step_only():
    flat = line(label_spread=0.05)
    findings = diagnose(train_section(), flat, 1, 100, 30_000)
    assert findings.keys() == {"flat-labels"}
    assert "standard deviation 0.05; that of the student's scores is 5" in findings["flat-labels"]
    assert "label.scale" in findings["flat-labels"]
    assert not diagnose(train_section(), line(), 1, 100, 30_000)
    assert not diagnose(train_section(), flat, 2, 100, 30_000), "later scores are those of a trained student"
    assert not diagnose(train_section(), line(label_spread=0.05, passage_active=20_000.0), 1, 100, 30_000)
    sharpened = train_section(losses=[{"kind": "kl", "teacher_temperature": 0.02}])
    assert not diagnose(sharpened, flat, 1, 100, 30_000), "labels count divided by the loss's temperature"
    assert not diagnose(train_section(losses=[{"kind": "infonce"}]), flat, 1, 100, 30_000), "InfoNCE uses no labels"


def test_constant_labels_raise_an_alarm():
    assert "flat-labels" in diagnose(train_section(), line(label_spread=0.0), 1, 100, 30_000)


def test_damaged_checkpoints_and_those_without_a_marker_are_not_loaded(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (2, 4, 6):
        checkpoints.save(folder, step, {"value": torch.tensor(step)}, {"a": 1}, keep_last=2)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000004", "step-00000006"]
    assert int(checkpoints.load(checkpoints.newest(folder, {"a": 1}))["value"]) == 6
    state = folder.checkpoint(6) / checkpoints.STATE
    state.write_bytes(state.read_bytes()[:-10] + b"0123456789")  # damaged: the previous one is used
    assert int(checkpoints.load(checkpoints.newest(folder, {"a": 1}))["value"]) == 4
    (folder.checkpoint(4) / checkpoints.MARKER).unlink()  # without its marker it is unfinished
    assert checkpoints.newest(folder, {"a": 1}) is None
    with pytest.raises(FingerprintError, match="a 1 -> 2"):
        checkpoints.newest(folder, {"a": 2})


@pytest.mark.parametrize("content", ["null", "5", "{}", "{", ""])
def test_a_checkpoint_whose_marker_is_damaged_is_skipped(tmp_path, content, caplog):
    folder = RunFolder(tmp_path)
    for step in (2, 4):
        checkpoints.save(folder, step, {"value": torch.tensor(step)}, {"a": 1}, keep_last=2)
    (folder.checkpoint(4) / checkpoints.MARKER).write_text(content)
    assert checkpoints.newest(folder, {"a": 1}) == folder.checkpoint(2)
    assert "falling back to the previous checkpoint" in caplog.text


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[03-05,9],other", "node03"),
        ("gpu-1,gpu-2", "gpu-1"),
        ("a7", "a7"),
        ("n[12]", "n12"),
        ("rack[1-2]_blade[3-4],other", "rack1_blade3"),
        ("cpn-[10-20]-[01-02]", "cpn-10-01"),
        ("n[1-2,7].cluster,n9.cluster", "n1.cluster"),
        ("[1-3]n", "1n"),
    ],
)
def test_the_first_host_of_a_slurm_list(nodes, first):
    assert launch.first_host(nodes) == first


def test_a_broken_slurm_list_is_refused_with_the_variable():
    with pytest.raises(TrainingError, match="SLURM_STEP_NODELIST is ''"):
        launch.first_host("")


def test_ranks_under_srun_are_read_from_slurms_variables(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert not launch.under_launcher()
    for name, value in {
        "STEP_NUM_TASKS": "4",
        "STEP_NODELIST": "n[1-2]",
        "JOB_ID": "123",
        "PROCID": "3",
        "LOCALID": "1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    launch.adopt_slurm_ranks()
    assert launch.under_launcher()
    assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")] == ["3", "1", "4", "n1"]


def test_a_stop_signal_is_seen_by_nested_watches_and_other_threads_and_handlers_are_restored():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    seen = []

    def in_a_thread():
        with preemption.watching() as watch:
            seen.append(watch.asked)

    with preemption.watching() as outer:
        with preemption.watching() as inner:
            assert inner is outer and not inner.asked
            os.kill(os.getpid(), signal.SIGUSR1)
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
        assert outer.asked and seen == [True]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    with preemption.watching() as later:
        assert not later.asked


def test_at_once_raises_on_a_stop_signal_before_or_inside_the_block():
    with preemption.watching() as watch:
        with pytest.raises(Preempted), watch.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        assert watch.asked
        with pytest.raises(Preempted), watch.at_once():
            raise AssertionError("the block must not run")


def test_schedules_end_just_above_zero():
    assert lr_factor("linear", 100, 100, 0) == pytest.approx(0.01)
    assert lr_factor("cosine", 100, 100, 0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


@pytest.mark.parametrize("name", ["zero1", "zero2-offload", "zero3"])
def test_deepspeed_settings_are_read_from_a_file(name):
    path = Path(__file__).parents[2] / f"configs/deepspeed/{name}.json"
    train = train_section(deepspeed=str(path))
    stage = deepspeed_config(train, 2, "bf16")["zero_optimization"]["stage"]
    assert stage == json.loads(path.read_text())["zero_optimization"]["stage"] and str(stage) in name


def test_an_unreadable_file_of_deepspeed_settings_is_refused(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for name, message in (("missing.json", "cannot be read"), ("broken.json", "not valid JSON")):
        with pytest.raises(ValueError, match=message):
            train_section(deepspeed=str(tmp_path / name))
