"""Checks of ``prepare`` before it describes a script: refuses models and optimizers that are not supported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from shoal.trainer.refusal import Refusal
from shoal.trainer.script.tensor_names import clean_name

__all__ = ["check_model", "check_numbers", "check_optimizers", "check_state"]


def check_optimizers(optimizers: list[Any]) -> None:
    """Check that all objects are torch optimizers.

    Raises:
        Refusal: One is not.
    """
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise Refusal(f"prepare got a {type(one).__name__} as optimizer; give it one of torch.optim, or a list")


def check_model(model: nn.Module) -> None:
    """Check that a model is not wrapped, has values, and does not write its own weights.

    Raises:
        Refusal: It does not pass; the message has the name and the fix.
    """
    if not isinstance(model, nn.Module):
        raise Refusal(
            f"prepare got a {type(model).__name__} as model; give it one nn.Module, several in an nn.ModuleDict"
        )
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise Refusal(f"the model is wrapped in {type(model).__name__}; give prepare the plain module (model.module)")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise Refusal(f"parameter {name} is not initialised yet (a lazy module); run one forward pass first")
        if tensor.is_meta:
            raise Refusal(f"{name} is on the meta device and has no values; call model.to_empty(...) and initialise it")
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise Refusal(
                f"{clean_name(name)} has max_norm, by which every forward pass writes rows of its weight: the parameter "
                "servers hold that; leave max_norm out there and give prepare max_norm={...}, by which every row is "
                "limited after each step"
            )


def check_numbers(accumulate: int, ema: float) -> None:
    """Check that ``accumulate`` and ``ema`` are within their bounds.

    Raises:
        Refusal: One is not.
    """
    if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
        raise Refusal(f"accumulate={accumulate!r}; it must be a whole number of at least 1")
    if not isinstance(ema, int | float) or isinstance(ema, bool) or not 0 <= ema < 1:
        raise Refusal(f"ema={ema!r}; it must be a decay from 0 (none) to below 1, such as 0.999")


def check_state(optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    """Return all parameter groups; refuse an optimizer with state, as the servers could not load it.

    Raises:
        Refusal: An optimizer has state.
    """
    for optimizer in optimizers:
        for state in optimizer.state.values():
            if state and ("step" not in state or float(state["step"]) > 0):
                raise Refusal(
                    f"the {type(optimizer).__name__} has a state already (a checkpoint was loaded into it, or it made "
                    "steps before prepare), which the parameter servers would begin without; give prepare a new "
                    "optimizer. A job resumes from its own snapshots, with the optimizer's state"
                )
    return [group for optimizer in optimizers for group in optimizer.param_groups]
