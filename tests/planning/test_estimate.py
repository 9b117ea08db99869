"""`distill plan`: operations against torch's own counter, memory against the written-out formulas, rates of a probe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_run import small_recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel
from typer.testing import CliRunner
from whole_run import whole_recipe

from distill.cli import app
from distill.config import ModelShape
from distill.errors import RecipeError
from distill.estimate.estimate import estimate
from distill.estimate.hardware import device
from distill.estimate.memory import training_memory
from distill.pipeline import run
from distill.recipe_file import load_recipe
from distill.rounds import all_rounds
from distill.shapes import forward_flops, shape_of, student_shape

SPLADE_V3 = "configs/splade-v3.yaml"


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (BertModel, BertConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96)),
        (
            ModernBertModel,
            ModernBertConfig(
                hidden_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=96,
                vocab_size=100,
                pad_token_id=0,
            ),
        ),
    ],
)
def test_operations_are_those_that_torch_counts(tmp_path, model, settings):
    settings.save_pretrained(tmp_path)
    length, texts = 48, 5
    settings._attn_implementation = "eager"  # the counter doesn't see into the others
    encoder = model(settings).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(input_ids=torch.ones(texts, length, dtype=torch.int64))
    counted = counter.get_total_flops()
    if model is BertModel:
        counted -= 2 * texts * settings.hidden_size**2  # the pooler
    shape = shape_of(small_recipe(tmp_path), str(tmp_path))
    assert texts * length * forward_flops(shape, length) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    ("stage", "bytes_per_parameter"), [(0, 16), (1, 4 + 4 + 8 / 4), (2, 4 + (4 + 8) / 4), (3, (4 + 4 + 8) / 4)]
)
def test_states_are_spread_over_four_processes_as_zero_says(tmp_path, stage, bytes_per_parameter):
    recipe = small_recipe(tmp_path, train={"deepspeed": {"zero_optimization": {"stage": stage}}})
    memory = training_memory(recipe, 1e6, ModelShape(layers=2, hidden=64), ranks=4)
    assert memory.states == pytest.approx(1e6 * bytes_per_parameter)


def test_the_published_recipe_is_planned_whole_from_what_it_declares():
    found = estimate(load_recipe(SPLADE_V3), 8, "h100")
    assert not [cost for cost in found.costs if "not counted" in cost.basis]
    scored = {cost.part: cost for cost in found.costs if cost.stage == "score"}
    assert set(scored) == {"minilm", "deberta-v3", "deberta-v2", "electra", "rankt5"}
    pairs, length = 500_000 * 101 + 2 * 6_980 * 100, 8 + 76 + 3
    layers = 6 * 12 * 384**2  # MiniLM's matrices
    assert scored["minilm"].flops == pytest.approx(pairs * length * (2 * layers + 4 * length * 6 * 384))
    assert all("assumed: 40% of h100's 989 TFLOP/s" in cost.basis for cost in scored.values())


def test_more_devices_take_less_time_until_shards_or_gradients_bound_them():
    recipe = load_recipe(SPLADE_V3)
    eight, many = (estimate(recipe, gpus, "h100") for gpus in (8, 512))
    assert eight.wall_seconds < estimate(recipe, 1, "h100").wall_seconds / 5
    bounds = {cost.stage: cost.bound for cost in many.costs if cost.stage in ("score", "train") and cost.bound}
    assert "514 shards on 512 workers: 50% idle" in bounds["score"]
    assert many.ranks == 80


def test_a_model_of_unknown_shape_is_named_not_left_out(tmp_path):
    recipe = load_recipe(SPLADE_V3, ["data.sizes.models={}"])
    costs = [cost for cost in estimate(recipe, 1, "a100").costs if cost.stage == "score"]
    assert len(costs) == 5 and all(
        cost.wall_seconds is None and "is not known; declare it in data.sizes.models" in cost.basis for cost in costs
    )


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_plans_of_the_shipped_recipes_count_every_part_of_every_round(path, tmp_path):
    found = estimate(load_recipe(path, [f"run_dir={tmp_path}"]), 8, "h100")  # no round has saved a checkpoint yet
    assert found.not_counted == 0, [cost for cost in found.costs if cost.wall_seconds is None]
    assert found.memory is not None and found.device_seconds > 0


def test_a_student_of_the_round_before_has_the_shape_of_the_model_that_the_first_was_started_from():
    changes = {
        "mine": {"miners": {"own": {"kind": "splade", "model": "round:previous"}}},
        "student": {"model": "round:previous"},
    }
    declared = load_recipe(SPLADE_V3).data.sizes.models["naver/splade-cocondenser-selfdistil"]
    rounds = all_rounds(load_recipe(SPLADE_V3, ["student.layers=4", f"rounds={json.dumps([changes, changes])}"]))
    for one in rounds[1:]:
        assert (
            student_shape(one)
            == shape_of(one, one.mine.miners["own"].model)
            == declared.model_copy(update={"layers": 4})
        )


def test_sums_that_lack_parts_say_so():
    student = "naver/splade-cocondenser-selfdistil: {layers: 12, hidden: 768}"
    arguments = ["plan", SPLADE_V3, f"data.sizes.models={{{student}}}"]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).output
    assert "at least" in shown and "one stage after the other; 5 parts not counted" in shown and "in all" not in shown
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)["not_counted"] == 5
    assert "in all" in CliRunner().invoke(app, ["plan", SPLADE_V3], env={"COLUMNS": "200"}).output


def test_an_unknown_device_is_refused_with_the_names_of_the_others():
    with pytest.raises(RecipeError, match=r"'h900' is not known; known: t4, v100, .*cpu for this machine"):
        device("h900")


def test_the_rates_of_a_run_that_was_made_here_count(tmp_path, tiny_mlm, tiny_sentence):
    recipe = whole_recipe(tmp_path, tiny_mlm, tiny_sentence)
    run(recipe, limit=8)
    found = estimate(recipe.model_copy(update={"data": recipe.data.model_copy(update={"sizes": None})}), 1, "cpu")
    assert found.probe == tmp_path / "run-limit-8"
    basis = {(cost.stage, cost.part): cost.basis for cost in found.costs}
    for part in (("score", "tuned"), ("score", "bi-encoder"), ("train", ""), ("import", "")):
        assert "measured in" in basis[part], basis
    step = [json.loads(line) for line in (found.probe / "logs" / "train.jsonl").read_text().splitlines()]
    speeds = sorted(line["tokens_per_second"] for line in step if "tokens_per_second" in line)
    train = next(cost for cost in found.costs if cost.stage == "train")
    assert speeds[0] <= train.tokens / train.wall_seconds <= speeds[-1]
    on_gpu = estimate(recipe, 1, "h100")
    assert all("measured" not in cost.basis for cost in on_gpu.costs if cost.stage in ("score", "train"))


def test_the_command_prints_a_table_or_json():
    shown = CliRunner().invoke(app, ["plan", SPLADE_V3, "--gpus", "4", "--gpu-type", "a100"])
    assert shown.exit_code == 0 and "splade-v3 on 4 x a100" in shown.output and "Slurm jobs" in shown.output
    tree = json.loads(CliRunner().invoke(app, ["plan", SPLADE_V3, "--gpus", "4", "-t", "a100", "--json"]).output)
    assert tree["device_seconds"] > 0 and tree["training"]["memory_bytes"]["total"] > 1e9
