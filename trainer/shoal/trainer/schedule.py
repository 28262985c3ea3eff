"""The learning rate as a function of the job's step, whatever trainer runs it, in whatever order.

A scheduler of torch is a thing that is stepped; a job's batches come in any order, on any trainer, some of them twice.
So the user's scheduler is never stepped. A copy of it works on stand-ins for the parameter groups, and is stepped to
where it is wanted; schedulers that know their value at any step are asked for it at once.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from shoal.trainer.describe import Refusal

__all__ = ["Schedule", "steps_per_value"]

CHECKPOINT_STEPS = 1000

_ANYWHERE = (lr_scheduler.LambdaLR, lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)
"""Their ``get_lr`` looks at ``last_epoch`` alone."""

_TIMES = ("params", "initial_lr")


class Schedule:
    """What a scheduler makes of the parameter groups at each step.

    Args:
        scheduler: The user's; None: the options stay as the script sets them.
        groups: The live parameter groups of all optimizers.
        steps_per_value: Batches for each step of the scheduler: 1, or an epoch's.

    Raises:
        Refusal: The scheduler follows a metric.
    """

    def __init__(self, scheduler: Any, groups: Sequence[dict[str, Any]], *, steps_per_value: int) -> None:
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            raise Refusal(
                "ReduceLROnPlateau follows a metric, which every trainer would see otherwise; use a scheduler that is a "
                "function of the step, such as CosineAnnealingLR or OneCycleLR"
            )
        if scheduler is not None and not isinstance(scheduler, lr_scheduler.LRScheduler):
            raise Refusal(f"scheduler is a {type(scheduler).__name__}; give prepare one of torch.optim.lr_scheduler")
        if scheduler is not None and not all(any(g is own for g in groups) for own in scheduler.optimizer.param_groups):
            raise Refusal("the scheduler belongs to another optimizer than prepare got; make it from that one")
        self._steps_per_value = steps_per_value
        self._groups: list[dict[str, Any]] = []
        self._at = 0
        self._checkpoints: dict[int, Any] = {}
        self._scheduler: Any = None
        if scheduler is not None:
            self._groups = [g for g in groups if any(g is own for own in scheduler.optimizer.param_groups)]
            self._scheduler = _stand_in(scheduler, _dummy(scheduler.optimizer))
            self._checkpoints[0] = _frozen(self._scheduler)

    def apply(self, step: int) -> None:
        """Set the live groups' options to their values at a step of the job."""
        if self._scheduler is None:
            return
        self._go_to(step // self._steps_per_value)
        for live, stand_in in zip(self._groups, self._scheduler.optimizer.param_groups, strict=True):
            for name, value in stand_in.items():
                if name not in _TIMES and name in live:
                    live[name] = value

    def _go_to(self, value: int) -> None:
        if value < self._at:
            start = max(at for at in self._checkpoints if at <= value)
            self._scheduler = _thawed(self._checkpoints[start])
            self._at = start
        if value > self._at + CHECKPOINT_STEPS and isinstance(self._scheduler, _ANYWHERE):
            self._scheduler.last_epoch = value - 1
            self._at = value - 1
        with warnings.catch_warnings():
            # torch warns where no optimizer was stepped before its scheduler; here none ever is.
            warnings.simplefilter("ignore")
            while self._at < value:
                self._scheduler.step()
                self._at += 1
                if self._at % CHECKPOINT_STEPS == 0:
                    self._checkpoints.setdefault(self._at, _frozen(self._scheduler))


def steps_per_value(interval: str, batches: int) -> int:
    """Batches for each step of a scheduler that counts steps or epochs.

    Raises:
        Refusal: It counts something else.
    """
    if interval not in {"step", "epoch"}:
        raise Refusal(f"scheduler_interval={interval!r}; write 'step' or 'epoch'")
    return batches if interval == "epoch" else 1


def _dummy(optimizer: Optimizer) -> Optimizer:
    """An optimizer with the same groups over nothing that matters."""
    groups = [
        {name: copy.copy(value) for name, value in group.items() if name != "params"} | {"params": [torch.zeros(1)]}
        for group in optimizer.param_groups
    ]
    return torch.optim.SGD(groups, lr=0.1)


def _stand_in(scheduler: Any, optimizer: Optimizer) -> Any:
    """A copy of a scheduler (and of those inside it) that works on another optimizer."""
    made = copy.copy(scheduler)
    made.__dict__ = {
        name: copy.copy(value) if isinstance(value, list | dict) else value
        for name, value in scheduler.__dict__.items()
    }
    made.optimizer = optimizer
    inner = getattr(scheduler, "_schedulers", None)
    if inner is not None:
        setattr(made, "_schedulers", [_stand_in(one, optimizer) for one in inner])  # noqa: B010 - of SequentialLR
    return made


def _frozen(scheduler: Any) -> Any:
    return _stand_in(scheduler, _dummy(scheduler.optimizer))


_thawed = _frozen
