"""DeepSpeed's configuration: what the recipe decides, and its section `train.deepspeed`, which may not contradict."""

from __future__ import annotations

from typing import Any

from distill.config import Train
from distill.errors import RecipeError

# field of the DeepSpeed configuration -> field of the recipe that decides it
DECIDED = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "activation_checkpointing": "train.activation_checkpointing",
    "managed_gradient_accumulation": "train.chunk_tokens",
}
PRECISION_SECTIONS = {"fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16"}


def deepspeed_config(train: Train, world_size: int, precision: str) -> dict[str, Any]:
    """DeepSpeed's configuration: the recipe's `train.deepspeed` section, and the fields that the recipe decides.

    Raises `RecipeError`, naming both fields, where the section contradicts the recipe. "auto" agrees with anything.
    """
    section = {key: value for key, value in train.deepspeed.items() if value != "auto"}
    for key in (*PRECISION_SECTIONS, "torch_autocast", "amp", "zero_optimization"):
        if not isinstance(section.get(key, {}), dict):
            raise RecipeError(f"train.deepspeed.{key} must be a section of fields, not {section[key]!r}")
    _drop_decided(section, train)
    _drop_precision(section, precision)
    zero = _zero_section(section.pop("zero_optimization", {}))
    return {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device at every forward
        **section,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": train.max_grad_norm,  # always written: DeepSpeed's default clips at 1.0
        "zero_optimization": zero,
    }


def _drop_decided(section: dict[str, Any], train: Train) -> None:
    """Remove the fields that the recipe decides. Raises `RecipeError` for a value that differs from the recipe's."""
    agreeing = {
        "train_batch_size": train.batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
    }
    for key, field in DECIDED.items():
        if key in section and (key not in agreeing or section[key] != agreeing[key]):
            raise RecipeError(
                f"train.deepspeed.{key} contradicts {field}, which decides it; remove it from train.deepspeed"
            )
        section.pop(key, None)


def _drop_precision(section: dict[str, Any], precision: str) -> None:
    """Remove the sections about precision. Raises `RecipeError` if one enables another than `precision`."""
    for key in (*PRECISION_SECTIONS, "torch_autocast", "amp"):
        if section.pop(key, {}).get("enabled") is True and PRECISION_SECTIONS.get(key) != precision:
            raise RecipeError(
                f"train.deepspeed.{key} is enabled, but train.precision is {precision}; set train.precision and remove "
                f"train.deepspeed.{key}"
            )


def _zero_section(section: dict[str, Any]) -> dict[str, Any]:
    """The section `zero_optimization` with defaults. Raises `RecipeError` for values that cannot be used."""
    offload = section.get("offload_optimizer") or {}
    if not isinstance(offload, dict):
        raise RecipeError(
            "train.deepspeed.zero_optimization.offload_optimizer must be a section of fields "
            f"({{device: cpu}}), not {offload!r}"
        )
    if section.get("compute_grad_norm") is False:
        raise RecipeError(
            "train.deepspeed.zero_optimization.compute_grad_norm must stay true: non-finite gradients are detected by "
            "their norm (train.max_bad_steps)"
        )
    return {"stage": 0, "reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000, **section}
