"""The jobs that `distill submit` plans, prints and refuses; tests/slurm submits to a real Slurm."""

import shlex

import pytest
import yaml

from distill.errors import RecipeError, SlurmError
from distill.pipeline.registry import STAGES
from distill.pipeline.slurm import live
from distill.pipeline.submit import plan_jobs, submit_jobs
from distill.recipe.expand import all_rounds
from distill.recipe.load import dump_recipe, parse_recipe
from distill.run.run import Run
from tests.helpers.small_run import small_recipe, write_run

NAMES = ("import", "mine", "score", "label", "train", "evaluate")
SUBMITTED = [stage for stage in STAGES if stage.name in NAMES]


def recipe_with(root, **slurm):
    return small_recipe(root, slurm=slurm)


def test_consecutive_stages_on_one_machine_share_a_job(tmp_path):
    plans = plan_jobs(Run.of(recipe_with(tmp_path, nodes=2, gpus=4)), SUBMITTED)
    assert [(plan.script, plan.stages) for plan in plans] == [
        ("pipeline.sbatch", ("import", "mine")),
        ("score_ray.sbatch", ("score",)),
        ("pipeline.sbatch", ("label",)),
        ("train.sbatch", ("train",)),
        ("pipeline.sbatch", ("evaluate",)),
    ]
    assert [plan.options[:3] for plan in plans] == [
        ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=4"),
        ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4"),
        ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=4"),
        ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"),  # one rank per GPU
        ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=4"),
    ]
    assert plans[0].arguments == ("import,mine",)


def test_a_stages_own_section_overrides_the_resources(tmp_path):
    recipe = recipe_with(
        tmp_path,
        partition="cpu",
        time="1:00:00",
        array=8,
        max_parallel=3,
        options=["--exclusive"],
        stages={"mine": {"partition": "big", "memory": "200G"}, "train": {"options": ["--qos=long"]}},
    )
    imported, mined, scored, _, trained, _ = plan_jobs(Run.of(recipe), SUBMITTED)
    assert {"--partition=cpu", "--time=1:00:00", "--exclusive"} <= {*imported.options}
    assert {"--partition=big", "--mem=200G", "--time=1:00:00"} <= {*mined.options}
    assert scored.script == "score_array.sbatch" and scored.options[0] == "--array=0-7%3"
    assert "--qos=long" in trained.options and "--exclusive" not in trained.options


def test_null_and_empty_lists_in_a_stages_section_override_in_every_round_and_after_a_dump(tmp_path):
    slurm = {
        "gpus": 4,
        "cpus": 8,
        "options": ["--constraint=h100"],
        "stages": {"import": {"gpus": None, "options": []}, "label": {"options": []}},
    }
    recipe = small_recipe(tmp_path, slurm=slurm, rounds=[{"train": {"lr": 1e-5}}])
    for each in (*all_rounds(recipe), parse_recipe(yaml.safe_load(dump_recipe(recipe)))):
        options = {stage.name: plan_jobs(Run.of(each), [stage])[0].options[2:] for stage in SUBMITTED}
        assert options["import"] == ("--cpus-per-task=8",)
        assert options["label"] == ("--gpus-per-node=4", "--cpus-per-task=8")
        assert options["mine"] == options["train"] == (*options["label"], "--constraint=h100")


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ({"stages": {"evaluate": {"nodes": 3}}}, r"field 'slurm': stages.evaluate.nodes is 3, but only score"),
        ({"array": 4, "stages": {"score": {"nodes": 2}}}, r"stages.score.nodes is 2, but each task of an `array`"),
    ],
)
def test_nodes_for_a_stage_that_uses_one_machine_are_refused(tmp_path, slurm, message):
    with pytest.raises(RecipeError, match=message):
        recipe_with(tmp_path, **slurm)
    plans = plan_jobs(Run.of(recipe_with(tmp_path, stages={"score": {"nodes": 2}, "label": {"nodes": 1}})), SUBMITTED)
    assert [plan.options[0] for plan in plans if "score" in plan.stages] == ["--nodes=2"]


def test_a_dry_run_prints_quoted_commands_and_writes_nothing(tmp_path, capsys):
    root = tmp_path / "a b; rm -rf $HOME '%j"
    submit_jobs(
        recipe_with(root, account="x; y", array=2, setup=["module load cuda"], python=["run in", "python"]),
        dry_run=True,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["module load cuda", "python=('run in' python)"]
    commands = [shlex.split(line) for line in lines if line.startswith("sbatch ")]
    assert [command[-1] for command in commands] == [str(root / "jobs" / "<number>" / "recipe.yaml")] * len(commands)
    assert all("--account=x; y" in command for command in commands)
    assert f"--output={root}/jobs/<number>/score-%A_%a.out".replace("'%j", "'%%j") in commands[1]
    assert "--dependency=afterok:<job of mine>" in commands[1] and not root.exists()


def test_a_stage_that_is_done_is_not_submitted(tmp_path, capsys):
    write_run(tmp_path)
    assert submit_jobs(recipe_with(tmp_path), only="teach") == []
    assert "teach is done already" in capsys.readouterr().out


def test_without_slurm_submit_writes_nothing_and_names_the_missing_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match=r"^sbatch: not found"):
        submit_jobs(recipe_with(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match="no stage 'scoring'"):
        submit_jobs(recipe_with(tmp_path / "run"), only="scoring")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("PENDING (Dependency)", True),
        ("RUNNING", True),
        ("3 COMPLETED, 1 PENDING (JobArrayTaskLimit)", True),
        ("COMPLETED", False),
        ("2 COMPLETED, 1 FAILED", False),
        ("CANCELLED by 1000", False),
        ("UNKNOWN", False),
    ],
)
def test_a_job_is_live_while_any_of_its_tasks_waits_or_runs(state, expected):
    assert live(state) is expected
