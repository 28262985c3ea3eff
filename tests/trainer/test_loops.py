"""What people write in a loop, alone and with a real master and parameter servers, against the loop without Shoal."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
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

from shoal.pserver.optimizers import DENSE
from shoal.trainer.refusal import Refused
from tests.trainer.toy import (
    EPOCHS,
    SAMPLES,
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
def test_gradients_that_are_changed_behind_the_step_do_not_reach_into_it(any_job, change):
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
    """Two models that share nothing, as an actor and a critic do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right = nn.Linear(4, 1), nn.Linear(4, 1)


def test_a_part_is_run_and_trained_behind_the_step_of_the_other_part(any_job):
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


def test_a_backward_pass_behind_a_step_leaves_its_gradients_to_the_optimizers_that_have_not_stepped(any_job):
    """The step took effect at once; what comes to its gradients later is not in it."""

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


def test_parameters_are_the_newest_at_once_behind_the_step(any_job):
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
def test_a_batch_whose_step_is_left_out_behind_its_backward_pass_is_skipped(any_job, sparse_clear):
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


def test_a_parameter_that_no_optimizer_holds_stays_as_it_is(any_job):
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
            wanted = loader.dataset[order.indices(epoch, *place)]
            assert torch.equal(x, wanted[0])
            assert torch.equal(y, wanted[1])
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


# --- What is refused in the loop ---


def prepared(any_job, **options):
    m = model()
    return any_job.job.prepare(m, sgd(m), loader_of(), **options)


def step(m, optimizer, batch):
    optimizer.zero_grad()
    loss_of(m, *batch).backward()
    optimizer.step()


def two_steps(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
            step(m, optimizer, batch)


def leaves(job, m, optimizer, batches):
    for _ in job.epochs():
        for number, batch in enumerate(batches):
            step(m, optimizer, batch)
            if number == 3:
                break


def second_pass(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
        list(batches)


def only_looks(job, m, optimizer, batches):
    for _ in job.epochs():
        for x, _ in batches:
            m(x)


def by_hand(job, m, optimizer, batches):
    for _ in job.epochs():
        for number, (x, y) in enumerate(batches):
            loss_of(m, x, y).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()


def outside(job, m, optimizer, batches):
    for batch in batches:
        step(m, optimizer, batch)


def behind(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
        optimizer.step()


def twice_prepared(job, m, optimizer, batches):
    job.prepare(m, optimizer, batches)


def epochs_twice(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
    job.epochs()


def saves_state(job, m, optimizer, batches):
    optimizer.state_dict()


def loads_state(job, m, optimizer, batches):
    other = sgd(m)
    step(m, other, data()[:SIZE])
    optimizer.load_state_dict(other.state_dict())


def adds_a_group(job, m, optimizer, batches):
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def leaves_the_epochs(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
        break
    gc.collect()
    job.save("model.safetensors")


REFUSED = {
    "SGD.step() is called a second time for one batch": two_steps,
    "epoch 1: the loop over the loader was left before its end": leaves,
    "the loader is iterated a second time in one epoch": second_pass,
    "its 10 batches count as skipped": only_looks,
    "prepare(..., accumulate=N)": by_hand,
    "outside of `for epoch in job.epochs():`": outside,
    "optimizer.step() outside of the loop over the loader": behind,
    "prepare is called a second time": twice_prepared,
    "job.epochs() is called a second time": epochs_twice,
    "optimizer.state_dict(): the optimizer's state is on the parameter servers": saves_state,
    "optimizer.load_state_dict after prepare": loads_state,
    "optimizer.add_param_group after prepare": adds_a_group,
    "the script left `for epoch in job.epochs():` in epoch 1 of 2": leaves_the_epochs,
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_would_not_be_as_in_plain_pytorch_is_refused_alone_and_together_alike(any_job, said):
    m, optimizer, batches = prepared(any_job)
    with pytest.raises(Refused) as refused:
        REFUSED[said](any_job.job, m, optimizer, batches)
    assert said in refused.value.reason
    assert refused.value.code == 78


def test_a_model_that_runs_behind_one_step_has_the_new_values_and_no_other_step_may_follow(any_job):
    m = model()
    m, (first, second), batches = any_job.job.prepare(m, halves(m), loader_of())
    epochs, through = any_job.job.epochs(), iter(batches)
    next(epochs)
    x, y = next(through)
    loss_of(m, x, y).backward()
    before = m[0].weight.detach().clone()
    first.step()
    m(x)
    assert not torch.equal(m[0].weight, before), "it runs with the new parameters"
    with pytest.raises(
        Refused, match="a forward pass of module 0 comes after one optimizer's step and before the step of SGD"
    ):
        second.step()


def test_a_second_passs_iterator_makes_the_first_one_useless(any_job):
    m, optimizer, batches = prepared(any_job)
    for _ in any_job.job.epochs():
        old = iter(batches)
        step(m, optimizer, next(old))
        new = iter(batches)
        step(m, optimizer, next(new))
        with pytest.raises(Refused, match="an iterator of the loader is used after another one was begun"):
            next(old)
        break


def test_a_look_at_a_batch_before_the_loop_takes_nothing_from_it(any_job):
    def train(side):
        if side.job is not None:
            return through(side)
        return plainly(side)

    def through(side):
        for epoch, batches in side.epochs:
            if epoch == 0:
                next(iter(batches))
            for x, y in batches:
                side.optimizer.zero_grad()
                loss_of(side.model, x, y).backward()
                side.optimizer.step()

    compare(any_job, train)
    assert any_job.skipped() == 0


def test_stop_ends_the_job_in_good_order_and_the_model_is_that_of_the_moment(any_job, tmp_path):
    m, optimizer, batches = prepared(any_job)
    seen = 0
    for _ in any_job.job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
            seen += 1
            if seen == 4:
                any_job.job.stop("good enough")
    assert seen <= 6
    saved = load_file(any_job.job.save(tmp_path / "model.safetensors"))
    for name, value in m.state_dict().items():
        assert torch.equal(saved[name], value)


def test_a_script_that_leaves_its_loops_behind_stop_saves_the_model_of_that_moment(any_job, tmp_path):
    m, optimizer, batches = prepared(any_job)
    for _ in any_job.job.epochs():
        for number, batch in enumerate(batches):
            step(m, optimizer, batch)
            if number == 3:
                any_job.job.stop("good enough")
                break
        break
    saved = load_file(any_job.job.save(tmp_path / "model.safetensors"))
    for name, value in m.state_dict().items():
        assert torch.equal(saved[name], value)


@pytest.mark.parametrize("where", ["in the loop", "behind it"])
def test_every_evaluation_of_an_epoch_is_one_of_its_own(any_job, where):
    m, optimizer, batches = prepared(any_job)
    scores = []
    for _ in any_job.job.epochs():
        for number, batch in enumerate(batches):
            step(m, optimizer, batch)
            if where == "in the loop" and number in {2, 5}:
                scores.append((any_job.job.evaluate(total), total(m)))
        if where == "behind it":
            scores += [(any_job.job.evaluate(total), total(m)), (any_job.job.evaluate(lambda m: -total(m)), -total(m))]
    assert len({found for found, _ in scores}) == len(scores) == 2 * EPOCHS
    assert [found for found, _ in scores] == [wanted for _, wanted in scores]


def total(m):
    with torch.no_grad():
        return float(sum(p.sum() for p in m.parameters()))


def test_every_save_is_the_model_of_its_moment(any_job, tmp_path):
    m, optimizer, batches = prepared(any_job)
    for _ in any_job.job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
        found = load_file(any_job.job.save(tmp_path / "best.safetensors"))
        assert all(torch.equal(found[name], value) for name, value in m.state_dict().items())
    again = load_file(any_job.job.save(tmp_path / "best.safetensors"))
    assert all(torch.equal(again[name], value) for name, value in m.state_dict().items())


def test_the_account_has_every_sample_once(any_job):
    m, optimizer, batches = prepared(any_job)
    seen = torch.zeros(SAMPLES)
    index = {tuple(x.tolist()): number for number, (x, _) in enumerate(data())}
    for _ in any_job.job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
            for x in batch[0]:
                seen[index[tuple(x.tolist())]] += 1
    assert seen.tolist() == [EPOCHS] * SAMPLES


# --- Buffers, compiled models, logged values ---


class Statistics(nn.Module):
    """Buffers that are written in place, assigned anew, counted, and not saved."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("passing", torch.full((4,), 0.5), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.calls = self.calls + 1
            self.seen[0] += len(x)
        return self.last(self.norm(x - self.mean) * self.passing)


def test_buffers_are_those_of_a_plain_loop_in_the_model_and_in_its_file(any_job, tmp_path):
    def train(side):
        plainly(side)
        if side.job is not None:
            files.append(load_file(side.job.save(tmp_path / "model.safetensors")))
        models.append(side.model)

    files, models = [], []
    compare(any_job, train, build=Statistics)
    plain = models[0].state_dict()
    assert files[0].keys() == plain.keys() - {"passing"} == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(files[0][name], value, rtol=1e-6, atol=1e-6)
    assert (int(plain["calls"]), plain["seen"].tolist()) == (EPOCHS * STEPS, [EPOCHS * SAMPLES, 0.0])


WRONG_BUFFERS = {
    "buffer mean is torch.float32 [9] by now": lambda m: setattr(m, "mean", torch.zeros(9)),
    "buffer mean is torch.float64 [4] by now": lambda m: setattr(m, "mean", torch.zeros(4, dtype=torch.float64)),
    "buffer mean was removed after prepare": lambda m: setattr(m, "mean", None),
}


@pytest.mark.parametrize("said", WRONG_BUFFERS)
def test_a_buffer_that_trainers_could_not_merge_is_refused_alone_and_together_alike(any_job, said):
    m = Statistics()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of())

    def run():
        for _ in any_job.job.epochs():
            for batch in batches:
                step(m, optimizer, batch)
                WRONG_BUFFERS[said](m)

    with pytest.raises(Refused) as refused:
        run()
    assert said in refused.value.reason


def test_a_second_trainer_begins_with_the_values_of_the_first(one):
    first, second = Statistics(), Statistics()
    for m, value in ((first, 1.0), (second, 2.0)):
        with torch.no_grad():
            for tensor in (*m.parameters(), *m.buffers()):
                tensor.fill_(value)
        job = one.join()
        job.prepare(m, torch.optim.SGD(m.last.parameters(), lr=0.1), loader_of())
    jobs = one.jobs
    jobs[1]._engine.retry(lambda: jobs[1]._engine.servers.pull(0, 0, idle=jobs[1]._engine.idle))
    for name, tensor in (*second.named_parameters(), *second.named_buffers()):
        assert (tensor == 1).all(), name


@pytest.mark.parametrize("make", [sgd, halves], ids=["one optimizer", "two optimizers"])
def test_a_compiled_model_trains_as_itself_and_is_saved_under_its_own_names(any_job, tmp_path, make):
    def train(side):
        many = side.optimizer if isinstance(side.optimizer, list) else [side.optimizer]
        for x, y in side.batches:
            side.model.zero_grad()
            loss_of(side.model, x, y).backward()
            for one in many:
                one.step()
        if side.job is not None:
            files.append(load_file(side.job.save(tmp_path / "model.safetensors")))
        return round(total(side.model), 4)

    files = []
    compare(any_job, train, make=lambda m: make(m._orig_mod), build=lambda: torch.compile(model(), backend="eager"))
    assert files[0].keys() == model().state_dict().keys()


def compiled_in_place(m):
    m.compile(backend="eager")
    return m


def compiled_part(m):
    m[0] = torch.compile(m[0], backend="eager")
    return m


def judge_and_step(m, x, optimizer):
    m(x)
    optimizer.step()


# Torch's compiler looks at .grad of every tensor where its graph breaks.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "compiled",
    [lambda m: torch.compile(m, backend="eager", fullgraph=True), compiled_in_place, compiled_part],
    ids=["a model", "in place", "a part"],
)
def test_a_step_behind_a_run_of_a_compiled_model_and_another_step_is_refused(any_job, compiled):
    inner = model()
    own = halves(inner)
    m, (first, second), batches = any_job.job.prepare(compiled(inner), own, loader_of())
    epochs, through = any_job.job.epochs(), iter(batches)
    next(epochs)
    for _ in range(2):
        m.zero_grad()
        loss_of(m, *next(through)).backward()
        first.step()
        second.step()
    x, y = next(through)
    m.zero_grad()
    loss_of(m, x, y).backward()
    first.step()
    with pytest.raises((Refused, RuntimeError), match=r"comes after one optimizer's step|torch\.compiler\.disable"):
        judge_and_step(m, x, second)


def test_a_compiled_part_is_saved_under_its_own_names_too(any_job, tmp_path):
    def build():
        m = model()
        m[0] = torch.compile(m[0], backend="eager")
        return m

    m = build()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of())
    for _ in any_job.job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
    assert load_file(any_job.job.save(tmp_path / "model.safetensors")).keys() == model().state_dict().keys()


def test_numbers_of_all_kinds_are_logged(any_job):
    job = any_job.job
    job.log(a=1, b=2.5, c=np.float32(0.25), d=np.int64(7), e=np.array([3.0]), f=torch.tensor(4), g=torch.ones(1, 1))
    job.log(h=np.bool_(True), i=True, j=np.float64(9), k=torch.tensor(2.0, requires_grad=True) * 2, m=np.array(5))
    assert job._values.latest == {
        "a": 1,
        "b": 2.5,
        "c": 0.25,
        "d": 7,
        "e": 3,
        "f": 4,
        "g": 1,
        "h": 1,
        "i": 1,
        "j": 9,
        "k": 4,
        "m": 5,
    }
    assert job._values.not_finite == 0
    job.log(loss=np.float32("nan"))
    assert math.isnan(job._values.latest["loss"])
    assert job._values.not_finite == 1


@pytest.mark.parametrize(
    "value", ["high", None, [1.0], np.zeros(2), torch.zeros(2)], ids=["text", "none", "a list", "an array", "a tensor"]
)
def test_what_is_not_one_number_is_not_logged_and_the_error_names_it(any_job, value):
    with pytest.raises(TypeError, match=r"job\.log\(loss=\.\.\.\) got a .*; give it one number"):
        any_job.job.log(loss=value)
