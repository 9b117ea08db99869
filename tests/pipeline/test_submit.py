"""What `distill submit` plans, shows and refuses; tests/slurm submits to a real Slurm."""

import shlex

import pytest
import yaml
from small_run import small_recipe, write_run

from distill.errors import RecipeError, SlurmError
from distill.recipe_file import dump_recipe, parse_recipe
from distill.rounds import all_rounds
from distill.slurm import live
from distill.submit import plan_jobs, submit_jobs

STAGES = ("import", "mine", "score", "label", "train", "evaluate")


def recipe_with(root, **slurm):
    return small_recipe(root, slurm=slurm)


def test_neighbouring_stages_on_one_machine_share_a_job_and_the_others_have_their_own(tmp_path):
    plans = plan_jobs(recipe_with(tmp_path, nodes=2, gpus=4), STAGES)
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
        ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"),  # a rank a GPU
        ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=4"),
    ]
    assert plans[0].arguments == ("import,mine",)


def test_a_stage_asks_for_what_its_own_section_says(tmp_path):
    recipe = recipe_with(
        tmp_path,
        partition="cpu",
        time="1:00:00",
        array=8,
        at_once=3,
        options=["--exclusive"],
        stages={"mine": {"partition": "big", "memory": "200G"}, "train": {"options": ["--qos=long"]}},
    )
    imported, mined, scored, _, trained, _ = plan_jobs(recipe, STAGES)
    assert {"--partition=cpu", "--time=1:00:00", "--exclusive"} <= {*imported.options}
    assert {"--partition=big", "--mem=200G", "--time=1:00:00"} <= {*mined.options}
    assert scored.script == "score_array.sbatch" and scored.options[0] == "--array=0-7%3"
    assert "--qos=long" in trained.options and "--exclusive" not in trained.options


def test_null_and_the_empty_list_of_a_stage_count_in_every_round_and_after_a_dump(tmp_path):
    slurm = {
        "gpus": 4,
        "cpus": 8,
        "options": ["--constraint=h100"],
        "stages": {"import": {"gpus": None, "options": []}, "label": {"options": []}},
    }
    recipe = small_recipe(tmp_path, slurm=slurm, rounds=[{"train": {"lr": 1e-5}}])
    for one in (*all_rounds(recipe), parse_recipe(yaml.safe_load(dump_recipe(recipe)))):
        asked = {stage: plan_jobs(one, [stage])[0].options[2:] for stage in STAGES}
        assert asked["import"] == ("--cpus-per-task=8",)
        assert asked["label"] == ("--gpus-per-node=4", "--cpus-per-task=8")
        assert asked["mine"] == asked["train"] == (*asked["label"], "--constraint=h100")


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ({"stages": {"evaluate": {"nodes": 3}}}, r"field 'slurm': stages.evaluate.nodes is 3, but only score"),
        ({"array": 4, "stages": {"score": {"nodes": 2}}}, r"stages.score.nodes is 2, but with `array`"),
    ],
)
def test_machines_that_a_stage_has_no_use_for_are_refused(tmp_path, slurm, message):
    with pytest.raises(RecipeError, match=message):
        recipe_with(tmp_path, **slurm)
    asked = plan_jobs(recipe_with(tmp_path, stages={"score": {"nodes": 2}, "label": {"nodes": 1}}), STAGES)
    assert [plan.options[0] for plan in asked if "score" in plan.stages] == ["--nodes=2"]


def test_a_dry_run_shows_commands_that_no_shell_can_misread_and_writes_nothing(tmp_path, capsys):
    root = tmp_path / "a b; rm -rf $HOME '%j"
    submit_jobs(
        recipe_with(root, account="x; y", array=2, setup=["module load cuda"], python=["run in", "python"]),
        dry_run=True,
    )
    said = capsys.readouterr().out.splitlines()
    assert said[1:3] == ["module load cuda", "python=('run in' python)"]
    commands = [shlex.split(line) for line in said if line.startswith("sbatch ")]
    assert [command[-1] for command in commands] == [str(root / "jobs" / "<number>" / "recipe.yaml")] * len(commands)
    assert all("--account=x; y" in command for command in commands)
    assert f"--output={root}/jobs/<number>/score-%A_%a.out".replace("'%j", "'%%j") in commands[1]
    assert "--dependency=afterok:<job of mine>" in commands[1] and not root.exists()


def test_what_is_done_is_not_submitted(tmp_path, capsys):
    write_run(tmp_path)
    assert submit_jobs(recipe_with(tmp_path), only="teach") == []
    assert "teach is done already" in capsys.readouterr().out


def test_without_slurm_nothing_is_submitted_and_the_error_says_what_is_missing(tmp_path, monkeypatch):
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
def test_a_job_is_live_while_any_of_it_waits_or_runs(state, expected):
    assert live(state) is expected
