"""The learning rate as a function of the job's step, independent of the trainer and of the order of batches.

A torch scheduler has to be stepped, but the batches of a job are processed in any order, on any trainer, some of them twice.
The user's schedulers are therefore not stepped. Copies of them work on stand-ins for the parameter groups, and are stepped to
the required step; a scheduler that can compute its value at any step is set to it directly. The script's own calls of
``scheduler.step()`` are only checked: a call is refused unless the job makes the same step. Options that no scheduler changes
stay as the script sets them.

``ReduceLROnPlateau`` is not a function of the step but of all metrics. The script steps it, with a score that all trainers
have from ``job.evaluate``; a trainer that joins later receives the earlier metrics.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer, lr_scheduler

from shoal.trainer.refusal import Refusal, Refused

__all__ = ["LearningRateSchedule"]

CHECKPOINT_STEPS = 1000
"""Interval of the copies from which the schedulers can go back. Steps or epochs, as the schedulers count."""

_ANYWHERE = (lr_scheduler.LambdaLR, lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)
"""Schedulers whose ``get_lr`` reads only ``last_epoch``."""

_TIMES = ("params", "initial_lr")


class LearningRateSchedule:
    """The options of the parameter groups at each optimizer step, as set by the schedulers.

    Args:
        schedulers: The user's schedulers; without any the options stay as the script sets them.
        groups: The live parameter groups of all optimizers.
        interval: Unit of the schedulers: ``step`` or ``epoch``.
        steps: Number of optimizer steps in an epoch.
        epochs: Number of epochs of the job.
        place: Returns the position of the script for a scheduler's optimizer: ``stepped`` (in a batch in which it has
            stepped), ``open`` (in a batch in which it has not), ``accumulating`` (the step of this batch does not count),
            ``behind`` (after a loop over the loader) or ``outside``; and a key, unique for each batch and each loop.
        measured: Records the metric that the script passes to a ReduceLROnPlateau; returns whether it counts (False if this
            trainer has already received it).

    Raises:
        Refusal: A scheduler is not supported, belongs to another optimizer, or ends before the job; or the optimizer has a
            scheduler that was not passed to ``prepare``.
    """

    def __init__(
        self,
        schedulers: Sequence[Any],
        groups: Sequence[dict[str, Any]],
        *,
        interval: str,
        steps: int,
        epochs: int,
        place: Callable[[Optimizer], tuple[str, Any]],
        measured: Callable[[float], bool],
    ) -> None:
        if interval not in {"step", "epoch"}:
            raise Refusal(f"scheduler_interval={interval!r}; write 'step' or 'epoch'")
        for scheduler in schedulers:
            _check(scheduler, groups, needed=epochs if interval == "epoch" else epochs * steps)
        plateaus = [s for s in schedulers if isinstance(s, lr_scheduler.ReduceLROnPlateau)]
        _check_plateaus(plateaus, schedulers)
        self._plateau: Any = plateaus[0] if plateaus else None
        self._measured = measured
        followed = schedulers
        schedulers = [s for s in schedulers if s is not self._plateau]
        self._interval, self._steps, self._place = interval, steps, place
        self._live = groups
        self._given = list(schedulers)
        self._groups = [
            [g for g in groups if any(g is own for own in scheduler.optimizer.param_groups)] for scheduler in schedulers
        ]
        driven = {id(g) for s in followed for g in groups if any(g is own for own in s.optimizer.param_groups)}
        self._free = [g for g in groups if id(g) not in driven]
        self._driven = [g for g in groups if id(g) in driven]
        self._at = self._shown = 0
        self._checkpoints: dict[int, list[Any]] = {}
        self._stand_ins: list[Any] = []
        if schedulers:
            self._stand_ins = _frozen(schedulers)
            self._checkpoints[0] = _frozen(self._stand_ins)
        self._given_last = {id(g): {n: _copied(v) for n, v in g.items() if n not in _TIMES} for g in self._driven}
        self._changing = {id(g): {"lr"} for g in self._driven}
        self._called_at: dict[int, Any] = {}
        self._called_in_interval: dict[int, bool] = {}
        for scheduler in followed:
            _drive(scheduler, self._called)
        self.check()

    def check(self) -> None:
        """Check that only the given schedulers set the options that they change.

        Raises:
            Refusal: A scheduler that was not passed to ``prepare`` changes a parameter group, or the script sets an option
                that a given scheduler sets.
        """
        if any("initial_lr" in group for group in self._free):
            raise Refusal(
                "a learning rate scheduler works on the optimizer, but prepare did not get it: it would count the batches "
                "of one trainer, not the steps of the job. Make it before prepare and give it: prepare(..., "
                "scheduler=scheduler), with scheduler_interval='epoch' if it is stepped once an epoch"
            )
        for group in self._driven:
            for name in sorted(self._changing[id(group)]):
                if group.get(name) != self._given_last[id(group)].get(name):
                    raise Refusal(_set_by_two(name))

    def apply(self, step: int) -> None:
        """Set the live groups' options to their values at an optimizer step of the job.

        Raises:
            Refused: The script has set an option that a scheduler changes.
        """
        self._shown = step
        if not self._given:
            return
        self._go_to(step // self._steps if self._interval == "epoch" else step)
        for number in range(len(self._given)):
            self._show(number)

    def _show(self, number: int) -> None:
        """Copy the options that a scheduler has changed since the last call to the live groups."""
        given, stand_in, groups = self._given[number], self._stand_ins[number], self._groups[number]
        for live, own in zip(groups, stand_in.optimizer.param_groups, strict=True):
            last, changing = self._given_last[id(live)], self._changing[id(live)]
            for name, value in own.items():
                if name in last and value != last[name]:
                    if live.get(name) != last[name]:
                        raise Refused(_set_by_two(name))
                    last[name], live[name] = _copied(value), _copied(value)
                    changing.add(name)
        given.last_epoch = self._at
        given._last_lr = [group["lr"] for group in groups]  # noqa: SLF001 - get_last_lr returns it

    def follow(self, metric: float) -> None:
        """Step ReduceLROnPlateau with a metric."""
        if self._plateau is not None:
            plain: Any = type(self._plateau).__mro__[2]
            plain.step(self._plateau, metric)
            for group in self._plateau.optimizer.param_groups:
                self._given_last[id(group)]["lr"] = _copied(group["lr"])

    def _called(self, scheduler: Any, args: Sequence[Any]) -> None:
        """Handle the script's call of ``scheduler.step()``: check its position, and set the options of the next step."""
        if scheduler is self._plateau:
            if not args:
                raise Refused("ReduceLROnPlateau.step() needs the metric: a number that job.evaluate gave")
            if self._measured(float(args[0])):
                self.follow(float(args[0]))
            return
        name, (place, key) = type(scheduler).__name__, self._place(scheduler.optimizer)
        if args:
            raise Refused(f"{name}.step({args[0]!r}): the job steps the scheduler by its own count; call step() alone")
        if self._interval == "epoch" and place != "behind":
            raise Refused(
                f"{name}.step() is called before or in the loop over the batches, but prepare got "
                "scheduler_interval='epoch'; leave that out, or call it once an epoch, behind the loop"
            )
        if self._interval == "step" and place in {"behind", "outside"}:
            raise Refused(
                f"{name}.step() is called once an epoch, but the job steps it with every optimizer step; give prepare "
                "scheduler_interval='epoch'"
            )
        if self._called_at.get(id(scheduler)) == key:
            raise Refused(
                f"{name}.step() is called a second time for one {self._interval}, but the job steps it once; make one that "
                "does in one step what this does in two"
            )
        self._called_at[id(scheduler)] = key
        if place in {"open", "accumulating"}:
            return  # no step counts here: an overflow of GradScaler, or a call too early, which the step refuses
        self._go_to(self._shown // self._steps + 1 if self._interval == "epoch" else self._shown + 1)
        self._show(next(number for number, given in enumerate(self._given) if given is scheduler))

    def ended(self, interval: str, key: Any, stepped: Callable[[Optimizer], bool]) -> None:
        """Check at the end of a batch or an epoch that the script steps each scheduler every time or never.

        Args:
            interval: What ended: ``step`` or ``epoch``.
            key: The key that ``place`` returned in it.
            stepped: Returns whether an optimizer has stepped.

        Raises:
            Refused: The script steps a scheduler in one and not in another.
        """
        if interval != self._interval:
            return
        for scheduler in self._given:
            called = self._called_at.get(id(scheduler)) == key
            if stepped(scheduler.optimizer) and self._called_in_interval.setdefault(id(scheduler), called) != called:
                raise Refused(
                    f"{type(scheduler).__name__}.step() is called for one {interval} and not for another, but the job steps "
                    "it for each; say that in the scheduler: LambdaLR takes any function of the count, SequentialLR runs "
                    "one after another"
                )

    def _go_to(self, value: int) -> None:
        if value < self._at:
            start = max(at for at in self._checkpoints if at <= value)
            self._stand_ins = _frozen(self._checkpoints[start])
            self._at = start
        if value > self._at + CHECKPOINT_STEPS and all(isinstance(s, _ANYWHERE) for s in self._stand_ins):
            for stand_in in self._stand_ins:
                stand_in.last_epoch = value - 1
            self._at = value - 1
        with warnings.catch_warnings():
            # torch warns if a scheduler is stepped before its optimizer; the stand-in is never stepped.
            warnings.simplefilter("ignore")
            while self._at < value:
                for stand_in in self._stand_ins:
                    stand_in.step()
                self._at += 1
                if self._at % CHECKPOINT_STEPS == 0:
                    self._checkpoints.setdefault(self._at, _frozen(self._stand_ins))


def _set_by_two(name: str) -> str:
    return (
        f"group[{name!r}] of an optimizer is set by the script, or by a scheduler made after prepare, beside the scheduler that "
        "prepare got and that sets it; make one of them and give it to prepare: LambdaLR takes any function of the step, "
        "SequentialLR runs a warmup and then another one"
    )


class _Driven:
    """Precedes the scheduler's own class in the method resolution order: the job steps the scheduler."""

    def step(self, *args: Any, **named: Any) -> None:
        """Check that the job steps the scheduler at this position, and set the options of the next step."""
        _callers[self](self, [*args, *named.values()])


_callers: WeakKeyDictionary[Any, Callable[[Any, Sequence[Any]], None]] = WeakKeyDictionary()
"""Scheduler -> callback. Not an attribute of the scheduler, because its attributes are its ``state_dict``."""
_kinds: dict[type, type] = {}


def _drive(scheduler: Any, called: Callable[[Any, Sequence[Any]], None]) -> None:
    kind = type(scheduler)
    if kind not in _kinds:
        _kinds[kind] = type(kind.__name__, (_Driven, kind), {"__module__": kind.__module__})
    scheduler.__class__ = _kinds[kind]
    _callers[scheduler] = called


def _check(scheduler: Any, groups: Sequence[dict[str, Any]], *, needed: int) -> None:
    if not isinstance(scheduler, lr_scheduler.LRScheduler):
        raise Refusal(
            f"scheduler is a {type(scheduler).__name__}; give prepare one of torch.optim.lr_scheduler, or a list"
        )
    if not all(any(g is own for g in groups) for own in scheduler.optimizer.param_groups):
        raise Refusal("the scheduler belongs to another optimizer than prepare got; make it from that one")
    total = getattr(scheduler, "total_steps", None)
    if isinstance(scheduler, lr_scheduler.OneCycleLR) and total is not None and total < needed:
        raise Refusal(
            f"OneCycleLR ends after total_steps={total} steps, but the job makes {needed}: epochs * ceil(batches / "
            "accumulate) of them with scheduler_interval='step', one an epoch with 'epoch'"
        )


def _check_plateaus(plateaus: Sequence[Any], schedulers: Sequence[Any]) -> None:
    """Refuse more than one ReduceLROnPlateau, or one together with another scheduler of the same optimizer."""
    if not plateaus:
        return
    if len(plateaus) > 1:
        raise Refusal(f"there are {len(plateaus)} ReduceLROnPlateau schedulers; a job follows the metric with one")
    if any(s.optimizer is plateaus[0].optimizer for s in schedulers if s is not plateaus[0]):
        raise Refusal(
            "ReduceLROnPlateau and another scheduler set the learning rate of the same optimizer; give one of them"
        )


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else copy.copy(value)


def _dummy(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer with the same groups and placeholder parameters."""
    groups = [
        {name: _copied(value) for name, value in group.items() if name != "params"} | {"params": [torch.zeros(1)]}
        for group in optimizer.param_groups
    ]
    return torch.optim.SGD(groups, lr=0.1)


def _stand_in(scheduler: Any, optimizer: Optimizer) -> Any:
    """Return a copy of a scheduler (and of nested ones) that works on another optimizer."""
    made = copy.copy(scheduler)
    made.__dict__ = {
        name: copy.copy(value) if isinstance(value, list | dict) else value
        for name, value in scheduler.__dict__.items()
    }
    if isinstance(made, _Driven):
        made.__class__ = type(made).__mro__[2]
    made.optimizer = optimizer
    inner = getattr(scheduler, "_schedulers", None)
    if inner is not None:
        setattr(made, "_schedulers", [_stand_in(one, optimizer) for one in inner])  # noqa: B010 - of SequentialLR
    return made


def _frozen(schedulers: Sequence[Any]) -> list[Any]:
    """Return independent copies of schedulers; the copies for one optimizer share one stand-in for it."""
    dummies: dict[int, Optimizer] = {}
    made = []
    for scheduler in schedulers:
        optimizer = scheduler.optimizer
        dummy = dummies.setdefault(id(optimizer), _dummy(optimizer))
        made.append(_stand_in(scheduler, dummy))
    return made
