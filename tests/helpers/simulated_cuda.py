"""A CUDA device for machines without one: the CPU's arithmetic under CUDA's rules about where tensors are.

Inside `simulated_cuda()` torch says that it has a GPU. A tensor made on "cuda", or moved there, is a `Device` tensor: a
wrapper around a CPU tensor that says it is on cuda:0. As on a GPU, operators refuse tensors of both devices (except
numbers, indices and copies), and numpy is refused. `Waits` counts what makes the host wait for the device, by the line
of this project that causes it: results whose size the device decides (nonzero, unique, masks as indices), numbers that
are read, copies from unpinned memory and to the host.

Values are those of the CPU, so results can be compared. Kernels, streams, memory and rounding are not simulated.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / room) for room in ("distill", "teachers", "ray_jobs"))
ops = torch.ops.aten
WAITING = {  # operators after which the host knows a number that the device has computed
    ops.nonzero.default,
    ops._local_scalar_dense.default,
    ops.masked_select.default,
    ops.bincount.default,
    ops._unique2.default,
    ops.unique_dim.default,
    ops.unique_consecutive.default,
    ops.is_nonzero.default,
    ops.equal.default,
}
COPYING = {ops.copy_.default, ops._to_copy.default}
INDEXING = {ops.index.Tensor, ops.index_put.default, ops.index_put_.default, ops._index_put_impl_.default}


class Waits(Counter[str]):
    """Number of waits per line of the project, as "distill/training/step.py:131 nonzero"."""

    def add(self, what: str) -> None:
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        place = "elsewhere"
        if frame is not None:
            place = f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        self[f"{place} {what}"] += 1


_waits = Waits()


class Device(Tensor):
    """A tensor on the simulated device; `held` is the CPU tensor inside."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Device:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=held.device,  # for C++ it stays a CPU tensor: autograd then needs no streams
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None: ...

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Device({self.held!r})"

    def numpy(self, *_: object, **__: object) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    def __array__(self, *_: object) -> Any:
        return self.numpy()

    def pin_memory(self, *_: object) -> Tensor:
        raise RuntimeError("only dense CPU tensors can be pinned")

    def tolist(self) -> Any:
        _waits.add("tolist")
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def cpu(self, *_: object, **__: object) -> Tensor:
        return self.to("cpu")

    def cuda(self, *_: object, **__: object) -> Tensor:
        return self

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        place, dtype, waits = _destination(args, kwargs)
        moved: Tensor = self if dtype in (None, self.dtype) else Tensor.to(self, dtype)
        if place is not None and place.type == "cpu":
            if waits:
                _waits.add("copy to the host")
            return _ToHost.apply(moved)
        return moved.clone() if kwargs.get("copy") and moved is self else moved

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, structure = tree_flatten((args, kwargs))
        _refuse_both_devices(operator, args, flat)
        if operator in WAITING:
            _waits.add(operator.name().removeprefix("aten::"))
        elif operator in INDEXING and any(isinstance(at, Tensor) and at.dtype == torch.bool for at in args[1] or ()):
            _waits.add("mask as index")
        elif operator is ops.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            _waits.add("repeat_interleave without output_size")
        held_args, held_kwargs = tree_unflatten([x.held if isinstance(x, Device) else x for x in flat], structure)
        if operator is ops.mm.dtype:  # CUDA has it, the CPU has not
            result = (held_args[0].float() @ held_args[1].float()).to(held_args[2])
        else:
            result = operator(*held_args, **held_kwargs)
        if operator is ops._local_scalar_dense.default:
            return result
        wrapped = tree_map_only(Tensor, _wrapped, result)
        return return_and_correct_aliasing(operator, args, kwargs, wrapped)


def _wrapped(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, Device) else Device(tensor)


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return Device(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.held if isinstance(gradient, Device) else gradient


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Device) -> Tensor:
        return tensor.held.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _wrapped(gradient)


def to_device(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, Device) else _ToDevice.apply(tensor)


def _destination(args: Any, kwargs: Any) -> tuple[torch.device | None, torch.dtype | None, bool]:
    """Device and dtype that the arguments of `Tensor.to` ask for, and whether the host waits."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for argument in args:
        if isinstance(argument, str | torch.device):
            device = argument
        elif isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, Tensor):
            device, dtype = argument.device, argument.dtype
    return None if device is None else torch.device(device), dtype, not kwargs.get("non_blocking", False)


def _refuse_both_devices(operator: Any, args: Any, flat: list[Any]) -> None:
    hosts = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Device) and x.dim() > 0]
    if not hosts or operator in COPYING:
        return
    if operator in INDEXING and all(any(x is at for at in args[1] or ()) for x in hosts):
        return
    if torch._C._current_graph_task_id() != -1 and _called_by_autograd():
        return  # zeros that autograd itself made for a gradient that is not there
    shapes = [tuple(x.shape) for x in hosts]
    raise RuntimeError(f"tensors on both devices, cuda:0 and cpu ({operator}; on the CPU: {shapes})")


def _called_by_autograd() -> bool:
    """Whether the operator in a backward was called by torch, and not by Python code of its own."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__ and frame.f_code.co_name != "_run_backward":
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name in ("_run_backward", "_engine_run_backward")


class _Placing(TorchFunctionMode):
    """Takes what is made on "cuda", or moved there, before torch looks for a driver."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, first = getattr(function, "__name__", ""), args[0] if args else None
        if isinstance(first, Device):
            if name in ("to", "cpu", "cuda"):
                return getattr(Device, name)(*args, **kwargs)
            if name == "new_tensor":
                _waits.add("copy to the device")
                return to_device(torch.tensor(*_read(args[1:]), **{"dtype": first.dtype, **kwargs}))
        elif isinstance(first, Tensor):
            if name == "pin_memory":
                pinned = first.clone()
                pinned.pinned = True  # type: ignore[attr-defined]
                return pinned
            if name in ("to", "cuda"):
                place, dtype, waits = _destination(args[1:], kwargs)
                if name == "cuda" or (place is not None and place.type == "cuda"):
                    if first.numel() > 1 and (waits or not getattr(first, "pinned", False)):
                        _waits.add("copy to the device")
                    return to_device(first if dtype is None else first.to(dtype))
        if name in ("tensor", "as_tensor"):
            args = _read(args)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            return tree_map_only(Tensor, to_device, function(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)


def _read(value: Any) -> Any:
    """A list of numbers without those that the device holds."""

    def number(tensor: Device) -> Any:
        _waits.add("number of the device")
        return tensor.held.tolist()

    return tree_map_only(Device, number, value)


def _replace(module: nn.Module, function: Callable[[Tensor], Tensor]) -> nn.Module:
    """Replace a module's tensors in place by a function of them; tied parameters stay tied."""
    made: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
                child._parameters[name] = made[id(parameter)]
        for name, buffer in list(child._buffers.items()):
            if buffer is not None:
                child._buffers[name] = function(buffer.detach())
    return module


def _moved(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, Device) else Device(tensor.clone())


@contextlib.contextmanager
def simulated_cuda() -> Iterator[Waits]:
    """Pretend that this machine has one GPU; yields the waits that were counted since."""
    _waits.clear()
    mode, backward = _Placing(), torch.autograd._engine_run_backward
    module_to, module_apply = nn.Module.to, nn.Module._apply

    def _run_backward(*args: Any, **kwargs: Any) -> Any:
        with mode:  # which is off in its own handler, while code in backwards makes tensors, too
            return backward(*args, **kwargs)

    def move(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        place, _, _ = _destination(args, kwargs)
        on_cuda = place is not None and place.type == "cuda"
        return _replace(self, _moved) if on_cuda else module_to(self, *args, **kwargs)

    def apply(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        there = any(isinstance(parameter, Device) for parameter in self.parameters())
        return _replace(self, function) if there else module_apply(self, function, recurse)

    pretended: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda *_: None,
        "get_device_capability": lambda *_: (7, 5),  # the plain route: kernels cannot be simulated
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "max_memory_allocated": lambda *_: 0,
    }
    with contextlib.ExitStack() as stack:
        for name, function in pretended.items():
            stack.enter_context(patch.object(torch.cuda, name, function))
        # wrapped tensors are no inference tensors
        stack.enter_context(patch.object(torch._C, "_InferenceMode", lambda mode: torch.no_grad()))
        stack.enter_context(patch("torch.autograd._engine_run_backward", _run_backward))
        stack.enter_context(patch.object(nn.Module, "to", move))
        stack.enter_context(patch.object(nn.Module, "_apply", apply))
        stack.enter_context(mode)
        yield _waits
