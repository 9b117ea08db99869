"""`distill plan`: operations against torch's counter, memory against the written-out formulas, rates of a probe."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, DebertaV2Config, ModernBertConfig, ModernBertModel
from typer.testing import CliRunner

from distill.cli.app import app
from distill.config import ModelShape
from distill.errors import RecipeError
from distill.pipeline.estimate import case_of, estimate
from distill.pipeline.run import run_pipeline
from distill.planning.devices import device
from distill.planning.flops import ModelCost
from distill.planning.memory import chunk_tokens, kept_bytes, training_memory
from distill.recipe.expand import open_runs
from distill.recipe.load import load_recipe
from tests.helpers.small_run import small_recipe
from tests.helpers.whole_run import whole_recipe

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
def test_operations_equal_those_that_torch_counts_on_the_real_model(tmp_path, model, settings):
    length, texts = 48, 5
    settings._attn_implementation = "eager"  # the counter does not see into other implementations
    encoder = model(settings).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(input_ids=torch.ones(texts, length, dtype=torch.int64))
    cost = ModelCost.of(settings.to_dict())
    assert texts * length * cost.forward_flops(length) == counter.get_total_flops()
    assert cost.parameters == sum(parameter.numel() for parameter in encoder.parameters())


def test_a_declared_shape_costs_the_operations_of_the_written_out_formula():
    cost = ModelCost.of_shape(ModelShape(layers=3, hidden=64, feed_forward=96, attention=128, vocabulary=1000))
    weights = 3 * (4 * 64 * 128 + 2 * 64 * 96)
    assert cost.forward_flops(48) == pytest.approx(2 * weights + 4 * 48 * 3 * 128)
    assert cost.parameters == pytest.approx(weights + 1000 * 64, rel=0.02)  # and norms, and relative positions
    assert cost.head_flops == 2 * 64 * 1000
    gated = ModelCost.of_shape(ModelShape(layers=1, hidden=64, feed_forward=96, gated=True))
    assert gated.forward_flops(1) == pytest.approx(2 * (4 * 64 * 64 + 3 * 64 * 96) + 4 * 64)


def test_a_model_that_cannot_run_on_the_meta_device_is_counted_by_its_shape():
    settings = DebertaV2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96)
    shape = ModelShape(layers=2, hidden=64, feed_forward=96, vocabulary=settings.vocab_size)
    assert ModelCost.of(settings.to_dict()).forward_flops(20) == ModelCost.of_shape(shape).forward_flops(20)


@pytest.mark.parametrize(
    ("stage", "bytes_per_parameter"), [(0, 16), (1, 4 + 4 + 8 / 4), (2, 4 + (4 + 8) / 4), (3, (4 + 4 + 8) / 4)]
)
def test_model_states_are_partitioned_over_four_processes_by_zero_stage(tmp_path, stage, bytes_per_parameter):
    recipe = small_recipe(tmp_path, train={"deepspeed": {"zero_optimization": {"stage": stage}}})
    model = ModelCost.of_shape(ModelShape(layers=2, hidden=64, vocabulary=100))
    memory = training_memory(recipe, model, 4, device("a100"))
    assert memory.states == pytest.approx(model.parameters * bytes_per_parameter)


def test_chunks_and_kept_graphs_fill_a_gpu_and_no_more():
    train = small_recipe(Path("x")).train
    assert chunk_tokens(train, cuda=False) == 8192 and kept_bytes(train, False, 64e9, 1e9) == 0
    assert chunk_tokens(train, True, 80e9, 4e5) == 65_536
    assert chunk_tokens(train, True, 20e9, 4e5) == 16_384  # 6.6 GB
    assert chunk_tokens(train, True, 1e9, 4e5) == chunk_tokens(train, True, 1e9, math.inf) == 8192
    assert kept_bytes(train, True, 80e9, 26e9) == pytest.approx(22e9) and kept_bytes(train, True, 1e9, math.inf) == 0
    fixed = small_recipe(Path("x"), train={"chunk_tokens": 100, "activation_budget": 2}).train
    assert chunk_tokens(fixed, True, 1e9, 4e5) == 100 and kept_bytes(fixed, True, 1e9, 4e7) == 2 * 2**30


def test_the_published_recipe_is_planned_completely_from_its_declared_sizes():
    costs = estimate(load_recipe(SPLADE_V3), 8, "h100").costs
    assert not [cost for _, _, cost in costs if "not counted" in cost.basis]
    scored = {cost.part: cost for _, stage, cost in costs if stage == "score"}
    assert set(scored) == {"minilm", "deberta-v3", "deberta-v2", "electra", "rankt5"}
    pairs, length = 500_000 * 101 + 2 * 6_980 * 100, 8 + 76 + 3
    layers = 6 * 12 * 384**2  # weights of MiniLM's matrices
    assert scored["minilm"].flops == pytest.approx(pairs * length * (2 * layers + 4 * length * 6 * 384))
    assert all(f"assumed: {20 if name == 'minilm' else 40}% of h100's" in cost.basis for name, cost in scored.items())


@pytest.mark.parametrize(
    ("hidden", "precision", "share"), [(768, "bfloat16", 40), (384, "bfloat16", 20), (768, "float32", 4)]
)
def test_the_assumed_share_of_a_gpu_depends_on_width_and_precision(hidden, precision, share):
    shape = {"layers": 6, "hidden": hidden, "vocabulary": 30_522}
    miner = "mine.miners={m: {kind: splade, model: own}}"
    overrides = [miner, f"mine.precision={precision}", f"data.sizes.models={{own: {json.dumps(shape)}}}"]
    costs = estimate(load_recipe(SPLADE_V3, overrides), 8, "h100").costs
    encoded = next(cost for _, _, cost in costs if cost.part == "m: encode")
    assert f"assumed: {share}% of h100's 989 TFLOP/s" in encoded.basis
    assert encoded.device_seconds == pytest.approx(encoded.flops / (989e12 * share / 100))


def test_a_lexical_start_is_planned_as_a_training_pass_and_an_encoding_of_passages_and_excerpts():
    recipe = load_recipe("configs/beir.yaml", ["student.lexical_start={passages: 500}", "student.layers=null"])
    plan = estimate(recipe, 2, "h100")
    cost = next(cost for _, _, cost in plan.costs if cost.part == "lexical start")
    tokens, layers = 500 * (190 + 2 + 14 + 2), 6 * 12 * 384**2  # weights of MiniLM's matrices
    assert cost.tokens == pytest.approx(tokens)
    flops = 4 * tokens * (2 * layers + 4 * 192 * 6 * 384 + 2 * 384 * 30522)
    assert cost.flops == pytest.approx(flops, rel=1e-3)  # and the pooler
    assert cost.device_seconds == 2 * cost.wall_seconds
    train = next(planned.cost for planned in plan.planned if planned.stage == "train")
    assert "a lexical start on 500 passages" in train.work


def test_more_devices_take_less_time_until_shards_or_batch_size_limit_them():
    recipe = load_recipe(SPLADE_V3)
    eight, many = (estimate(recipe, gpus, "h100") for gpus in (8, 512))
    assert eight.wall_seconds < estimate(recipe, 1, "h100").wall_seconds / 5
    bounds = {stage: cost.bound for _, stage, cost in many.costs if stage in ("score", "train") and cost.bound}
    assert "514 shards on 512 workers: 50% idle" in bounds["score"]
    assert many.ranks == 80


def test_a_model_of_unknown_shape_is_listed_as_not_counted(tmp_path):
    recipe = load_recipe(SPLADE_V3, ["data.sizes.models={}"])
    costs = [cost for _, stage, cost in estimate(recipe, 1, "a100").costs if stage == "score"]
    assert len(costs) == 5 and all(
        cost.wall_seconds is None and "is not known; declare it in data.sizes.models" in cost.basis for cost in costs
    )


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_plan_of_a_shipped_recipe_counts_every_part_of_every_round(path, tmp_path):
    recipe = load_recipe(path, [f"run_dir={tmp_path}"])
    plan = estimate(recipe, 8, "h100")  # no round has saved a checkpoint yet
    assert plan.not_counted == 0, [cost for _, _, cost in plan.costs if cost.wall_seconds is None]
    assert (plan.memory is not None) == (recipe.student is not None) and plan.device_seconds > 0


def test_the_previous_rounds_student_has_the_shape_of_the_first_rounds_model():
    changes = {
        "mine": {"miners": {"own": {"kind": "splade", "model": "round:previous"}}},
        "student": {"model": "round:previous"},
    }
    declared = load_recipe(SPLADE_V3).data.sizes.models["naver/splade-cocondenser-selfdistil"]
    recipe = load_recipe(SPLADE_V3, ["student.layers=4", f"rounds={json.dumps([changes, changes])}"])
    for run in open_runs(recipe)[1:]:
        case = case_of(run, 1, device("h100"), None)
        assert case.student() == ModelCost.of_shape(declared, layers=4)
        assert case.models(run.recipe.mine.miners["own"].model) == case.student()


def test_totals_say_at_least_if_a_part_is_not_counted():
    student = "naver/splade-cocondenser-selfdistil: {layers: 12, hidden: 768}"
    arguments = ["plan", SPLADE_V3, f"data.sizes.models={{{student}}}"]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).output
    assert "at least" in shown and "one stage after the other; 5 parts not counted" in shown and "in all" not in shown
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)["not_counted"] == 5
    assert "in all" in CliRunner().invoke(app, ["plan", SPLADE_V3], env={"COLUMNS": "200"}).output


def test_an_unknown_device_is_refused_with_the_known_names():
    with pytest.raises(RecipeError, match=r"'h900' is not known; known: t4, v100, .*cpu for this machine"):
        device("h900")


def test_the_rates_of_a_rehearsal_on_the_same_kind_of_device_are_used(tmp_path, tiny_mlm, tiny_sentence):
    recipe = whole_recipe(tmp_path, tiny_mlm, tiny_sentence)
    run_pipeline(recipe, limit=8)
    plan = estimate(recipe.model_copy(update={"data": recipe.data.model_copy(update={"sizes": None})}), 1, "cpu")
    assert plan.probe == tmp_path / "run-limit-8"
    basis = {(stage, cost.part): cost.basis for _, stage, cost in plan.costs}
    for part in (("score", "tuned"), ("score", "bi-encoder"), ("train", ""), ("import", "")):
        assert "measured in" in basis[part], basis
    step = [json.loads(line) for line in (plan.probe / "logs" / "train.jsonl").read_text().splitlines()]
    speeds = sorted(line["tokens_per_second"] for line in step if "tokens_per_second" in line)
    train = next(cost for _, stage, cost in plan.costs if stage == "train")
    speed = train.tokens / train.wall_seconds
    assert speeds[0] * (1 - 1e-9) <= speed <= speeds[-1] * (1 + 1e-9)  # one of them, but for rounding
    on_gpu = estimate(recipe, 1, "h100")
    assert all("measured" not in cost.basis for _, stage, cost in on_gpu.costs if stage in ("score", "train"))


def test_the_command_prints_a_table_or_json():
    shown = CliRunner().invoke(app, ["plan", SPLADE_V3, "--gpus", "4", "--gpu-type", "a100"])
    assert shown.exit_code == 0 and "splade-v3 on 4 x a100" in shown.output and "Slurm jobs" in shown.output
    tree = json.loads(CliRunner().invoke(app, ["plan", SPLADE_V3, "--gpus", "4", "-t", "a100", "--json"]).output)
    assert tree["device_seconds"] > 0 and tree["training"]["memory_bytes"]["total"] > 1e9
