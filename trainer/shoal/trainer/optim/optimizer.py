"""The script's optimizers in a job: the same objects, whose ``step`` the job executes.

An optimizer keeps its identity, its parameter groups and its class (``isinstance`` holds), so references in the script or a
library work unchanged: schedulers, clipping, GradScaler, a trainer class with ``self.optimizer``. Only its methods change: the
class is replaced by a subclass of it, as in torch's lazy modules, and ``step`` calls a ``Stepper``. With a copy or a proxy
the script could still call the original, whose steps would be lost without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol, cast

import torch
import torch.optim.optimizer as torch_optimizer
from torch import nn
from torch.optim import Optimizer

from shoal.trainer.refusal import Refused

__all__ = [
    "Stepper",
    "closed_over",
    "is_shared",
    "plain_step",
    "run_post_hooks",
    "run_pre_hooks",
    "share",
    "zero_together",
]


class Stepper(Protocol):
    """Executes the steps of a job's optimizers."""

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
        """Take a step; return the closure's result."""
        ...

    def closes(self) -> bool:
        """Return whether the step of the open batch counts: only for the last batch of an accumulation."""
        ...

    def may_clear(self, optimizer: Optimizer) -> bool:
        """Return whether gradients may be cleared now: not within an accumulation."""
        ...

    def scaled(self, optimizer: Optimizer) -> None:
        """Note that a GradScaler executes the step and may skip it; gradients cleared afterwards are the step's."""
        ...


class _Shared:
    """Precedes the optimizer's own class in the method resolution order."""

    _shoal_stepper: Stepper

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the current gradients and options; afterwards the parameters are the job's newest."""
        return self._shoal_stepper.step(cast("Optimizer", self), closure)

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - torch's signature
        """Clear the gradients, except within an accumulation."""
        if self._shoal_stepper.may_clear(cast("Optimizer", self)):
            super().zero_grad(set_to_none)  # type: ignore[misc]

    @property
    def closes(self) -> bool:
        """Whether the step of this batch counts: True only for the last batch of an accumulation.

        Put all code that a plain loop runs once per step (clipping, a GradScaler's ``unscale_``, ``step`` and ``update``)
        under ``if optimizer.closes:``.
        """
        return self._shoal_stepper.closes()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """False, which GradScaler reads in its ``step``: it then checks for infinite gradients itself, and skips the step.

        Raises:
            Refused: It is read within an accumulation, where ``update`` could change the scale of a partial gradient.
        """
        if not self._shoal_stepper.closes():
            raise Refused(
                "with accumulate, put the GradScaler's unscale_, step and update behind `if optimizer.closes:`"
            )
        self._shoal_stepper.scaled(cast("Optimizer", self))
        return False

    def state_dict(self) -> dict[str, Any]:
        """Refuse the call, as the state is on the parameter servers.

        Raises:
            Refused: Always.
        """
        raise Refused(
            "optimizer.state_dict(): the optimizer's state is on the parameter servers and in their snapshots, from which "
            "the job resumes by itself; leave it out of what the script saves"
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the options (such as the learning rate) of saved parameter groups.

        Args:
            state_dict: A state dict without state.

        Raises:
            Refused: It contains state, or its parameter groups differ from the optimizer's.
        """
        if state_dict.get("state"):
            raise Refused(
                "optimizer.load_state_dict after prepare: the optimizer's state is on the parameter servers, and the job "
                "resumes from their snapshots; leave it out, or give only the options: "
                "{'state': {}, 'param_groups': ...}"
            )
        mine, theirs = cast("Optimizer", self).param_groups, state_dict["param_groups"]
        if [len(g["params"]) for g in mine] != [len(g["params"]) for g in theirs]:
            raise Refused("optimizer.load_state_dict: its parameter groups are others than this optimizer's")
        for group, given in zip(mine, theirs, strict=True):
            group.update({name: value for name, value in given.items() if name in group and name != "params"})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse the call, as the servers have the groups that were passed to ``prepare``.

        Raises:
            Refused: Always.
        """
        del param_group
        raise Refused(
            "optimizer.add_param_group after prepare: the parameter servers hold the parameters that the optimizer had at "
            "prepare; give the optimizer all groups before, freeze a group by requires_grad_(False), and unfreeze it in "
            "the loop"
        )


_classes: dict[type[Optimizer], type[Optimizer]] = {}


def share(optimizer: Optimizer, stepper: Stepper) -> None:
    """Execute this optimizer's steps with a stepper from now on."""
    kind = type(optimizer)
    if kind not in _classes:
        _classes[kind] = cast("type[Optimizer]", type(kind.__name__, (_Shared, kind), {"__module__": kind.__module__}))
    # A scheduler created before wraps `step` on the instance, to count its calls, which would bypass the class.
    optimizer.__dict__.pop("step", None)
    optimizer.__dict__.pop("_step_supports_amp_scaling", None)
    optimizer.__class__ = _classes[kind]
    cast("Any", optimizer)._shoal_stepper = stepper  # noqa: SLF001 - our own attribute on an object of torch


def is_shared(optimizer: Optimizer) -> bool:
    """Return whether a job executes this optimizer's steps."""
    return isinstance(optimizer, _Shared)


def zero_together(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Make ``model.zero_grad()`` behave like ``optimizer.zero_grad()`` within an accumulation.

    When all optimizers may clear their gradients, it also clears those of parameters in no optimizer, because clipping by
    norm includes them.
    """
    plain = model.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - torch's signature
        steppers = [cast("Any", optimizer)._shoal_stepper for optimizer in optimizers]  # noqa: SLF001 - our own
        # Call every stepper, as the job records that the script clears gradients.
        may = [stepper.may_clear(optimizer) for stepper, optimizer in zip(steppers, optimizers, strict=True)]
        if all(may):
            plain(set_to_none)
        else:
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none)

    model.zero_grad = zero_grad  # type: ignore[method-assign]


def closed_over(closure: Callable[[], Any] | None) -> Any:
    """Call a step's closure with gradients enabled and return its result; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def plain_step(optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
    """Take a step of the optimizer's own class, without hooks."""
    own: Any = type(optimizer).__mro__[2]
    step = own.step.__wrapped__ if getattr(own.step, "hooked", False) else own.step
    return step(optimizer, closure) if closure is not None else step(optimizer)


def run_pre_hooks(optimizer: Optimizer) -> None:
    """Call the hooks that torch calls before a step.

    Raises:
        Refused: A hook returns changed arguments for the step.
    """
    hooks = cast("Any", optimizer)._optimizer_step_pre_hooks  # noqa: SLF001 - torch has no public name for it
    for hook in chain(torch_optimizer._global_optimizer_pre_hooks.values(), hooks.values()):  # noqa: SLF001
        if hook(optimizer, (optimizer,), {}) is not None:
            raise Refused("a step_pre_hook of the optimizer changes the arguments of step, which has none in a job")


def run_post_hooks(optimizer: Optimizer) -> None:
    """Call the hooks that torch calls after a step."""
    hooks = cast("Any", optimizer)._optimizer_step_post_hooks  # noqa: SLF001 - torch has no public name for it
    for hook in chain(hooks.values(), torch_optimizer._global_optimizer_post_hooks.values()):  # noqa: SLF001
        hook(optimizer, (optimizer,), {})
