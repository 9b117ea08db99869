"""The student under DeepSpeed: accumulation over chunks, updates, unpartitioned state.

Parameters and gradients are float32 at every ZeRO stage. Half precision is autocast inside the student's forward, so
that gradients accumulate over many chunks without rounding. fp16 scales its loss here, since DeepSpeed's autocast
clips before it unscales. State is saved and loaded by parameter name, so that it fits any world size and stage.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill import config
from distill.errors import RecipeError, TrainingError
from distill.planning.devices import fastest_precision
from distill.sparse.reps import RepsGradient, SparseReps
from distill.student import dropout
from distill.student.base import Side, Student
from distill.training.allocator import keep_freed_memory
from distill.training.attention import Float32Attention
from distill.training.deepspeed_config import deepspeed_config
from distill.training.world import World

# DeepSpeed reads these settings when it is imported or used first; no argument of its functions sets them.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # unset, it guesses and warns
import deepspeed
from deepspeed import utils as ds_utils
from deepspeed.utils.logging import logger as ds_logger

ds_logger.setLevel(logging.ERROR)  # it warns about optimizers and output types it does not know; ours are tested
# DeepSpeed would compile a C++ all-reduce over shared memory when the process group is created; gloo serves as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def parameter_groups(student: Student, train: config.Train) -> list[dict[str, Any]]:
    """Group the trained parameters by learning rate and weight decay.

    Weight decay is for matrices only, not for biases, norms and query tables.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.dim() > 1, student.learning_rate(name, train)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": train.weight_decay if decays else 0.0, "peak_lr": rate}
        for (decays, rate), parameters in groups.items()
    ]


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto": on a GPU, bf16 if supported, else fp16; on a CPU, bf16 if it is faster there, else fp32."""
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
    """Result of `Engine.step`: whether the gradient was finite and so applied, and its global norm before clipping."""

    applied: bool
    grad_norm: float


class _Autocast(nn.Module):
    """The student in half precision. It is inside the engine, since DeepSpeed disables any autocast around it."""

    def __init__(self, student: Student, precision: str, device: torch.device, recomputes: bool):
        super().__init__()
        self.student = student
        self.dtype, self.device_type = HALF.get(precision), device.type
        # what a backward recomputes, it computes outside of `forward`
        slow = self.dtype is not None and device.type == "cpu" and not recomputes
        self.attention: Callable[[], AbstractContextManager[Any]] = Float32Attention if slow else nullcontext

    def forward(self, input_ids: Tensor, attention_mask: Tensor, side: Side, *cached: Any) -> SparseReps | Tensor:
        """`Student.encode`, or with `cached` (representations and their gradient) `Student.surrogate`."""
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None), self.attention():
            if cached:
                return self.student.surrogate(input_ids, attention_mask, side, *cached)
            return self.student.encode(input_ids, attention_mask, side)


class Engine:
    """A student in training. `student` is the module itself; under ZeRO-3 its parameters are partitioned."""

    def __init__(self, student: Student, train: config.Train, world: World, precision: str):
        self.world, self.precision, self.student = world, precision, student
        ds_config = deepspeed_config(train, world.size, precision)
        self.zero_stage = ds_config["zero_optimization"]["stage"]
        if self.zero_stage == 3 and not student.partitionable:
            raise RecipeError(
                "train.deepspeed.zero_optimization.stage: 3 supports students of kind splade only; use at most 2"
            )
        # DeepSpeed takes the norm again and clips tensor by tensor, hundreds of launches; on a GPU it is done once here
        self.clips = world.device.type == "cuda" and self.zero_stage == 0
        self.max_grad_norm = train.max_grad_norm
        if self.clips:
            ds_config["gradient_clipping"] = 0.0
        self.loss_scale = LossScale() if precision == "fp16" else None
        if train.activation_checkpointing:
            student.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        if world.device.type == "cpu":
            keep_freed_memory()
            dropout.use_kernel(student.backbone)
        offload = ds_config["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"
        optimizer = _optimizer(train, parameter_groups(student, train), offload)
        module = _Autocast(student, precision, world.device, train.activation_checkpointing)
        try:
            self._ds, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config)
        except (ValueError, AssertionError) as error:  # pydantic's and DeepSpeed's own checks of its configuration
            raise RecipeError(f"train.deepspeed: DeepSpeed rejects the configuration: {error}") from error
        self._ds.train()

    # ---------------------------------------------------------------------------------- forward, backward, update

    def encode(self, input_ids: Tensor, attention_mask: Tensor, side: Side = "passage") -> SparseReps:
        """`Student.encode`, through DeepSpeed and in the engine's precision."""
        return self._ds(input_ids, attention_mask, side)

    def surrogate(
        self, input_ids: Tensor, attention_mask: Tensor, side: Side, reps: SparseReps, gradient: RepsGradient
    ) -> Tensor:
        """`Student.surrogate`, through DeepSpeed and in the engine's precision."""
        return self._ds(input_ids, attention_mask, side, reps, gradient)

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Accumulate the backwards inside this block locally, and reduce gradients once, at its end.

        After an exception the engine is unusable: close it and create another.
        """
        if self.zero_stage > 0:
            with self._ds.coalesce_grad_reduction():
                try:
                    yield
                except BaseException:
                    self._ds.zero_grad()  # DeepSpeed reduces at the end of its block also after an exception
                    raise
        else:
            self._ds.set_gradient_accumulation_boundary(False)
            yield
            self._ds.set_gradient_accumulation_boundary(True)
            self._ds.allreduce_gradients()

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar: this process's share of the loss, times the world size.

        The engine averages gradients over processes.
        """
        if self.loss_scale is not None:
            if self.zero_stage > 0:
                self._ds.optimizer.override_loss_scale(self.loss_scale.scale)
            else:
                loss = loss * self.loss_scale.scale
        self._ds.backward(loss)

    def step(self, lr_factor: float) -> Update:
        """Clip the gradients, update the parameters unless a gradient is not finite, and clear the gradients."""
        for group in self._ds.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor
        applied, norm = self._step_unpartitioned() if self.zero_stage == 0 else self._step_partitioned()
        if self.loss_scale is not None:
            self.loss_scale.update(applied)
        return Update(applied, norm)

    def _step_unpartitioned(self) -> tuple[bool, float]:
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        if self.loss_scale is not None:
            torch._foreach_mul_(gradients, 1 / self.loss_scale.scale)
        total = torch.nn.utils.get_total_norm(gradients)
        norm = float(total)
        if not math.isfinite(norm):
            self._ds.zero_grad()
            return False, norm
        if self.clips and self.max_grad_norm:
            parameters = [p for p in self.student.parameters() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, total)
        self._ds.step()
        return True, norm

    def _step_partitioned(self) -> tuple[bool, float]:
        self._ds.step()  # checks the norm itself, and skips the update if it is not finite
        applied = not self._ds.optimizer.overflow
        return applied, float(self._ds.get_global_grad_norm()) if applied else math.inf

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group at the last step."""
        return self._ds.optimizer.param_groups[0]["lr"]

    # ------------------------------------------------------------------------------------- unpartitioned state

    def parameters(self) -> dict[str, Tensor]:
        """Gather all parameters and extra state on rank 0's CPU; other ranks get {}. Collective."""
        state = {}
        for name, parameter in self.student.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage == 3):
                if self.world.rank == 0:
                    state[name] = parameter.detach().to("cpu", copy=True)
        if self.world.rank == 0:  # extra state is the same on all ranks
            state |= {name: tensor.to("cpu", copy=True) for name, tensor in self.student.extra_state().items()}
        return state

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Gather the optimizer's tensors, by parameter name, on rank 0's CPU; other ranks get {}. Collective."""
        state: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self._trained():
            tensors = {key: self._gathered_state(parameter, key) for key in self._state_keys()}
            if self.world.rank == 0:
                state[name] = {key: tensor.to("cpu", copy=True) for key, tensor in tensors.items()}
        return state

    def updates(self) -> float:
        """Number of updates the optimizer has made (Adam's own count)."""
        states = self._base_optimizer.state.values()
        return max((float(state["step"]) for state in states if "step" in state), default=0.0)

    def load_optimizer_state(self, state: dict[str, dict[str, Tensor]], updates: float) -> None:
        """Restore the state from `optimizer_state`, at any world size and stage, before the first step."""
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
        if self.zero_stage in (1, 2):
            self._ds.optimizer._lazy_init_hp_params_optimizer_state()  # makes the states accessible by parameter
        for name, parameter in self._trained():
            for key in keys:
                self._set_state(parameter, key, state[name][key])

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.student.named_parameters() if parameter.requires_grad)

    @property
    def _base_optimizer(self) -> torch.optim.Optimizer:
        return self._ds.optimizer if self.zero_stage == 0 else self._ds.optimizer.optimizer

    def _optimized(self) -> list[Tensor]:
        """The tensors that the optimizer updates: the parameters, or this rank's flat partitions of them."""
        if self.zero_stage == 0:
            return [parameter for group in self._base_optimizer.param_groups for parameter in group["params"]]
        if self.zero_stage < 3:
            return self._ds.optimizer.single_partition_of_fp32_groups
        return self._ds.optimizer.fp32_partitioned_groups_flat

    def _state_keys(self) -> list[str]:
        states = self._base_optimizer.state.values()
        return sorted(
            {key for state in states for key, value in state.items() if key != "step" and isinstance(value, Tensor)}
        )

    def _gathered_state(self, parameter: nn.Parameter, key: str) -> Tensor:
        if self.zero_stage == 0:
            return self._base_optimizer.state[parameter][key]
        return ds_utils.safe_get_full_optimizer_state(parameter, key)

    def _set_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        value = value.to(self.world.device)
        if self.zero_stage == 0:
            self._base_optimizer.state[parameter][key].copy_(value)
        elif self.zero_stage < 3:
            ds_utils.safe_set_full_optimizer_state(parameter, value, key)
        else:  # DeepSpeed's own function for unpartitioned tensors does not pad the last partition
            size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]  # added by ZeRO-3
            padded = torch.nn.functional.pad(value.flatten(), (0, size * self.world.size - value.numel()))
            ds_utils.safe_set_local_optimizer_state(parameter, padded.narrow(0, size * self.world.rank, size), key)

    def close(self) -> None:
        self._ds.destroy()


def _optimizer(train: config.Train, groups: list[dict[str, Any]], offload: bool) -> torch.optim.Optimizer:
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr)
    if offload:
        try:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(groups, lr=train.lr, adamw_mode=True)
        except Exception as error:  # it is compiled on first use, and may raise anything
            raise TrainingError(
                "train.deepspeed.zero_optimization.offload_optimizer needs DeepSpeed's CPU Adam, which cannot be "
                f"compiled on this machine; install a C++ compiler, or remove offload_optimizer: {error}"
            ) from error
    return torch.optim.AdamW(groups, lr=train.lr, fused=True)
