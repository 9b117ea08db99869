"""Run a model over batches: precision, memory, devices. Shared by all teachers that run one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from distill.run import device
from distill.run.ahead import ahead
from distill.store.token_batches import padded_tokens, token_batches
from teachers.base import Work
from teachers.execution import Execution

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = dict[str, Any]  # tensors, and plain numbers that go with them
T = TypeVar("T")


@torch.inference_mode()
def run_batches(
    logits: Callable[[Inputs], torch.Tensor],
    inputs: Callable[[np.ndarray], dict[str, Any]],
    lengths: np.ndarray,
    execution: Execution,
    work: Work,
) -> tuple[np.ndarray, Execution]:
    """Score n items of the given lengths; returns float32 [n] and the execution settings at the end. Adds to `work`.

    `inputs` returns a batch's arrays; its `input_ids`, padding included, are what counts as padded tokens. When a batch
    exceeds the GPU's memory, the remaining items are batched again with half its tokens as the budget, which the
    returned settings show. A thread calls `inputs` for the next batch meanwhile, and results stay on the device until
    the end, so a GPU never waits for the host.
    """
    execution.apply_threads()
    results: list[torch.Tensor] = []
    order: list[np.ndarray] = []
    remaining = np.argsort(-lengths, kind="stable")  # longest first, the order in which batches are cut from it
    while len(remaining):
        batches = [remaining[part] for part in token_batches(lengths[remaining], execution.batch_tokens)]
        for batch, arrays in ahead(inputs, batches):
            result = _run_if_it_fits(logits, arrays, execution, required=len(batch) == 1)
            if result is None:
                break
            results.append(result)
            order.append(batch)
            work.tokens += int(lengths[batch].sum())
            work.padded_tokens += arrays["input_ids"].size
            remaining = remaining[len(batch) :]
        if len(remaining):
            device.free_cached_memory()
            budget = min(execution.batch_tokens, padded_tokens(lengths, batch)) // 2
            execution = execution.with_batch_tokens(max(1, budget))
    scores = np.empty(len(lengths), np.float32)
    if order:
        scores[np.concatenate(order)] = torch.cat(results).float().cpu().numpy()
    return scores, execution


def _run_if_it_fits(
    logits: Callable[[Inputs], torch.Tensor], arrays: dict[str, Any], execution: Execution, required: bool
) -> torch.Tensor | None:
    """Logits of a batch; None if it exceeds the memory, unless it is `required` to fit."""
    try:
        return _run(logits, arrays, execution)
    except (RuntimeError, MemoryError) as error:
        if required or not device.ran_out_of_memory(error):
            raise
        return None


def until_it_fits(run: Callable[[Execution], T], execution: Execution) -> tuple[T, Execution]:
    """Call `run`, halving the batch tokens until it fits in GPU memory; returns its result and the final settings."""
    result, tokens = device.until_it_fits(
        lambda tokens: run(execution.with_batch_tokens(tokens)), execution.batch_tokens
    )
    return result, execution.with_batch_tokens(tokens)


def _run(logits: Callable[[Inputs], torch.Tensor], arrays: dict[str, Any], execution: Execution) -> torch.Tensor:
    tensors = {key: torch.from_numpy(each) if isinstance(each, np.ndarray) else each for key, each in arrays.items()}
    if execution.device == "cuda":
        tensors = {
            key: each.pin_memory().to("cuda", non_blocking=True) if isinstance(each, torch.Tensor) else each
            for key, each in tensors.items()
        }
    with execution.autocast():
        return logits(tensors)  # [b]


def body_in_bfloat16(model: PreTrainedModel) -> bool:
    """Store the weights of the model's body in bfloat16, those of its heads in float32; False if it has no body.

    Autocast would cast every weight that is not trained again at every call, and keep the residual stream in float32.
    """
    body = getattr(model, model.base_model_prefix, None)
    if body is None:
        return False
    body.to(torch.bfloat16)
    if getattr(body, "pooler", None) is not None:
        body.pooler.float()
    return True


def heads_in_float32(model: PreTrainedModel, device: str) -> None:
    """Run the pooler and the classification head outside autocast: bfloat16 logits have three digits, and would tie."""
    body = getattr(model, model.base_model_prefix, None)
    heads = [child for child in model.children() if child is not body]
    if body is not None and getattr(body, "pooler", None) is not None:
        heads.append(body.pooler)
    for head in heads:
        head.forward = _without_autocast(head.forward, device)


def _without_autocast(forward: Callable[..., torch.Tensor], device: str) -> Callable[..., torch.Tensor]:
    def wrapped(*args: object, **kwargs: object) -> torch.Tensor:
        floats = [arg.float() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args]
        with torch.autocast(device, enabled=False):
            return forward(*floats, **kwargs)

    return wrapped
