"""The DeepSpeed engine: refused settings, half precision, and state that moves between ZeRO stages."""

import json

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM

from distill.errors import RecipeError
from distill.student.model import SpladeStudent
from distill.training.deepspeed_config import deepspeed_config
from distill.training.engine import Engine, LossScale
from distill.training.world import join
from tests.training.reference import reference_steps, train_section


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"train_batch_size": 7}, "train.batch_size"),
        ({"gradient_accumulation_steps": 4}, "train.batch_size"),
        ({"train_micro_batch_size_per_gpu": 4}, "train.batch_size"),
        ({"optimizer": {"type": "Adam"}}, "train.optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "train.schedule"),
        ({"gradient_clipping": 5.0}, "train.max_grad_norm"),
        ({"fp16": {"enabled": True}}, "train.precision"),
        ({"torch_autocast": {"enabled": True}}, "train.precision"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "train.max_bad_steps"),
    ],
)
def test_deepspeed_settings_that_contradict_the_recipe_are_refused_naming_both_fields(section, field):
    with pytest.raises(RecipeError) as refused:
        deepspeed_config(train_section(deepspeed=section), 2, "bf16")
    assert f"train.deepspeed.{next(iter(section))}" in str(refused.value)
    assert field in str(refused.value)


def test_a_deepspeed_section_that_is_not_a_mapping_is_refused():
    with pytest.raises(RecipeError, match=r"train\.deepspeed\.fp16 must be a section of fields, not True"):
        deepspeed_config(train_section(deepspeed={"fp16": True}), 1, "fp16")


@pytest.mark.parametrize("stage", range(4))
def test_a_non_finite_gradient_leaves_the_parameters_unchanged(tiny_mlm, stage):
    student = SpladeStudent(
        BertForMaskedLM.from_pretrained(tiny_mlm),
        AutoTokenizer.from_pretrained(tiny_mlm),
        query_max_length=12,
        passage_max_length=24,
    )
    engine = Engine(student, train_section(deepspeed={"zero_optimization": {"stage": stage}}), join(), "fp32")
    before = engine.parameters()
    batch = torch.tensor([[2, 30, 31, 3]]), torch.ones(1, 4, dtype=torch.int64)
    for factor, applied in ((torch.inf, False), (1.0, True)):
        with engine.accumulating():
            engine.backward(engine.encode(*batch).values.sum() * factor)
        assert engine.step(1.0).applied is applied
        changed = [name for name, value in engine.parameters().items() if not torch.equal(value, before[name])]
        assert bool(changed) is applied
    engine.close()


def test_deepspeed_settings_that_agree_or_concern_only_deepspeed_are_accepted():
    got = deepspeed_config(
        train_section(
            deepspeed={
                "train_batch_size": 6,
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_clipping": 1.0,
                "bf16": {"enabled": True},
                "zero_optimization": {"stage": 2, "overlap_comm": True},
                "comms_logger": {"x": 1},
            }
        ),
        2,
        "bf16",
    )
    assert got["zero_optimization"]["stage"] == 2
    assert got["zero_optimization"]["overlap_comm"] is True
    assert got["comms_logger"] == {"x": 1}
    assert got["gradient_clipping"] == 1.0
    assert "bf16" not in got


def test_disabled_clipping_is_passed_to_deepspeed_explicitly():
    assert deepspeed_config(train_section(max_grad_norm=0.0), 1, "fp32")["gradient_clipping"] == 0.0


def test_the_loss_scale_halves_on_overflow_and_grows_with_good_steps():
    scale = LossScale(scale=8.0, patience=3)
    for finite in (True, True, False, True, True, True):
        scale.update(finite)
    assert scale.scale == 8.0


def test_half_precision_follows_float32_at_every_stage(run_processes, tiny_mlm, tmp_path):
    """bf16 and fp16 autocast, gradients clipped after the loss scale is taken off, parameters float32."""
    cases = {
        f"{precision}-{stage}": {
            "stage": stage,
            "chunk_tokens": 60,
            "kept_tokens": 0,
            "train": {"precision": precision, "max_grad_norm": 100.0},
        }
        for precision in ("bf16", "fp16")
        for stage in range(4)
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    run_processes(1, "step_worker", tiny_mlm, tmp_path, tmp_path / "cases.json")
    start, _ = reference_steps(tiny_mlm, train_section(), steps=0)
    parameters, norms = reference_steps(tiny_mlm, train_section(max_grad_norm=100.0), steps=3)
    change = torch.cat([(parameters[name] - start[name]).flatten() for name in start])
    for name in cases:
        got = torch.load(tmp_path / f"{name}.pt")
        assert got["norms"] == pytest.approx(norms, rel=0.1), name
        assert all(value.dtype == torch.float32 for value in got["parameters"].values())
        ours = torch.cat([(got["parameters"][key] - start[key]).flatten() for key in start])
        assert torch.cosine_similarity(ours, change, dim=0) > 0.99, name
        assert float(ours.norm() / change.norm()) == pytest.approx(1, abs=0.05), name


@pytest.mark.parametrize("zeros", [["1", "2", "3"], pytest.param(["1-offload", "2-offload"], marks=pytest.mark.slow)])
def test_adams_state_moves_between_zero_stages_unchanged(run_processes, tiny_mlm, tmp_path, zeros):
    run_processes(2, "state_worker", tiny_mlm, tmp_path, *zeros)
    got = torch.load(tmp_path / "states.pt")
    parameters, moments, updates = got["saved"]
    assert updates == 2
    for zero, result in got["results"].items():
        assert result["back"][2] == updates
        for name, value in parameters.items():
            assert torch.equal(result["back"][0][name], value), (zero, name)
            for key, moment in moments[name].items():
                assert torch.equal(result["back"][1][name][key], moment), (zero, name, key)
            if not name.endswith("key.bias"):  # its gradient is rounding noise, which Adam turns into steps
                step = got["expected"][name] - value
                assert (result["next"][name] - got["expected"][name]).norm() <= 1e-3 * step.norm(), (zero, name)
