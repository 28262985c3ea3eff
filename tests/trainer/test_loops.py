"""Common training loops give the same results alone, with a real master and parameter servers, and without Shoal."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from shoal.tensors.optimizers import DENSE
from shoal.trainer.refusal import Refused
from tests.trainer.toy import (
    EPOCHS,
    SIZE,
    STEPS,
    compare,
    data,
    equal,
    halves,
    loader_of,
    loss_of,
    model,
    order_of,
    places,
    plain_epochs,
    plainly,
    sgd,
    step,
)

RATES = {"SGD": 0.05, "Adadelta": 1.0}


@pytest.mark.parametrize("name", DENSE)
def test_every_optimizer_equals_its_plain_loop(any_job, name):
    compare(any_job, plainly, make=lambda m: getattr(torch.optim, name)(m.parameters(), lr=RATES.get(name, 0.01)))


def test_gradients_are_clipped_between_backward_and_step(any_job):
    def train(side):
        norms = []
        for x, y in side.batches:
            side.optimizer.zero_grad()
            loss_of(side.model, x, y).backward()
            norms.append(float(nn.utils.clip_grad_norm_(side.model.parameters(), 0.1)) > 0.1)
            side.optimizer.step()
        return norms

    assert any(compare(any_job, train))


def test_a_step_may_be_given_a_closure(any_job):
    def train(side):
        losses = []
        for x, y in side.batches:

            def closure(x=x, y=y):
                side.optimizer.zero_grad()
                loss = loss_of(side.model, x, y)
                loss.backward()
                return loss

            losses.append(round(side.optimizer.step(closure).item(), 4))
        return losses

    assert len(compare(any_job, train)) == EPOCHS * STEPS


@pytest.mark.parametrize("unscale", [False, True])
def test_a_batch_that_overflows_is_skipped_and_the_scale_falls(any_job, unscale):
    def train(side):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=6)
        scales = []
        for x, y in side.batches:
            side.optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(side.model(x).float(), y)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(side.optimizer)
                nn.utils.clip_grad_norm_(side.model.parameters(), 0.5)
            scaler.step(side.optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return scales

    scales = compare(any_job, train, loader=DataLoader(data(poison=True), batch_size=SIZE, shuffle=True))
    falls = sum(later < earlier for earlier, later in zip([1024.0, *scales], scales, strict=False))
    rises = sum(later > earlier for earlier, later in zip([1024.0, *scales], scales, strict=False))
    assert (falls, rises >= 1) == (EPOCHS, True)
    assert any_job.skipped() == EPOCHS * SIZE


def test_gradients_are_accumulated_scaled_and_clipped_once_per_step(any_job):
    def train(side):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
        for number, (x, y) in enumerate(side.batches):
            closes = side.closes(number, 2)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(side.model(x).float(), y) / 2
            scaler.scale(loss).backward()
            if closes:
                scaler.unscale_(side.optimizer)
                nn.utils.clip_grad_norm_(side.model.parameters(), 0.5)
                scaler.step(side.optimizer)
                scaler.update()
                side.optimizer.zero_grad()
        return scaler.get_scale()

    assert compare(any_job, train, accumulate=2, task_batches=2) > 1024


@pytest.mark.parametrize("clear", ["optimizer", "model"])
def test_an_accumulation_clears_and_steps_once_although_the_script_does_for_every_batch(any_job, clear):
    def train(side):
        for number, (x, y) in enumerate(side.batches):
            closes = side.closes(number, 2)
            if side.job is not None or number % 2 == 0:
                getattr(side, clear).zero_grad()
            (loss_of(side.model, x, y) / 2).backward()
            if side.job is not None or closes:
                side.optimizer.step()

    compare(any_job, train, accumulate=2, task_batches=2)


def test_a_scaler_that_steps_in_the_middle_of_an_accumulation_is_refused(any_job):
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), data(), batch_size=SIZE, accumulate=2, task_batches=2)
    scaler = torch.amp.GradScaler("cpu")
    epochs, through = any_job.job.epochs(), iter(batches)
    next(epochs)
    x, y = next(through)
    scaler.scale(loss_of(m, x, y)).backward()
    with pytest.raises(Refused, match=r"behind `if optimizer\.closes:`") as refused:
        scaler.step(optimizer)
    assert refused.value.code == 78


@pytest.mark.parametrize(
    "change",
    [lambda m: m.zero_grad(set_to_none=False), lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.01)],
    ids=["zeroed", "clipped"],
)
def test_gradients_that_are_changed_after_the_step_do_not_affect_it(any_job, change):
    def train(side):
        for x, y in side.batches:
            side.optimizer.zero_grad()
            loss_of(side.model, x, y).backward()
            side.optimizer.step()
            change(side.model)

    compare(any_job, train)


def test_gradients_that_are_changed_between_the_steps_of_two_optimizers_reach_into_the_second_alone(any_job):
    def train(side):
        for x, y in side.batches:
            side.model.zero_grad(set_to_none=False)
            loss_of(side.model, x, y).backward()
            side.optimizer[0].step()
            for parameter in side.model.parameters():
                parameter.grad.mul_(0.5)
            side.optimizer[1].step()

    compare(any_job, train, make=halves)


def test_of_two_optimizers_only_those_that_stepped_move_their_parameters(any_job):
    def train(side):
        for number, (x, y) in enumerate(side.batches):
            for optimizer in side.optimizer:
                optimizer.zero_grad()
            loss_of(side.model, x, y).backward()
            side.optimizer[number % 2].step()
            if number % 3 == 0:
                side.optimizer[1 - number % 2].step()

    compare(any_job, train, make=halves)


class Pair(nn.Module):
    """Two models without shared parameters, like an actor and a critic."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right = nn.Linear(4, 1), nn.Linear(4, 1)


def test_a_part_is_run_and_trained_after_the_step_of_the_other_part(any_job):
    def train(side):
        first, second = side.optimizer
        for x, y in side.batches:
            first.zero_grad()
            loss_of(side.model.left, x, y).backward()
            first.step()
            second.zero_grad()
            loss_of(side.model.right, x, y + 1).backward()
            second.step()

    def make(m):
        return [torch.optim.SGD(m.left.parameters(), lr=0.1), torch.optim.Adam(m.right.parameters(), lr=0.01)]

    compare(any_job, train, make=make, build=Pair)


def test_a_backward_pass_after_a_step_leaves_its_gradients_to_the_optimizers_that_have_not_stepped(any_job):
    """A step takes effect at once; gradients that a later backward pass adds to its parameters are not part of it."""

    def train(side):
        first, second = side.optimizer
        for x, y in side.batches:
            first.zero_grad()
            second.zero_grad()
            left, right = side.model.left(x), side.model.right(x)
            nn.functional.mse_loss(left, y).backward(retain_graph=True)
            first.step()
            (left.mean() + right.mean()).backward()
            second.step()

    def make(m):
        return [torch.optim.SGD(m.left.parameters(), lr=0.1), torch.optim.SGD(m.right.parameters(), lr=0.1)]

    compare(any_job, train, make=make, build=Pair)


def test_parameters_are_the_newest_directly_after_the_step(any_job):
    def train(side):
        seen = []
        for x, y in side.batches:
            side.optimizer.zero_grad()
            loss_of(side.model, x, y).backward()
            side.optimizer.step()
            with torch.no_grad():
                seen.append(round(loss_of(side.model, x, y).item(), 5))
        return seen

    compare(any_job, train)


def test_a_batch_that_the_script_passes_over_is_skipped_and_counted(any_job):
    def train(side):
        for number, (x, y) in enumerate(side.batches):
            if number % 5 == 2:
                continue
            side.optimizer.zero_grad()
            loss_of(side.model, x, y).backward()
            side.optimizer.step()

    compare(any_job, train)
    assert any_job.skipped() == SIZE * EPOCHS * STEPS // 5


@pytest.mark.parametrize("sparse_clear", [False, True], ids=["set to none", "zeroed"])
def test_a_batch_without_a_step_after_its_backward_pass_is_skipped(any_job, sparse_clear):
    def train(side):
        for number, (x, y) in enumerate(side.batches):
            side.optimizer.zero_grad(set_to_none=not sparse_clear)
            loss_of(side.model, x, y).backward()
            if number % 4 != 1:
                side.optimizer.step()

    compare(any_job, train)
    assert any_job.skipped() == SIZE * EPOCHS * STEPS // 4


def test_options_count_as_they_are_at_the_call_of_step(any_job):
    def train(side):
        (group,) = side.optimizer.param_groups
        for number, (x, y) in enumerate(side.batches):
            side.optimizer.zero_grad()
            loss_of(side.model, x, y).backward()
            group["lr"], group["weight_decay"] = 0.1 / (1 + number), 0.01 * (number % 3)
            side.optimizer.step()
            group["lr"], group["momentum"] = 123.0, 0.5 + 0.1 * (number % 4)

    compare(any_job, train)


def test_a_part_that_is_frozen_at_first_trains_from_when_it_is_unfrozen_and_rests_when_it_is_frozen_again(any_job):
    def train(side):
        head = [p.detach().clone() for p in side.model[0].parameters()]
        side.model[0].requires_grad_(False)
        for epoch, batches in side.epochs:
            if epoch == 1:
                assert all(torch.equal(a, b) for a, b in zip(head, side.model[0].parameters(), strict=True))
                side.model[0].requires_grad_(True)
                side.model[2].requires_grad_(False)
            for x, y in batches:
                side.optimizer.zero_grad()
                loss_of(side.model, x, y).backward()
                side.optimizer.step()

    compare(any_job, train)


def test_an_error_names_the_batch_in_the_loop_and_none_after_it(one):
    m = model()
    job = one.join()
    m, optimizer, batches = job.prepare(m, sgd(m), loader_of())
    error = ValueError("too large")
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
            assert "(in batch " in job._explain(error)
        assert job._explain(error) == "ValueError: too large"
    assert job._explain(error) == "ValueError: too large"


def test_a_parameter_without_an_optimizer_does_not_change(any_job):
    compare(any_job, plainly, make=lambda m: torch.optim.SGD(m[2].parameters(), lr=0.1))


def test_a_dataset_with_a_batch_size_is_shuffled_and_cut_like_a_loader(any_job):
    m, plain = model(), model()
    optimizer = sgd(plain)
    for _, batches in plain_epochs(order_of(plain, optimizer, loader_of()), loader_of()):
        for x, y in batches:
            optimizer.zero_grad()
            loss_of(plain, x, y).backward()
            optimizer.step()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), data(), batch_size=SIZE)
    for _ in any_job.job.epochs():
        for x, y in batches:
            optimizer.zero_grad()
            loss_of(m, x, y).backward()
            optimizer.step()
    equal(m, plain)


LOADERS = {
    "a subset": lambda: DataLoader(Subset(data(), range(5, 30)), batch_size=SIZE, shuffle=True),
    "a part drawn anew": lambda: loader_of(shuffle=False, sampler=SubsetRandomSampler(range(20))),
    "with replacement": lambda: loader_of(shuffle=False, sampler=RandomSampler(data(), replacement=True)),
    "with weights": lambda: loader_of(shuffle=False, sampler=WeightedRandomSampler([1.0, 3.0] * 20, 28)),
    "a batch sampler": lambda: DataLoader(
        data(), batch_sampler=BatchSampler(SequentialSampler(data()), 8, drop_last=False)
    ),
    "in order, without the rest": lambda: loader_of(shuffle=False, batch_size=7, drop_last=True),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_sampler_gives_the_jobs_order(any_job, name):
    compare(any_job, plainly, loader=LOADERS[name]())


def test_the_loader_has_the_attributes_of_the_scripts_and_a_constant_length(any_job):
    loader = loader_of(batch_size=6)
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader)
    assert isinstance(batches, DataLoader)
    assert (batches.dataset, batches.batch_size, batches.collate_fn) == (loader.dataset, 6, loader.collate_fn)
    lengths = {len(batches)}
    for _ in any_job.job.epochs():
        for x, y in batches:
            lengths.add(len(batches))
            optimizer.zero_grad()
            loss_of(m, x, y).backward()
            optimizer.step()
    assert lengths == {7} == {len(loader)}
    with pytest.raises(Refused, match=r"loader\.sampler = None after prepare"):
        batches.sampler = None


@pytest.mark.slow
def test_a_workers_batches_are_those_of_the_process_itself(alone):
    loader = loader_of(num_workers=1)
    m = model()
    m, optimizer, batches = alone.prepare(m, sgd(m), loader)
    order = order_of(m, sgd(m), loader_of())
    for epoch in alone.epochs():
        for place, (x, y) in zip(places(order), batches, strict=True):
            expected = loader.dataset[order.indices(epoch, *place)]
            assert torch.equal(x, expected[0])
            assert torch.equal(y, expected[1])
            optimizer.zero_grad()
            loss_of(m, x, y).backward()
            optimizer.step()
    gc.collect()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Own(DataLoader):
    def __iter__(self):
        return iter([])


REFUSED_LOADERS = {
    "make it a map-style Dataset": lambda: DataLoader(Stream(), batch_size=2),
    "a DataLoader with an __iter__ of its own": lambda: Own(data(), batch_size=2),
    "the DataLoader has batch_size=None": lambda: DataLoader(data(), batch_size=None),
    "leave the sampler away and write shuffle=True": lambda: loader_of(
        shuffle=False, sampler=torch.utils.data.DistributedSampler(data(), num_replicas=2, rank=0)
    ),
}


@pytest.mark.parametrize("fix", REFUSED_LOADERS)
def test_a_loader_that_cannot_be_cut_into_tasks_is_refused_with_the_fix(any_job, fix):
    m = model()
    with pytest.raises(Refused, match=fix):
        any_job.job.prepare(m, sgd(m), REFUSED_LOADERS[fix]())


def test_an_optimizer_that_needs_the_whole_model_is_refused_with_the_fix(any_job):
    m = model()
    with pytest.raises(Refused, match=r"LBFGS cannot run on parameter servers: .*; use one of SGD, Adam"):
        any_job.job.prepare(m, torch.optim.LBFGS(m.parameters()), data(), batch_size=SIZE)
