"""The student under DeepSpeed: configuration from the recipe, accumulation over chunks, the update, its whole state.

Parameters and gradients are float32 at every ZeRO stage; half precision is autocast inside the student's forward,
so that what a step accumulates over many chunks loses nothing. fp16 scales its loss here, since DeepSpeed's autocast
clips before it unscales. State goes in and out by parameter name, so that it fits any world size and stage.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill import config
from distill.errors import RecipeError, TrainingError
from distill.student import dropout
from distill.student.base import Cached, Side, Student
from distill.student.head import SparseReps
from distill.student.model import SpladeStudent
from distill.training.allocator import keep_freed_memory
from distill.training.world import World
from teachers.execution import fastest_precision

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # else it warns that it guesses
import deepspeed
from deepspeed import utils as ds_utils
from deepspeed.utils.logging import logger as ds_logger

ds_logger.setLevel(logging.ERROR)  # it warns about optimizers and output types that it does not know; tests do
# DeepSpeed would compile a C++ all-reduce over shared memory when the process group is made; gloo does as well here.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
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


def deepspeed_config(train: config.Train, world_size: int, precision: str) -> dict[str, Any]:
    """The configuration DeepSpeed gets: the recipe's `deepspeed` section and what the recipe decides.

    Raises `RecipeError`, naming both fields, where the section contradicts the recipe. "auto" agrees with anything.
    """
    given = {key: value for key, value in train.deepspeed.items() if value != "auto"}
    for key in (*PRECISION_SECTIONS, "torch_autocast", "amp", "zero_optimization"):
        if not isinstance(given.get(key, {}), dict):
            raise RecipeError(f"train.deepspeed.{key} is a section of fields, not {given[key]!r}")
    agreed = {
        "train_batch_size": train.batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
    }
    for key, field in DECIDED.items():
        if key in given and (key not in agreed or given[key] != agreed[key]):
            raise RecipeError(
                f"train.deepspeed.{key} contradicts {field}, which decides it; remove it from train.deepspeed"
            )
        given.pop(key, None)
    for key in (*PRECISION_SECTIONS, "torch_autocast", "amp"):
        section = given.pop(key, {})
        if section.get("enabled") is True and PRECISION_SECTIONS.get(key) != precision:
            raise RecipeError(
                f"train.deepspeed.{key} is enabled, but train.precision is {precision}; set "
                "train.precision and remove the section"
            )
    offload = given.get("zero_optimization", {}).get("offload_optimizer") or {}
    if not isinstance(offload, dict):
        raise RecipeError(
            f"train.deepspeed.zero_optimization.offload_optimizer is a section of fields "
            f"({{device: cpu}}), not {offload!r}"
        )
    zero = {
        "stage": 0,
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
        **given.pop("zero_optimization", {}),
    }
    if zero.get("compute_grad_norm") is False:
        raise RecipeError(
            "train.deepspeed.zero_optimization.compute_grad_norm must stay true: a step with a "
            "non-finite gradient is found by its norm (train.max_bad_steps)"
        )
    return {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        **given,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": train.max_grad_norm,  # always written: DeepSpeed's default clips at 1.0
        "zero_optimization": zero,
    }


def parameter_groups(student: Student, train: config.Train) -> list[dict[str, Any]]:
    """Weight decay for matrices only (not biases, norms and a query table)."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.dim() > 1, student.rate(name, train)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": train.weight_decay if decays else 0.0, "peak_lr": rate}
        for (decays, rate), parameters in groups.items()
    ]


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto": bf16 on a GPU that has it, else fp16; on a CPU fp32, unless it has bf16 and multiplies it faster."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if fastest_precision("cpu") == "bfloat16" else "fp32"


@dataclass
class LossScale:
    """fp16's loss scale: halved when a gradient overflows, doubled after `patience` good steps."""

    scale: float = 65536.0
    good: int = 0
    patience: int = 1000

    def update(self, finite: bool) -> None:
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale = max(self.scale / 2, 1.0)
        elif self.good % self.patience == 0:
            self.scale *= 2


@dataclass(frozen=True)
class Update:
    """What `Engine.step` did. `grad_norm`: of the global gradient, before clipping; not applied if not finite."""

    applied: bool
    grad_norm: float


class _Autocast(nn.Module):
    """The student in half precision; DeepSpeed switches off any autocast around its engine, so it sits inside."""

    def __init__(self, student: Student, precision: str, device: torch.device):
        super().__init__()
        self.student = student
        self.dtype, self.device_type = HALF.get(precision), device.type

    def forward(self, *args: Any) -> SparseReps | Tensor:
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
            return self.student(*args)


class Engine:
    """A student that trains. `student` is the module that was given; under ZeRO-3 its parameters are elsewhere."""

    def __init__(self, student: Student, train: config.Train, world: World, precision: str):
        self.world, self.precision, self.student = world, precision, student
        ds_config = deepspeed_config(train, world.size, precision)
        self.stage = ds_config["zero_optimization"]["stage"]
        if self.stage == 3 and not isinstance(student, SpladeStudent):
            raise RecipeError(
                "train.deepspeed.zero_optimization.stage: 3 takes students of kind splade alone, whose "
                "weights are used where they lie; use at most 2"
            )
        self.loss_scale = LossScale() if precision == "fp16" else None
        if train.activation_checkpointing:
            student.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        if world.device.type == "cpu":
            keep_freed_memory()
            dropout.use_kernel(student.backbone)
        offload = ds_config["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"
        optimizer = _optimizer(train, parameter_groups(student, train), offload)
        try:
            self._ds, *_ = deepspeed.initialize(
                model=_Autocast(student, precision, world.device), optimizer=optimizer, config=ds_config
            )
        except (ValueError, AssertionError) as error:  # pydantic's and DeepSpeed's own checks of its configuration
            raise RecipeError(f"train.deepspeed: DeepSpeed refuses the configuration: {error}") from error
        self._ds.train()

    # ---------------------------------------------------------------------------------- forward, backward, update

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor, cached: Cached | None = None, side: Side = "passage"
    ) -> SparseReps | Tensor:
        """As `Student.forward`."""
        return self._ds(input_ids, attention_mask, cached, side)

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Backwards inside this block add up on this process; gradients are reduced once, at its end.

        After an exception the engine cannot go on: close it and make another.
        """
        if self.stage > 0:
            with self._ds.coalesce_grad_reduction():
                try:
                    yield
                except BaseException:
                    self._ds.zero_grad()  # DeepSpeed reduces at the end of its block in any case
                    raise
        else:
            self._ds.set_gradient_accumulation_boundary(False)
            yield
            self._ds.set_gradient_accumulation_boundary(True)
            self._ds.allreduce_gradients()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar. The engine averages over processes, so each passes `size` times its share."""
        if self.loss_scale is not None:
            if self.stage > 0:
                self._ds.optimizer.override_loss_scale(self.loss_scale.scale)
            else:
                loss = loss * self.loss_scale.scale
        self._ds.backward(loss)

    def step(self, lr_factor: float) -> Update:
        """Clip, update, and clear the gradients; the parameters stay as they are where the gradient is not finite."""
        for group in self._ds.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor
        applied, norm = self._step_unpartitioned() if self.stage == 0 else self._step_partitioned()
        if self.loss_scale is not None:
            self.loss_scale.update(applied)
        return Update(applied, norm)

    def _step_unpartitioned(self) -> tuple[bool, float]:
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        if self.loss_scale is not None:
            torch._foreach_mul_(gradients, 1 / self.loss_scale.scale)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self._ds.zero_grad()
            return False, norm
        self._ds.step()
        return True, norm

    def _step_partitioned(self) -> tuple[bool, float]:
        self._ds.step()  # looks at the norm itself, and leaves the parameters alone where it is not finite
        applied = not self._ds.optimizer.overflow
        return applied, float(self._ds.get_global_grad_norm()) if applied else math.inf

    @property
    def lr(self) -> float:
        return self._ds.optimizer.param_groups[0]["lr"]

    # ---------------------------------------------------------------------------------------------- whole state

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter and counter, whole, on the CPU; collective, and on rank 0 only: others get {}."""
        state = {}
        for name, parameter in self.student.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                if self.world.rank == 0:
                    state[name] = parameter.detach().to("cpu", copy=True)
        if self.world.rank == 0:  # the same on all
            state |= {name: counter.to("cpu", copy=True) for name, counter in self.student.counters().items()}
        return state

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """The optimizer's tensors by parameter name, whole, on the CPU; collective, and on rank 0 only."""
        state: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self._trained():
            tensors = {key: self._gathered_state(parameter, key) for key in self._state_keys()}
            if self.world.rank == 0:
                state[name] = {key: tensor.to("cpu", copy=True) for key, tensor in tensors.items()}
        return state

    def updates(self) -> float:
        """How many updates the optimizer has made (Adam's own count)."""
        states = self._base_optimizer.state.values()
        return max((float(state["step"]) for state in states if "step" in state), default=0.0)

    def load_optimizer_state(self, state: dict[str, dict[str, Tensor]], updates: float) -> None:
        """Restore what `optimizer_state` gave, at any world size and stage, before the first step."""
        keys = sorted({key for tensors in state.values() for key in tensors})
        if not keys:
            return
        base = self._base_optimizer
        on_cpu = type(base).__name__ == "DeepSpeedCPUAdam"
        for flat in self._optimized():
            base.state[flat] = {
                "step": int(updates) if on_cpu else torch.tensor(updates, device=flat.device),
                **{key: torch.zeros_like(flat) for key in keys},
            }
        if self.stage in (1, 2):
            self._ds.optimizer._lazy_init_hp_params_optimizer_state()  # so that the states can be reached by parameter
        for name, parameter in self._trained():
            for key in keys:
                self._set_state(parameter, key, state[name][key])

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.student.named_parameters() if parameter.requires_grad)

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        return self._ds.optimizer if self.stage == 0 else self._ds.optimizer.optimizer

    def _optimized(self) -> list[Tensor]:
        """What the optimizer updates: the parameters, or this rank's flat partitions of them."""
        if self.stage == 0:
            return [parameter for group in self._base_optimizer.param_groups for parameter in group["params"]]
        if self.stage < 3:
            return self._ds.optimizer.single_partition_of_fp32_groups
        return self._ds.optimizer.fp32_partitioned_groups_flat

    def _state_keys(self) -> list[str]:
        states = self._base_optimizer.state.values()
        return sorted(
            {key for state in states for key, value in state.items() if key != "step" and isinstance(value, Tensor)}
        )

    def _gathered_state(self, parameter: nn.Parameter, key: str) -> Tensor:
        if self.stage == 0:
            return self._base_optimizer.state[parameter][key]
        return ds_utils.safe_get_full_optimizer_state(parameter, key)

    def _set_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        value = value.to(self.world.device)
        if self.stage == 0:
            self._base_optimizer.state[parameter][key].copy_(value)
        elif self.stage < 3:
            ds_utils.safe_set_full_optimizer_state(parameter, value, key)
        else:  # DeepSpeed's own function for whole tensors does not pad the last partition
            size = parameter.ds_tensor.ds_numel
            mine = torch.nn.functional.pad(value.flatten(), (0, size * self.world.size - value.numel()))
            ds_utils.safe_set_local_optimizer_state(parameter, mine.narrow(0, size * self.world.rank, size), key)

    def close(self) -> None:
        self._ds.destroy()


def _optimizer(train: config.Train, groups: list[dict[str, Any]], offload: bool) -> torch.optim.Optimizer:
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr)
    if offload:
        try:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(groups, lr=train.lr, adamw_mode=True)
        except Exception as error:  # compiled on first use: whatever the compiler says
            raise TrainingError(
                "train.deepspeed.zero_optimization.offload_optimizer needs DeepSpeed's CPU Adam, which "
                f"cannot be built here: {error}"
            ) from error
    return torch.optim.AdamW(groups, lr=train.lr, fused=True)
