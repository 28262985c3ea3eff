"""A schedule equals the user's scheduler stepped so often, at any steps in any order."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch.optim import lr_scheduler as s

from shoal.trainer.describe import Refusal
from shoal.trainer.schedule import Schedule, steps_per_value

TOTAL = 2600

SCHEDULERS = {
    "LambdaLR": lambda o: s.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: s.MultiplicativeLR(o, lambda step: 0.999),
    "StepLR": lambda o: s.StepLR(o, 100, gamma=0.9),
    "MultiStepLR": lambda o: s.MultiStepLR(o, [7, 40, 1500]),
    "ConstantLR": lambda o: s.ConstantLR(o, factor=0.3, total_iters=12),
    "LinearLR": lambda o: s.LinearLR(o, total_iters=1200),
    "ExponentialLR": lambda o: s.ExponentialLR(o, 0.999),
    "CosineAnnealingLR": lambda o: s.CosineAnnealingLR(o, TOTAL),
    "CosineAnnealingWarmRestarts": lambda o: s.CosineAnnealingWarmRestarts(o, 50, 2),
    "PolynomialLR": lambda o: s.PolynomialLR(o, 2000, power=2.0),
    "CyclicLR": lambda o: s.CyclicLR(o, 0.01, 0.5, step_size_up=70, cycle_momentum=False),
    "CyclicLR with momentum": lambda o: s.CyclicLR(o, 0.01, 0.5, step_size_up=70),
    "OneCycleLR": lambda o: s.OneCycleLR(o, 0.5, total_steps=TOTAL),
    "SequentialLR": lambda o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=30), s.CosineAnnealingLR(o, 2000)], milestones=[30]
    ),
    "ChainedScheduler": lambda o: s.ChainedScheduler([s.ConstantLR(o, 0.1, total_iters=9), s.ExponentialLR(o, 0.999)]),
}


def optimizer():
    groups = [{"params": [torch.zeros(2)], "lr": 0.1}, {"params": [torch.zeros(3)], "lr": 0.4}]
    return torch.optim.SGD(groups, momentum=0.9)


def options(groups):
    return [{name: group[name] for name in ("lr", "momentum", "weight_decay")} for group in groups]


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_step_in_any_order(name):
    make = SCHEDULERS[name]
    plain = optimizer()
    stepped = make(plain)
    expected = [copy.deepcopy(options(plain.param_groups))]
    for _ in range(TOTAL - 1):
        stepped.step()
        expected.append(copy.deepcopy(options(plain.param_groups)))

    live = optimizer()
    scheduler = make(live)
    at_first = scheduler.last_epoch if hasattr(scheduler, "last_epoch") else None
    schedule = Schedule(scheduler, live.param_groups, steps_per_value=1)
    chance = random.Random(5)
    for step in [0, 1, TOTAL - 1, 3, 2, 1001, 999, 1000, *(chance.randrange(TOTAL) for _ in range(30))]:
        schedule.apply(step)
        for found, wanted in zip(options(live.param_groups), expected[step], strict=True):
            assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12), step
    if at_first is not None:
        assert scheduler.last_epoch == at_first


def test_none_leaves_the_options_alone():
    live = optimizer()
    before = options(live.param_groups)
    Schedule(None, live.param_groups, steps_per_value=1).apply(100)
    assert options(live.param_groups) == before


def test_an_epochs_batches_share_a_value():
    live = optimizer()
    schedule = Schedule(s.StepLR(live, 1, gamma=0.5), live.param_groups, steps_per_value=steps_per_value("epoch", 10))
    for step, rate in ((0, 0.1), (9, 0.1), (10, 0.05), (29, 0.025), (5, 0.1)):
        schedule.apply(step)
        assert live.param_groups[0]["lr"] == pytest.approx(rate)


def test_what_is_refused():
    live = optimizer()
    with pytest.raises(Refusal, match="ReduceLROnPlateau follows a metric"):
        Schedule(s.ReduceLROnPlateau(live), live.param_groups, steps_per_value=1)
    with pytest.raises(Refusal, match=r"scheduler is a int; give prepare one of torch\.optim\.lr_scheduler"):
        Schedule(3, live.param_groups, steps_per_value=1)
    with pytest.raises(Refusal, match="belongs to another optimizer"):
        Schedule(s.StepLR(optimizer(), 3), live.param_groups, steps_per_value=1)
    with pytest.raises(Refusal, match="scheduler_interval='day'; write 'step' or 'epoch'"):
        steps_per_value("day", 3)
