"""The process group."""

from __future__ import annotations

import pytest
import torch

from distill.errors import RecipeError
from distill.training import launch
from distill.training.world import refuse_shared_devices
from tests.helpers.small_run import small_recipe


def test_processes_that_are_done_exit_without_aborting(run_processes):
    run_processes(2, "exit_worker")


def test_two_processes_with_the_same_gpu_are_refused():
    refuse_shared_devices([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-1")])
    with pytest.raises(RecipeError, match="2 training processes on b have the same GPU"):
        refuse_shared_devices([("a", "GPU-1"), ("b", "GPU-1"), ("b", "GPU-1")])


def test_more_processes_than_gpus_are_refused_before_they_start(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    recipe = small_recipe(tmp_path, train={"processes": 3})
    with pytest.raises(RecipeError, match=r"train\.processes is 3, but this machine has 2 GPUs"):
        launch.processes_here(recipe)
    assert launch.processes_here(small_recipe(tmp_path, train={"processes": 1})) == 1
    assert launch.processes_here(small_recipe(tmp_path)) == 2
