"""Schedules, chunks, alarms, checkpoints' files, places: the small parts of the training room."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import train_section
from torch.optim import SGD
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from distill.data.layout import RunFolder
from distill.data.token_batches import padded_tokens
from distill.errors import FingerprintError
from distill.training import checkpoints, launch
from distill.training.alarms import alarms
from distill.training.chunks import cut, stretch
from distill.training.engine import deepspeed_config
from distill.training.schedules import lr_factor


@pytest.mark.parametrize(
    ("name", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_decay_is_that_of_transformers_after_a_warm_up_that_starts_above_zero(name, theirs):
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
def test_stretched_chunks_hold_the_same_texts_and_idle_ones_fill_up(count):
    chunks = stretch(cut(np.array([9, 8, 7, 6, 5, 4, 3]), 20), count)
    assert len(chunks) == count
    assert sorted(row for chunk in chunks if not chunk.idle for row in chunk.rows) == list(range(7))
    assert sum(chunk.idle for chunk in chunks) == max(0, count - 7)


def line(**changes):
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
        ({"passage_active": 20_000.0}, "passages still have 20,000 active terms of 30,000"),
        ({"passage-flops": 5.0}, "the regularisers (5.1) outweigh the losses (1.3)"),
        ({"teacher_confidence": 0.99}, "the teacher is saturated"),
    ],
)
def test_alarms_say_in_words_what_goes_wrong(changes, words):
    said = alarms(train_section(), line(**changes), 90, 100, 30_000)
    assert any(words in sentence for sentence in said.values())
    assert not alarms(train_section(), line(), 90, 100, 30_000)


def test_a_dense_start_is_no_alarm():
    assert not alarms(train_section(), line(passage_active=30_000.0), 10, 100, 30_000)


def test_labels_that_hardly_differ_are_an_alarm_at_the_first_step():
    flat = line(label_spread=0.05)
    said = alarms(train_section(), flat, 1, 100, 30_000)
    assert said.keys() == {"flat-labels"}
    assert "standard deviation 0.05, the student's scores 5" in said["flat-labels"]
    assert "label.scale" in said["flat-labels"]
    assert not alarms(train_section(), line(), 1, 100, 30_000)
    assert not alarms(train_section(), flat, 2, 100, 30_000), "later it is the student that has changed"
    assert not alarms(train_section(), line(label_spread=0.05, passage_active=20_000.0), 1, 100, 30_000)
    sharpened = train_section(losses=[{"kind": "kl", "teacher_temperature": 0.02}])
    assert not alarms(sharpened, flat, 1, 100, 30_000), "what counts is the labels as the loss takes them"
    assert not alarms(train_section(losses=[{"kind": "infonce"}]), flat, 1, 100, 30_000), "no label is used"


def test_constant_labels_are_an_alarm_too():
    assert "flat-labels" in alarms(train_section(), line(label_spread=0.0), 1, 100, 30_000)


def test_checkpoints_are_whole_or_not_there(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (2, 4, 6):
        checkpoints.save(folder, step, {"value": torch.tensor(step)}, {"a": 1}, keep_last=2)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000004", "step-00000006"]
    assert int(checkpoints.load(checkpoints.newest(folder, {"a": 1}))["value"]) == 6
    state = folder.checkpoint(6) / checkpoints.STATE
    state.write_bytes(state.read_bytes()[:-10] + b"0123456789")  # damaged: the one before it serves
    assert int(checkpoints.load(checkpoints.newest(folder, {"a": 1}))["value"]) == 4
    (folder.checkpoint(4) / checkpoints.MARKER).unlink()  # without its marker it was never finished
    assert checkpoints.newest(folder, {"a": 1}) is None
    with pytest.raises(FingerprintError, match="a 1 -> 2"):
        checkpoints.newest(folder, {"a": 2})


@pytest.mark.parametrize(
    ("nodes", "first"), [("node[03-05,9],other", "node03"), ("gpu-1,gpu-2", "gpu-1"), ("a7", "a7"), ("n[12]", "n12")]
)
def test_the_first_host_of_a_slurm_list(nodes, first):
    assert launch.first_host(nodes) == first


def test_the_place_under_srun_is_read_from_its_variables(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert not launch.placed()
    for name, value in {
        "STEP_NUM_TASKS": "4",
        "STEP_NODELIST": "n[1-2]",
        "JOB_ID": "123",
        "PROCID": "3",
        "LOCALID": "1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert launch.placed()
    import os

    assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")] == ["3", "1", "4", "n1"]


def test_ramps_and_schedules_end_where_they_should():
    assert lr_factor("linear", 100, 100, 0) == pytest.approx(0.01)
    assert lr_factor("cosine", 100, 100, 0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


@pytest.mark.parametrize("name", ["zero1", "zero2-offload", "zero3"])
def test_deepspeeds_settings_may_lie_in_a_file(name):
    path = Path(__file__).parents[2] / f"configs/deepspeed/{name}.json"
    train = train_section(deepspeed=str(path))
    stage = deepspeed_config(train, 2, "bf16")["zero_optimization"]["stage"]
    assert stage == json.loads(path.read_text())["zero_optimization"]["stage"] and str(stage) in name


def test_a_file_of_settings_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for name, message in (("missing.json", "cannot be read"), ("broken.json", "not valid JSON")):
        with pytest.raises(ValueError, match=message):
            train_section(deepspeed=str(tmp_path / name))
