"""Mistakes: lines that work in plain PyTorch and are refused in a job, in one process and with servers.

Each mistake has a place in the loop (``scripts.Script.slip``) and a fragment of the message that names the object and the fix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from tests.differential.building import TABLES
from tests.differential.spec import Block, Optimizer, Scheduler, Spec

__all__ = ["MISTAKES", "Mistake"]


@dataclass(frozen=True)
class Mistake:
    """One mistake: where it is made, how, and the expected message."""

    place: str
    fragment: str
    """A part of the expected message."""
    act: Callable[[Any], None]
    prepare: Callable[[Spec], Spec] = lambda spec: spec
    """Changes the spec so that the script has what the mistake needs."""

    @property
    def everywhere(self) -> bool:
        """Whether each trainer makes the mistake and gets the same message, whatever its batches."""
        return self.place in {"", "beginning", "prepared", "stepped"} and "is named" not in self.fragment


def _head(s: Any) -> nn.Parameter:
    weight: nn.Parameter = s.built.core.head.weight
    return weight


def _write(s: Any) -> None:
    if s.epoch == 0:
        with torch.no_grad():
            _head(s).add_(0.125)


def _write_data(s: Any) -> None:
    if s.epoch == 0:
        _head(s).data.mul_(0.5)


def _load(s: Any) -> None:
    state = {name: value.detach().clone() for name, value in s.built.core.head.state_dict().items()}
    s.built.core.head.load_state_dict({name: value + 1.0 for name, value in state.items()})


def _replace(s: Any) -> None:
    if s.epoch == 0:
        s.built.core.head = nn.Linear(s.built.core.head.in_features, 1).to(_head(s).dtype)


def _add(s: Any) -> None:
    if s.epoch == 0:
        s.built.core.extra = nn.Linear(2, 2)


def _half(s: Any) -> None:
    s.model.float()


def _two_steps(s: Any) -> None:
    s.optimizers[0].step()


def _break(s: Any) -> None:
    iterator = iter(s.batches)
    s.batch = next(iterator)
    s.loss().backward()
    for optimizer in s.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    iterator.close()
    s.batches = ()


def _second_pass(s: Any) -> None:
    for batch in s.batches:
        s.batch = batch


def _without_backward(s: Any) -> None:
    """Iterate over the data before the training loop, for example to compute statistics."""
    for batch in s.batches:
        s.batch = batch


def _by_hand(s: Any) -> None:
    """Accumulate gradients over two batches in a loop of the script's own."""
    for number, batch in enumerate(s.batches):
        s.batch = batch
        s.loss().backward()
        if number % 2:
            for optimizer in s.optimizers:
                optimizer.step()
                optimizer.zero_grad()
    s.batches = ()


def _set_rate(s: Any) -> None:
    for group in s.optimizers[0].param_groups:
        group["lr"] = 0.007


def _step_before(s: Any) -> None:
    s.built.schedulers[0].step()


def _step_number(s: Any) -> None:
    s.built.schedulers[0].step(3)


def _state(s: Any) -> None:
    s.optimizers[0].load_state_dict({"state": {0: {"step": 1}}, "param_groups": s.optimizers[0].param_groups})


def _optimizer(s: Any, kind: str, **options: Any) -> None:
    dense = [p for o in s.built.optimizers for g in o.param_groups for p in g["params"]]
    s.built.optimizers[:] = [getattr(torch.optim, kind)(dense, **options)]


class _Own(torch.optim.SGD):
    """A custom optimizer class."""


def _own_optimizer(s: Any) -> None:
    dense = [p for o in s.built.optimizers for g in o.param_groups for p in g["params"]]
    s.built.optimizers[:] = [_Own(dense, lr=0.1)]


def _old_state(s: Any) -> None:
    first = torch.optim.Adam(s.built.core.parameters(), lr=0.01)
    for parameter in s.built.core.parameters():
        parameter.grad = torch.zeros_like(parameter)
    first.step()
    first.zero_grad()
    s.built.optimizers[:] = [first]


def _foreign(s: Any) -> None:
    s.built.optimizers[:] = [torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)]


def _overlap(s: Any) -> None:
    s.built.optimizers.append(torch.optim.SGD([_head(s)], lr=0.1))


class _Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(range(3))


class _OwnLoader(DataLoader):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter([])


def _loader(s: Any, make: Callable[[Any], Any]) -> None:
    s.built.loader = make(s.built.loader.dataset)


def _second_plateau(s: Any) -> None:
    s.built.schedulers = [lr_scheduler.ReduceLROnPlateau(s.built.optimizers[0]) for _ in range(2)]


def _step_once(s: Any) -> None:
    if s.epoch == 0:
        s.built.schedulers[0].step()


def _other_scheduler(s: Any) -> None:
    s.built.schedulers = [lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), 2)]


def _late_scheduler(s: Any) -> None:
    lr_scheduler.StepLR(s.optimizers[0], 2)


def _whole_table(s: Any) -> None:
    float(s.built.core.blocks[0].inner.weight.sum())


def _shape(s: Any) -> None:
    s.built.core.blocks[0].mean = torch.zeros(7)


def _no_buffer(s: Any) -> None:
    if s.epoch == 0:
        del s.built.core.blocks[0].mean


def _rerun(s: Any) -> None:
    s.loss()


def _members(s: Any) -> None:
    if s.epoch == 0:
        s.optimizers[0].param_groups[0]["params"].pop()


def _refused_options(**changes: Any) -> Callable[[Any], None]:
    def act(s: Any) -> None:
        s.host.prepare(s.built.model, s.built.optimizers, s.built.loader, **changes)

    return act


def _scheduled(spec: Spec) -> Spec:
    return replace(
        spec,
        schedulers=(Scheduler("step"),),
        interval="step",
        script_schedules=True,
        optimizers=(replace(spec.optimizers[0], changes=()), *spec.optimizers[1:]),
    )


def _by_epoch(spec: Spec) -> Spec:
    return replace(_scheduled(spec), interval="epoch", script_schedules=False)


def _now_and_then(spec: Spec) -> Spec:
    return replace(_scheduled(spec), script_schedules=False)


def _plateau(spec: Spec) -> Spec:
    return replace(_scheduled(spec), schedulers=(Scheduler("plateau"),), evaluations=1)


def _one_optimizer(spec: Spec) -> Spec:
    return replace(spec, blocks=(Block("linear"),), optimizers=spec.optimizers[:1], sparse_inside=False)


def _two_optimizers(spec: Spec) -> Spec:
    plain = Optimizer("SGD", (("lr", 0.05),))
    return replace(spec, blocks=(Block("linear"), Block("linear")), optimizers=(plain, plain), sparse_inside=False)


def _with(kind: str) -> Callable[[Spec], Spec]:
    def prepare(spec: Spec) -> Spec:
        return replace(
            spec, blocks=(Block(kind),), optimizers=spec.optimizers[:1], sparse=Optimizer("SGD"), sparse_inside=False
        )

    return prepare


def _table_momentum(spec: Spec) -> Spec:
    return replace(_with("table")(spec), sparse=Optimizer("SGD", (("momentum", 0.9),)))


def _table_adam(spec: Spec) -> Spec:
    return replace(_with("table")(spec), sparse=Optimizer("Adam", ()))


def _averaged_table(spec: Spec) -> Spec:
    return replace(_with("table")(spec), ema=0.9)


def _no_tables(spec: Spec) -> Spec:
    """Remove the sparse tables, because a table is refused with a message of its own."""
    return replace(spec, blocks=tuple(block for block in spec.blocks if block.kind not in TABLES))


def _nothing(_: Any) -> None: ...


def _max_norm(s: Any) -> None:
    s.built.core.blocks[0].inner.max_norm = 1.0


MISTAKES = {
    "write a parameter in the loop": Mistake("batch", "head.weight was written by the script after prepare", _write),
    "write a parameter behind the loop": Mistake(
        "epoch ends", "head.weight was written by the script after prepare", _write
    ),
    "write a parameter past autograd": Mistake(
        "epoch ends", "head.weight was written by the script after prepare", _write_data
    ),
    "load a state after prepare": Mistake("prepared", "was written by the script after prepare", _load),
    "replace a module": Mistake("epoch ends", "head.weight was replaced or removed after prepare", _replace),
    "add a module": Mistake("epoch ends", "was added to the model", _add),
    "change the dtype": Mistake("prepared", "was moved or got another dtype after prepare", _half, _no_tables),
    "two steps for a batch": Mistake("stepped", "called a second time for one batch", _two_steps, _one_optimizer),
    "break": Mistake("epoch begins", "call job.stop('why') before the break", _break),
    "a second pass": Mistake("epoch ends", "iterated a second time in one epoch", _second_pass),
    "a pass without training": Mistake("epoch begins", "without a backward pass", _without_backward),
    "accumulation by hand": Mistake("epoch begins", "prepare(..., accumulate=N)", _by_hand),
    "scheduler not given": Mistake("", "but prepare did not get it", _nothing, _scheduled),
    "a scheduler made later": Mistake("prepared", "but prepare did not get it", _late_scheduler),
    "a rate beside the scheduler": Mistake("batch", "group['lr'] of an optimizer is set", _set_rate, _scheduled),
    "scheduler before optimizer": Mistake("batch", "called before optimizer.step()", _step_before, _scheduled),
    "scheduler with a number": Mistake("batch ends", "call step() alone", _step_number, _scheduled),
    "scheduler once an epoch": Mistake(
        "epoch ends", "give prepare scheduler_interval='epoch'", _step_before, _scheduled
    ),
    "scheduler at each batch": Mistake("batch ends", "prepare got scheduler_interval='epoch'", _step_before, _by_epoch),
    "two plateaus": Mistake("beginning", "ReduceLROnPlateau", _second_plateau),
    "plateau without a metric": Mistake("epoch ends", "needs the metric", _step_before, _plateau),
    "scheduler twice": Mistake("batch ends", "called a second time for one step", _step_before, _scheduled),
    "scheduler in some batches": Mistake("batch ends", "for one step and not for another", _step_once, _now_and_then),
    "scheduler in some epochs": Mistake("epoch ends", "for one epoch and not for another", _step_once, _by_epoch),
    "another's scheduler": Mistake("beginning", "belongs to another optimizer", _other_scheduler),
    "add_param_group": Mistake(
        "prepared",
        "optimizer.add_param_group after prepare",
        lambda s: s.optimizers[0].add_param_group({"params": [nn.Parameter(torch.zeros(1))]}),
    ),
    "take a parameter from a group": Mistake("epoch ends", "param_groups were changed after prepare", _members),
    "optimizer.state_dict": Mistake("epoch ends", "optimizer.state_dict()", lambda s: s.optimizers[0].state_dict()),
    "load an optimizer's state": Mistake("prepared", "optimizer.load_state_dict after prepare", _state),
    "prepare twice": Mistake(
        "prepared",
        "prepare is called a second time",
        lambda s: s.host.prepare(s.built.model, s.built.optimizers, s.built.loader),
    ),
    "epochs twice": Mistake("epoch begins", "job.epochs() is called a second time", lambda s: s.host.epochs()),
    "step outside of the loop": Mistake("epoch ends", "outside of the loop over the loader", _two_steps),
    "step before the epochs": Mistake("prepared", "optimizer.step() outside of", _two_steps),
    "evaluate before prepare": Mistake(
        "beginning", "job.evaluate before job.prepare", lambda s: s.host.evaluate(lambda _: 0.0)
    ),
    "save before prepare": Mistake("beginning", "job.save before job.prepare", lambda s: s.host.save("x.safetensors")),
    "epochs before prepare": Mistake("beginning", "job.epochs() before job.prepare", lambda s: s.host.epochs()),
    "set an attribute of the loader": Mistake(
        "prepared", "set it on the DataLoader before", lambda s: setattr(s.batches, "timeout", 3)
    ),
    "LBFGS": Mistake(
        "beginning", "LBFGS cannot run on parameter servers", lambda s: _optimizer(s, "LBFGS"), _one_optimizer
    ),
    "ASGD": Mistake(
        "beginning", "ASGD cannot run on parameter servers", lambda s: _optimizer(s, "ASGD"), _one_optimizer
    ),
    "capturable": Mistake(
        "beginning", "set capturable=False", lambda s: _optimizer(s, "Adamax", capturable=True), _one_optimizer
    ),
    "an optimizer of its own": Mistake(
        "beginning", "not one of torch.optim's own classes", _own_optimizer, _one_optimizer
    ),
    "an optimizer with a state": Mistake("beginning", "has a state already", _old_state, _one_optimizer),
    "a foreign parameter": Mistake("beginning", "that the model does not have", _foreign),
    "a parameter in two optimizers": Mistake("beginning", "is in two parameter groups", _overlap),
    "a stream": Mistake("beginning", "map-style", lambda s: _loader(s, lambda _: DataLoader(_Stream(), batch_size=2))),
    "a loader of its own": Mistake(
        "beginning",
        "a DataLoader with an __iter__ of its own",
        lambda s: _loader(s, lambda d: _OwnLoader(d, batch_size=2)),
    ),
    "samples without batches": Mistake(
        "beginning", "batch_size=None", lambda s: _loader(s, lambda d: DataLoader(d, batch_size=None))
    ),
    "a distributed sampler": Mistake(
        "beginning",
        "DistributedSampler",
        lambda s: _loader(
            s, lambda d: DataLoader(d, batch_size=2, sampler=DistributedSampler(d, num_replicas=2, rank=0))
        ),
    ),
    "wrapped in DataParallel": Mistake(
        "beginning",
        "give prepare the plain module",
        lambda s: setattr(s.built, "model", nn.DataParallel(s.built.model)),
    ),
    "an interval that is none": Mistake(
        "beginning", "write 'step' or 'epoch'", _refused_options(scheduler_interval="batch")
    ),
    "accumulate nothing": Mistake("beginning", "accumulate=0", _refused_options(accumulate=0)),
    "a decay of one": Mistake("beginning", "ema=1.0", _refused_options(ema=1.0)),
    "clamp what is not there": Mistake(
        "beginning", "no parameter is named 'nose'", _refused_options(clamp={"nose": (0.0, 1.0)})
    ),
    "tasks that cut accumulations": Mistake(
        "beginning", "multiple of accumulate=2", _refused_options(accumulate=2, task_batches=3)
    ),
    "a table with momentum": Mistake("", "set momentum=0 for the embedding's group", _nothing, _table_momentum),
    "a table with Adam": Mistake("", "cannot train an embedding with sparse=True", _nothing, _table_adam),
    "an averaged table": Mistake("", "cannot average the sparse table", _nothing, _averaged_table),
    "a table with a norm": Mistake("beginning", "has max_norm", _max_norm, _with("table")),
    "a whole table": Mistake("batch", "is used as a whole by sum", _whole_table, _with("table")),
    "a buffer of another shape": Mistake("batch ends", "blocks.0.mean is", _shape, _with("buffer assigned")),
    "a buffer removed": Mistake("epoch ends", "blocks.0.mean was removed", _no_buffer, _with("buffer in place")),
    "evaluate between two steps": Mistake(
        "stepped", "comes after one optimizer's step", lambda s: s.evaluate(), _two_optimizers
    ),
    "save between two steps": Mistake(
        "stepped",
        "comes after one optimizer's step",
        lambda s: s.host.save(s.folder / "between.safetensors"),
        _two_optimizers,
    ),
    "run between two steps": Mistake("stepped", "comes after one optimizer's step", _rerun, _two_optimizers),
}
