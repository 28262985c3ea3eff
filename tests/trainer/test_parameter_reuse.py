"""A pass between two optimizers' steps uses the first one's new parameters, and no other step may follow it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shoal.trainer.refusal import Refused
from shoal.trainer.script.parameter_reuse import Reuse
from tests.trainer.toy import compare


class Both(nn.Module):
    """A model of a generator and a discriminator."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.generator = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def made():
    m = Both()
    return m, [torch.optim.SGD(m.discriminator.parameters(), lr=0.1), torch.optim.Adam(m.generator.parameters())]


def never(used):
    raise AssertionError(used)


def test_reuse_is_reported_until_the_steps_are_committed():
    m, (first, second) = made()
    reported = []
    reuse = Reuse(m, [first, second], used=reported.append)
    x = torch.ones(1, 4)
    m.discriminator(m.generator(x))
    reuse.stepped(first)
    m.generator(x)
    assert reported == []
    m.discriminator(x)
    assert reported[0] == "a forward pass of module discriminator.0"
    reported.clear()
    reuse.stepped(second)
    m.generator(x)
    assert reported == ["a forward pass of module generator.0"]
    reuse.committed()
    m.discriminator(m.generator(x))
    assert reported == ["a forward pass of module generator.0"]


def test_with_one_optimizer_nothing_is_checked():
    m = Both()
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    reuse = Reuse(m, [optimizer], used=never)
    reuse.stepped(optimizer)
    m.discriminator(torch.ones(1, 4))


def test_a_module_without_parameters_and_one_of_another_optimizer_run():
    m, optimizers = made()
    Reuse(m, optimizers, used=never).stepped(optimizers[0])
    m.discriminator[1](torch.ones(1, 8))
    m.generator(torch.ones(1, 4))


def test_the_models_own_parameters_are_checked_too():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.part = nn.Linear(1, 1)

        def forward(self, x):
            return self.scale * x

    m = Own()
    optimizers = [torch.optim.SGD([m.scale], lr=0.1), torch.optim.SGD(m.part.parameters(), lr=0.1)]
    reported = []
    Reuse(m, optimizers, used=reported.append).stepped(optimizers[0])
    m(torch.ones(1))
    assert reported == ["a forward pass of the model"]


def made_for(m):
    return [torch.optim.SGD(m.discriminator.parameters(), lr=0.1), torch.optim.Adam(m.generator.parameters())]


def gan(m, optimizers, x, y, *, between):
    first, second = optimizers
    first.zero_grad()
    loss = nn.functional.mse_loss(m.discriminator(x), y) + m.discriminator(m.generator(x).detach()).pow(2).mean()
    loss.backward()
    if between:
        first.step()
    second.zero_grad()
    kept = [p.grad for p in m.discriminator.parameters()] if not between else []
    for parameter in m.discriminator.parameters() if not between else ():
        parameter.grad = None
    m.discriminator(m.generator(x)).mean().backward()
    for parameter, gradient in zip(m.discriminator.parameters(), kept, strict=False):
        parameter.grad = gradient
    if not between:
        first.step()
    second.step()


def test_losses_that_are_computed_before_all_steps_train_as_in_a_plain_loop(any_job):
    def train(side):
        for x, y in side.batches:
            gan(side.model, side.optimizer, x, y, between=False)

    compare(any_job, train, build=Both, make=made_for)


def test_parts_trained_alternately_by_batch_equal_a_plain_loop(any_job):
    def train(side):
        first, second = side.optimizer
        for number, (x, y) in enumerate(side.batches):
            side.model.zero_grad()
            if number % 2:
                m = side.model
                (nn.functional.mse_loss(m.discriminator(x), y) + m.discriminator(m.generator(x)).mean()).backward()
                first.step()
            else:
                side.model.discriminator(side.model.generator(x)).mean().backward()
                second.step()

    compare(any_job, train, build=Both, make=made_for)


def test_a_step_after_a_discriminator_run_after_its_own_step_is_refused_alone_and_together_alike(any_job):
    m = Both()
    data = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.randn(20, 1))
    m, optimizers, batches = any_job.job.prepare(m, made_for(m), data, batch_size=4)
    epochs, through = any_job.job.epochs(), iter(batches)
    next(epochs)
    with pytest.raises(
        Refused,
        match=r"a forward pass of module discriminator\.0 comes after one optimizer's step and before the step of Adam",
    ):
        gan(m, optimizers, *next(through), between=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_after_an_overflow_of_one_optimizer_equals_a_plain_loop(any_job, compiled):
    """A GradScaler leaves out the step of the optimizer that overflowed, so no further step of the batch follows."""
    seen = []

    def train(side):
        first, second = side.optimizer
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        scores = []
        for number, (x, y) in enumerate(side.batches):
            side.model.zero_grad()
            m = side.model
            loss = nn.functional.mse_loss(m.discriminator(x), y) + m.generator(x).pow(2).mean()
            scaler.scale(loss).backward()
            if number % 3 == 1:
                m.generator[0].weight.grad[0, 0] = float("inf")
            for optimizer in (first, second):
                scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                scores.append(float(m.discriminator(x).mean()))
        seen.append(scores)

    def build():
        m = Both()
        if compiled:
            m.discriminator = torch.compile(m.discriminator, backend="eager")
        return m

    compare(any_job, train, build=build, make=made_for)
    assert seen[0] == pytest.approx(seen[1])
