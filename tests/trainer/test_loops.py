"""What people write in a loop, alone and with a real master and parameter servers, against the loop without Shoal."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from shoal.pserver.optimizers import DENSE
from shoal.trainer.data import describe_data
from shoal.trainer.describe import describe
from shoal.trainer.refusal import Refused

from shoal.trainer.order import Order
from tests.trainer.one_process import OneProcess
from tests.trainer.test_alone import SEED, job, signals  # noqa: F401 - fixtures

EPOCHS, SAMPLES, SIZE = 2, 40, 4  # 20 steps
POISONED = 13


@pytest.fixture(params=["alone", "together"])
def any_job(request, monkeypatch):
    """A job, and how many of its samples were counted as skipped (None: nobody counts)."""
    if request.param == "alone":
        yield request.getfixturevalue("job"), lambda: None
        return
    made = OneProcess(monkeypatch, servers=2, epochs=EPOCHS, seed=SEED)
    yield made.join(), lambda: made.records.outcome.account.samples.skipped
    made.close()


def data(*, poison=False):
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(SAMPLES, 4, generator=generator), torch.randn(SAMPLES, 1, generator=generator)
    if poison:
        x[POISONED] = float("inf")
    return TensorDataset(x, y)


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(m, x, y):
    return nn.functional.mse_loss(m(x), y)


def in_order(m, optimizers, loader, *, seed=SEED):
    """The batches of the job, each with whether it is an epoch's first."""
    order = Order(describe(m, optimizers, loader, accumulate=1, task_batches=None).shape, seed)
    for epoch in range(EPOCHS):
        for task in range(order.plan.tasks):
            for batch in range(order.plan.batches_in(task)):
                yield loader.dataset[order.indices(epoch, task, batch)]


def through(job, batches):  # noqa: F811
    for _ in job.epochs():
        yield from batches


def equal(found, wanted):
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: n + m)


def compare(any_job, make, train, *, loader=None, **prepare):
    """Train by ``train(model, optimizer or list, batches)`` with and without Shoal; the job's results."""
    given, _ = any_job
    loader = loader or DataLoader(data(), batch_size=SIZE, shuffle=True)
    plain = model()
    inner = make(plain)
    many = inner if isinstance(inner, list) else [inner]
    wanted = train(plain, inner, in_order(plain, many, loader))
    m = model()
    m, optimizer, batches = given.prepare(m, make(m), loader, **prepare)
    found = train(m, optimizer, through(given, batches))
    equal(m, plain)
    assert found == wanted
    return found


def sgd(m):
    return torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9)


def plainly(m, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        loss_of(m, x, y).backward()
        optimizer.step()


RATES = {"SGD": 0.05, "Adadelta": 1.0}


@pytest.mark.parametrize("name", DENSE)
def test_every_optimizer_equals_its_plain_loop(any_job, name):
    compare(any_job, lambda m: getattr(torch.optim, name)(m.parameters(), lr=RATES.get(name, 0.01)), plainly)


def test_gradients_are_clipped_between_backward_and_step(any_job):
    def train(m, optimizer, batches):
        norms = []
        for x, y in batches:
            optimizer.zero_grad()
            loss_of(m, x, y).backward()
            norms.append(float(nn.utils.clip_grad_norm_(m.parameters(), 0.1)) > 0.1)
            optimizer.step()
        return norms

    assert any(compare(any_job, sgd, train))


def test_a_step_may_be_given_a_closure(any_job):
    def train(m, optimizer, batches):
        losses = []
        for x, y in batches:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = loss_of(m, x, y)
                loss.backward()
                return loss

            losses.append(round(optimizer.step(closure).item(), 4))
        return losses

    assert len(compare(any_job, sgd, train)) == EPOCHS * SAMPLES / SIZE


@pytest.mark.parametrize("unscale", [False, True])
def test_a_batch_that_overflows_is_skipped_and_the_scale_falls(any_job, unscale):
    def train(m, optimizer, batches):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=6)
        scales = []
        for x, y in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(m(x).float(), y)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(m.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return scales

    loader = DataLoader(data(poison=True), batch_size=SIZE, shuffle=True)
    scales = compare(any_job, sgd, train, loader=loader)
    falls = sum(later < earlier for earlier, later in zip([1024.0, *scales], scales, strict=False))
    rises = sum(later > earlier for earlier, later in zip([1024.0, *scales], scales, strict=False))
    assert (falls, rises >= 1) == (EPOCHS, True)
    assert any_job[1]() in (None, EPOCHS * SIZE)


def test_gradients_are_accumulated_scaled_and_clipped_once_per_step(any_job):
    def train(m, optimizer, batches):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
        for number, (x, y) in enumerate(batches):
            closes = optimizer.closes if hasattr(optimizer, "closes") else number % 2 == 1
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(m(x).float(), y) / 2
            scaler.scale(loss).backward()
            if closes:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(m.parameters(), 0.5)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        return scaler.get_scale()

    assert compare(any_job, sgd, train, accumulate=2, task_batches=2) > 1024


def test_a_scaler_that_steps_in_the_middle_of_an_accumulation_is_refused(any_job):
    given, _ = any_job
    m = model()
    m, optimizer, batches = given.prepare(m, sgd(m), data(), batch_size=SIZE, accumulate=2, task_batches=2)
    scaler = torch.amp.GradScaler("cpu")
    x, y = next(through(given, batches))
    scaler.scale(loss_of(m, x, y)).backward()
    with pytest.raises(Refusal, match=r"behind `if optimizer\.closes:`"):
        scaler.step(optimizer)


@pytest.mark.parametrize(
    "clear",
    [lambda m: m.zero_grad(set_to_none=False), lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1)],
    ids=["zeroed", "clipped"],
)
def test_gradients_that_are_changed_in_place_behind_the_step_are_refused(any_job, clear, capsys):
    given, _ = any_job
    m = model()
    m, optimizer, batches = given.prepare(m, sgd(m), data(), batch_size=SIZE)
    following = through(given, batches)
    x, y = next(following)
    loss_of(m, x, y).backward()
    optimizer.step()
    clear(m)
    with pytest.raises((Refusal, Refused)) as refused:
        next(following)
    assert "changed in place after optimizer" in str(refused.value) + capsys.readouterr().err


def halves(m):
    return [torch.optim.Adam(m[0].parameters(), lr=0.01), torch.optim.SGD(m[2].parameters(), lr=0.1)]


def test_of_two_optimizers_only_those_that_stepped_move_their_parameters(any_job):
    def train(m, optimizers, batches):
        for number, (x, y) in enumerate(batches):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(m, x, y).backward()
            optimizers[number % 2].step()
            if number % 3 == 0:
                optimizers[1 - number % 2].step()

    compare(any_job, halves, train)


def test_a_backward_pass_behind_a_step_does_not_reach_into_it(any_job):
    """As a GAN has it: the generator's loss also leaves gradients at the discriminator, whose step was made before."""

    def train(m, optimizers, batches):
        for x, y in batches:
            first, second = optimizers
            second.zero_grad()
            loss = loss_of(m, x, y)
            loss.backward(retain_graph=True)
            taken = m[2].weight.grad.clone()
            second.step()
            if isinstance(second, torch.optim.SGD):  # the plain loop has moved its parameters already
                m[2].weight.grad.zero_()
            else:
                (2 * loss).backward()
                assert not torch.equal(m[2].weight.grad, taken)
            first.zero_grad()

    def one_of(m):
        return [torch.optim.SGD(m[0].parameters(), lr=0.1), torch.optim.SGD(m[2].parameters(), lr=0.1)]

    compare(any_job, one_of, train)


def test_a_dataset_with_a_batch_size_is_shuffled_and_cut_like_a_loader(any_job):
    given, _ = any_job
    m, plain = model(), model()
    inner = sgd(plain)
    plainly(plain, inner, in_order(plain, [inner], DataLoader(data(), batch_size=SIZE, shuffle=True)))
    m, optimizer, batches = given.prepare(m, sgd(m), data(), batch_size=SIZE)
    plainly(m, optimizer, through(given, batches))
    equal(m, plain)


def test_a_workers_batches_are_those_of_the_process_itself(job):  # noqa: F811
    loader = DataLoader(data(), batch_size=SIZE, shuffle=True, num_workers=1)
    m = model()
    _, _, batches = job.prepare(m, sgd(m), loader)
    wanted = list(in_order(m, [sgd(m)], DataLoader(data(), batch_size=SIZE, shuffle=True)))
    for (x, y), (wanted_x, wanted_y) in zip(through(job, batches), wanted, strict=True):
        assert torch.equal(x, wanted_x)
        assert torch.equal(y, wanted_y)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


REFUSED = {
    "use a map-style Dataset with __len__ and __getitem__": lambda: DataLoader(Stream(), batch_size=2),
    "use shuffle=True or shuffle=False instead of sampler=": lambda: DataLoader(
        data(), batch_size=2, sampler=torch.utils.data.SubsetRandomSampler(range(5))
    ),
    "draws with replacement or only a part; use shuffle=True": lambda: DataLoader(
        data(), batch_size=2, sampler=RandomSampler(data(), replacement=True)
    ),
    "Shoal cuts the batches itself: use batch_size=": lambda: DataLoader(
        data(), batch_sampler=BatchSampler(SequentialSampler(data()), 2, drop_last=False)
    ),
}


@pytest.mark.parametrize("fix", REFUSED)
def test_a_loader_that_cannot_be_cut_into_tasks_is_refused_with_the_fix(job, fix):  # noqa: F811
    m = model()
    with pytest.raises(Refusal, match=fix):
        job.prepare(m, sgd(m), REFUSED[fix]())


def test_an_optimizer_that_needs_the_whole_model_is_refused_with_the_fix(job):  # noqa: F811
    m = model()
    with pytest.raises(Refusal, match=r"LBFGS cannot run on parameter servers: .*; use one of SGD, Adam"):
        job.prepare(m, torch.optim.LBFGS(m.parameters()), data(), batch_size=SIZE)
