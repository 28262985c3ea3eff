"""A schedule equals the user's scheduler after the same number of steps, in any order of steps; and its refusals."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch.optim import lr_scheduler as s

from shoal.trainer.optim.schedule import LearningRateSchedule
from shoal.trainer.refusal import Refusal, Refused
from tests.trainer.toy import EPOCHS, STEPS, compare, halves, loader_of, loss_of, model, sgd

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")

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


def scheduled(schedulers, live, *, interval="step", steps=TOTAL, epochs=1, place=lambda _: ("stepped", 0)):
    return LearningRateSchedule(
        schedulers,
        live.param_groups,
        interval=interval,
        steps=steps,
        epochs=epochs,
        place=place,
        measured=lambda _: True,
    )


def options(groups):
    return [{name: group[name] for name in ("lr", "momentum", "weight_decay")} for group in groups]


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
    schedule = scheduled([scheduler], live)
    chance = random.Random(5)
    for step in [0, 1, TOTAL - 1, 3, 2, 1001, 999, 1000, *(chance.randrange(TOTAL) for _ in range(30))]:
        schedule.apply(step)
        schedule.check()
        for found, value in zip(options(live.param_groups), expected[step], strict=True):
            assert found == pytest.approx(value, rel=1e-9, abs=1e-12), step
        assert scheduler.get_last_lr() == [group["lr"] for group in live.param_groups]
        assert scheduler.last_epoch == step


def test_two_schedulers_of_one_optimizer_work_on_what_the_other_made():
    plain = optimizer()
    both = [s.ExponentialLR(plain, 0.9), s.MultiStepLR(plain, [3], gamma=0.1)]
    live = optimizer()
    schedule = scheduled([s.ExponentialLR(live, 0.9), s.MultiStepLR(live, [3], gamma=0.1)], live)
    for step in range(6):
        schedule.apply(step)
        assert options(live.param_groups) == options(plain.param_groups)
        for one in both:
            one.step()


def test_none_leaves_the_options_alone():
    live = optimizer()
    before = options(live.param_groups)
    scheduled([], live).apply(100)
    assert options(live.param_groups) == before


def test_options_that_no_scheduler_changes_keep_the_scripts_values():
    live = optimizer()
    schedule = scheduled([s.StepLR(live, 1, gamma=0.5)], live)
    live.param_groups[0]["weight_decay"] = 0.3
    for step in (0, 3, 1):
        schedule.apply(step)
        schedule.check()
    assert [group["weight_decay"] for group in live.param_groups] == [0.3, 0]


def test_an_epochs_batches_share_a_value():
    live = optimizer()
    schedule = scheduled([s.StepLR(live, 1, gamma=0.5)], live, interval="epoch", steps=10, epochs=3)
    for step, rate in ((0, 0.1), (9, 0.1), (10, 0.05), (29, 0.025), (5, 0.1)):
        schedule.apply(step)
        assert live.param_groups[0]["lr"] == pytest.approx(rate)


def test_a_learning_rate_that_a_tensor_holds_follows_too():
    live = torch.optim.SGD([torch.zeros(2)], lr=torch.tensor(0.5))
    schedule = scheduled([s.StepLR(live, 1, gamma=0.5)], live)
    found = []
    for step in (2, 0, 1):
        schedule.apply(step)
        schedule.check()
        found.append(float(live.param_groups[0]["lr"]))
    assert found == [0.125, 0.5, 0.25]


def test_what_is_refused():
    live = optimizer()
    with pytest.raises(Refusal, match="there are 2 ReduceLROnPlateau schedulers"):
        scheduled([s.ReduceLROnPlateau(live), s.ReduceLROnPlateau(live)], live)
    with pytest.raises(Refusal, match="ReduceLROnPlateau and another scheduler set the learning rate of the same"):
        scheduled([s.ReduceLROnPlateau(live), s.StepLR(live, 2)], live)
    live = optimizer()
    with pytest.raises(Refusal, match=r"scheduler is a int; give prepare one of torch\.optim\.lr_scheduler"):
        scheduled([3], live)
    with pytest.raises(Refusal, match="belongs to another optimizer"):
        scheduled([s.StepLR(optimizer(), 3)], live)
    with pytest.raises(Refusal, match="scheduler_interval='day'; write 'step' or 'epoch'"):
        scheduled([], live, interval="day")
    with pytest.raises(Refusal, match="OneCycleLR ends after total_steps=20 steps, but the job makes 30"):
        scheduled([s.OneCycleLR(live, 0.1, total_steps=20)], live, steps=10, epochs=3)
    live = optimizer()
    s.StepLR(live, 3)
    with pytest.raises(Refusal, match="a learning rate scheduler works on the optimizer, but prepare did not get it"):
        scheduled([], live)


@pytest.mark.parametrize(
    ("make", "name"), [(lambda o: s.StepLR(o, 3), "lr"), (lambda o: s.CyclicLR(o, 0.01, 0.5), "momentum")]
)
def test_an_option_that_a_scheduler_sets_is_not_the_scripts(make, name):
    live = optimizer()
    schedule = scheduled([make(live)], live)
    schedule.apply(4)
    live.param_groups[1][name] = 0.123
    with pytest.raises(Refusal, match=rf"group\['{name}'\] of an optimizer is set"):
        schedule.check()


# --- scheduler.step() in the script ---


def train_with(stepping, *, rates=True):
    """Return a loop with a scheduler; it calls ``stepping(side, where, number)`` where a script might step the scheduler."""

    def train(side):
        seen = []
        for epoch, batches in side.epochs:
            for number, (x, y) in enumerate(batches):
                side.optimizer.zero_grad()
                loss_of(side.model, x, y).backward()
                side.optimizer.step()
                stepping(side, "step", epoch * STEPS + number)
                if rates:
                    seen.append(round(side.scheduler.get_last_lr()[0], 9))
            stepping(side, "epoch", epoch)
        return seen

    return train


def always(where):
    return lambda side, here, _: side.scheduler.step() if here == where else None


@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "SequentialLR", "CosineAnnealingLR"])
def test_a_scheduler_that_the_script_steps_after_each_step_equals_the_plain_loop(any_job, name):
    compare(any_job, train_with(always("step")), schedule=SCHEDULERS[name])


def test_a_scheduler_that_the_script_steps_after_each_epoch_equals_the_plain_loop(any_job):
    compare(
        any_job,
        train_with(always("epoch")),
        schedule=lambda o: s.StepLR(o, 1, gamma=0.5),
        scheduler_interval="epoch",
    )


def test_a_scheduler_that_the_script_leaves_to_the_job_is_stepped_with_each_step(any_job):
    def stepping(side, where, _):
        if side.job is None and where == "step":
            side.scheduler.step()

    compare(any_job, train_with(stepping, rates=False), schedule=SCHEDULERS["LambdaLR"])


@pytest.mark.parametrize("order", ["each behind its optimizer", "both at the end"])
def test_of_two_optimizers_each_has_the_rates_of_its_own_scheduler(any_job, order):
    def train(side):
        for x, y in side.batches:
            side.model.zero_grad()
            loss_of(side.model, x, y).backward()
            for one, scheduler in zip(side.optimizer, side.scheduler, strict=True):
                one.step()
                if order == "each behind its optimizer":
                    scheduler.step()
            if order == "both at the end":
                for scheduler in side.scheduler:
                    scheduler.step()

    compare(any_job, train, make=halves, schedule=lambda both: [s.ExponentialLR(one, 0.8) for one in both])


SET_BY_SCRIPT = {
    "a rate that changes with each step": ("lr", 0.5, SCHEDULERS["LambdaLR"]),
    "a rate that changes every few steps": ("lr", 0.5, SCHEDULERS["StepLR"]),
    "what the scheduler has not changed yet": ("lr", 0.5, lambda o: s.StepLR(o, STEPS, gamma=0.9)),
    "momentum beside the rate": ("momentum", 0.5, lambda o: s.OneCycleLR(o, 0.5, total_steps=EPOCHS * STEPS)),
}


@pytest.mark.parametrize("what", SET_BY_SCRIPT)
@pytest.mark.parametrize("stepped", [True, False], ids=["stepped by the script", "left to the job"])
@pytest.mark.parametrize("place", ["between epochs", "before its own step", "behind the optimizer's step"])
def test_an_option_that_the_script_and_the_scheduler_set_is_refused(any_job, what, place, stepped):
    name, value, make = SET_BY_SCRIPT[what]
    m = model()
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    scheduler = make(optimizer)
    m, optimizer, batches = any_job.job.prepare(m, optimizer, loader_of(), scheduler=scheduler)

    def change(here, epoch):
        if here == place and epoch == 1:
            for group in optimizer.param_groups:
                group[name] = value

    def train():
        for epoch in any_job.job.epochs():
            change("between epochs", epoch)
            for x, y in batches:
                optimizer.zero_grad()
                loss_of(m, x, y).backward()
                change("before its own step", epoch)
                optimizer.step()
                change("behind the optimizer's step", epoch)
                if stepped:
                    scheduler.step()

    with pytest.raises(Refused, match=rf"group\['{name}'\] of an optimizer is set by the script"):
        train()


def test_weight_decay_that_the_script_changes_in_addition_to_a_scheduler_counts(any_job):
    def stepping(side, where, number):
        if where == "epoch":
            side.optimizer.param_groups[0]["weight_decay"] = 0.2 * (number + 1)
        else:
            side.scheduler.step()

    compare(any_job, train_with(stepping), schedule=SCHEDULERS["LambdaLR"])


def test_a_scheduler_counts_the_steps_of_an_accumulation(any_job):
    def train(side):
        rates = []
        for number, (x, y) in enumerate(side.batches):
            closes = side.closes(number, 2)
            (loss_of(side.model, x, y) / 2).backward()
            if closes:
                side.optimizer.step()
                side.scheduler.step()
                side.optimizer.zero_grad()
                rates.append(round(side.scheduler.get_last_lr()[0], 9))
        return rates

    compare(
        any_job,
        train,
        schedule=lambda o: s.OneCycleLR(o, 0.5, total_steps=EPOCHS * STEPS // 2 + 1),
        accumulate=2,
        task_batches=2,
    )


WRONG = {
    "StepLR.step() is called once an epoch, but the job steps it with every optimizer step; give prepare "
    "scheduler_interval='epoch'": ("step", always("epoch")),
    "StepLR.step() is called before or in the loop over the batches, but prepare got scheduler_interval='epoch'": (
        "epoch",
        always("step"),
    ),
    "StepLR.step() is called a second time for one step": (
        "step",
        lambda side, where, _: [side.scheduler.step() for _ in range(2)] if where == "step" else None,
    ),
    "StepLR.step() is called a second time for one epoch": (
        "epoch",
        lambda side, where, _: [side.scheduler.step() for _ in range(2)] if where == "epoch" else None,
    ),
    "StepLR.step() is called for one step and not for another": (
        "step",
        lambda side, where, number: side.scheduler.step() if where == "step" and number % 2 else None,
    ),
    "StepLR.step() is called for one epoch and not for another": (
        "epoch",
        lambda side, where, number: side.scheduler.step() if where == "epoch" and number else None,
    ),
    "StepLR.step(3): the job steps the scheduler by its own count": (
        "step",
        lambda side, where, _: side.scheduler.step(3) if where == "step" else None,
    ),
    "group['lr'] of an optimizer is set": (
        "step",
        lambda side, where, _: side.optimizer.param_groups[0].update(lr=0.5) if where == "epoch" else None,
    ),
    "a learning rate scheduler works on the optimizer, but prepare did not get it": (
        None,
        lambda side, where, _: s.StepLR(side.optimizer, 3) if where == "epoch" else None,
    ),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_scheduler_that_is_stepped_otherwise_than_the_job_does_is_refused(any_job, reason):
    interval, stepping = WRONG[reason]
    job, m = any_job.job, model()
    own = sgd(m)
    scheduler = s.StepLR(own, 3) if interval else None
    given = {"scheduler": scheduler, "scheduler_interval": interval} if interval else {}
    m, optimizer, batches = job.prepare(m, own, loader_of(), **given)

    class Here:
        pass

    here = Here()
    here.model, here.optimizer, here.scheduler = m, optimizer, scheduler
    here.epochs = ((epoch, batches) for epoch in job.epochs())
    with pytest.raises(Refused) as refused:
        train_with(stepping, rates=False)(here)
    assert reason in refused.value.reason


def test_a_scheduler_that_is_stepped_before_its_optimizer_is_refused(any_job):
    job, m = any_job.job, model()
    own = sgd(m)
    scheduler = s.StepLR(own, 3)
    m, optimizer, batches = job.prepare(m, own, loader_of(), scheduler=scheduler)
    epochs, through = job.epochs(), iter(batches)
    next(epochs)
    loss_of(m, *next(through)).backward()
    scheduler.step()
    with pytest.raises(Refused, match=r"scheduler\.step\(\) is called before optimizer\.step\(\); call it behind"):
        optimizer.step()


def test_a_rate_that_falls_on_a_plateau_follows_the_jobs_scores(any_job):
    scores = iter([1.0, 1.0, 1.0, 1.0])

    def train(side):
        rates = []
        for _, batches in side.epochs:
            for x, y in batches:
                side.optimizer.zero_grad()
                loss_of(side.model, x, y).backward()
                side.optimizer.step()
            for _ in range(2):
                score = 1.0 if side.job is None else side.job.evaluate(lambda _: next(scores))
                side.scheduler.step(score)
                rates.append(side.optimizer.param_groups[0]["lr"])
        return rates

    rates = compare(any_job, train, schedule=lambda o: s.ReduceLROnPlateau(o, factor=0.5, patience=0))
    assert rates == [0.05, 0.025, 0.0125, 0.00625]


def test_a_metric_that_is_not_the_jobs_is_refused(any_job):
    job, m = any_job.job, model()
    own = sgd(m)
    scheduler = s.ReduceLROnPlateau(own)
    job.prepare(m, own, loader_of(), scheduler=scheduler)
    job.evaluate(lambda _: 3.0)
    with pytest.raises(
        Refused, match=r"ReduceLROnPlateau\.step\(2\.5\): the number is not what the last job\.evaluate"
    ):
        scheduler.step(2.5)
