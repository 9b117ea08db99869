"""Training on two machines as a Slurm job: any interruption ends with the weights of an undisturbed job."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.slurm_cluster import wait_until

pytestmark = pytest.mark.slurm
STEPS = 240


def steps(run) -> int:
    log = run.folder.train_log
    return sum('"loss"' in line for line in log.read_text().splitlines()) if log.exists() else 0


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run.folder.model / "model.safetensors")


def assert_same_weights(run, other) -> None:
    values, expected = weights(run), weights(other)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(values[name], value), name


@pytest.fixture(scope="module")
def new_training(new_run):
    """new_training(name, nodes): a submitted training job with two ranks."""

    def make(name: str, nodes: str, by_hand: bool = False, **slurm):
        train = {"steps": STEPS, "evaluate_every": None, "checkpoints": {"every": 20}, "dropout": 0.1}
        run = new_run(
            name,
            "train",
            train=train,
            tracking={"log_every": 1},
            slurm={"nodes": 2, "options": [f"--nodelist={nodes}"], **slurm},
        )
        if by_hand:
            run.sbatch(f"--nodelist={nodes}", "--ntasks-per-node=1", "slurm/train.sbatch", str(run.file))
        else:
            run.submit("--stage", "train")
        return run

    return make


@pytest.fixture(scope="module")
def undisturbed(new_training):
    """A training job that nothing interrupts."""
    run = new_training("undisturbed", "n1,n2", by_hand=True)
    run.wait()
    return run


def test_two_machines_train_as_two_ranks(undisturbed, slurm):
    manifest = json.loads((undisturbed.folder.model / "manifest.json").read_text())
    assert manifest["counts"]["processes"] == 2 and manifest["counts"]["steps"] == STEPS
    assert slurm.restarts(undisturbed.ids[0]) == 0


def test_preempted_training_requeues_itself_and_ends_with_the_same_weights(undisturbed, new_training, slurm):
    run = new_training("preempted", "n2,n3")
    wait_until("some steps", lambda: steps(run) > 5, seconds=200)
    urgent = slurm.run(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodelist=n3",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 1",
    )
    slurm.wait(urgent, seconds=100)
    run.wait()
    assert slurm.restarts(run.ids[0]) == 1
    assert "asked to stop: training was saved at step" in run.output()
    assert_same_weights(run, undisturbed)


def test_training_requeues_itself_before_its_time_limit_and_ends_with_the_same_weights(
    undisturbed, new_training, slurm
):
    run = new_training("time-limit", "n1,n2", time="1", warn=20)
    wait_until("some steps", lambda: steps(run) > 5, seconds=200)
    slurm.hold_still(*run.ids, seconds=42)  # else a fast machine would finish before the limit
    run.wait(seconds=300)
    assert slurm.restarts(run.ids[0]) >= 1
    assert_same_weights(run, undisturbed)


def test_training_ends_when_a_machine_goes_down_and_resumes_when_it_is_back(undisturbed, new_training, slurm):
    run = new_training("machine-down", "n2,n3")
    wait_until("a checkpoint", lambda: steps(run) > 25, seconds=200)
    slurm.take_down("n3")
    # requeued by the script once srun has ended the peers, or by Slurm once it misses the machine
    wait_until("the job to be requeued", lambda: slurm.restarts(run.ids[0]) == 1, seconds=90)
    wait_until("the peers to end", lambda: slurm.node_states()["n2"] == "idle", seconds=60)
    assert steps(run) < STEPS
    assert "Connection" in run.output()  # the peer noticed, and did not wait for ever
    slurm.start_node("n3")
    time.sleep(10)  # Slurm holds a requeued job for two minutes; started within a second, it finds one machine of two
    run.wait()
    assert slurm.restarts(run.ids[0]) >= 1
    assert_same_weights(run, undisturbed)
