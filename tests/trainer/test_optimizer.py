"""The script's optimizers keep their identity and behaviour; averages and bounds equal those computed by torch."""

from __future__ import annotations

import pytest
import torch
import torch.optim.optimizer as torch_optimizer
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shoal.trainer.optim.optimizer import plain_step, share
from shoal.trainer.refusal import Refused
from tests.trainer.toy import EPOCHS, STEPS, compare, data, halves, loader_of, loss_of, model, plainly, sgd


class Steps:
    """Carries out an optimizer's step only if `last` is set."""

    def __init__(self):
        self.calls = []
        self.last = True

    def step(self, optimizer, closure):
        self.calls.append(optimizer)
        return plain_step(optimizer, closure) if self.last else None

    def closes(self):
        return self.last

    def may_clear(self, optimizer):
        return self.last


def shared():
    m = nn.Linear(1, 1)
    optimizer, steps = torch.optim.AdamW(m.parameters(), lr=0.1), Steps()
    share(optimizer, steps)
    return m, optimizer, steps


def test_it_keeps_identity_class_and_groups():
    m, optimizer, steps = shared()
    other = torch.optim.AdamW(m.parameters(), lr=0.1)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (type(optimizer).__name__, type(optimizer).__module__) == ("AdamW", torch.optim.AdamW.__module__)
    assert optimizer.param_groups[0]["params"] == list(m.parameters())
    assert type(other) is torch.optim.AdamW, "no other optimizer is touched"
    m(torch.ones(1)).backward()
    optimizer.step()
    assert steps.calls == [optimizer]


def test_a_step_that_does_not_count_clears_and_moves_nothing():
    m, optimizer, steps = shared()
    before = m.weight.detach().clone()
    steps.last = False
    m(torch.ones(1)).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert (optimizer.closes, m.weight.grad.tolist(), torch.equal(m.weight, before)) == (False, [[1.0]], True)
    steps.last = True
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert (optimizer.closes, m.weight.grad.tolist(), torch.equal(m.weight, before)) == (True, [[0.0]], False)


def test_a_scheduler_that_was_made_before_does_not_keep_the_old_step():
    m = nn.Linear(1, 1)
    optimizer, steps = torch.optim.SGD(m.parameters(), lr=0.1), Steps()
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    share(optimizer, steps)
    optimizer.step()
    assert steps.calls == [optimizer]


def test_its_options_may_be_loaded_and_its_state_may_not():
    m, optimizer, _ = shared()
    with pytest.raises(Refused, match=r"optimizer\.state_dict\(\): the optimizer's state is on the parameter servers"):
        optimizer.state_dict()
    plain = torch.optim.AdamW(m.parameters(), lr=0.5, weight_decay=0.25)
    optimizer.load_state_dict(plain.state_dict())
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.5, 0.25)
    assert optimizer.param_groups[0]["params"] == list(m.parameters())
    with pytest.raises(Refused, match="its parameter groups are others than this optimizer's"):
        optimizer.load_state_dict(torch.optim.AdamW([m.weight]).state_dict())
    m(torch.ones(1)).backward()
    plain.step()
    with pytest.raises(Refused, match=r"optimizer\.load_state_dict after prepare: the optimizer's state is on the"):
        optimizer.load_state_dict(plain.state_dict())
    with pytest.raises(Refused, match=r"optimizer\.add_param_group after prepare"):
        optimizer.add_param_group({"params": []})


# --- Hooks ---


def test_hooks_are_called_as_in_a_plain_loop(any_job):
    def train(side):
        seen = []

        def pre(optimizer, args, kwargs):
            seen.append(("pre", optimizer is side.optimizer, len(args), kwargs, round(side.model[2].bias.item(), 6)))

        def post(optimizer, args, kwargs):
            seen.append(("post", optimizer is side.optimizer, len(args), kwargs, round(side.model[2].bias.item(), 6)))

        side.optimizer.register_step_pre_hook(pre)
        side.optimizer.register_step_post_hook(post)
        plainly(side)
        return seen

    seen = compare(any_job, train)
    assert [name for name, *_ in seen] == ["pre", "post"] * (EPOCHS * STEPS)


def test_global_hooks_are_called_too(any_job):
    def train(side):
        seen = []

        def noting(name):
            # The parameter servers of the test call torch's optimizers in this process, too.
            return lambda optimizer, *_: seen.append(name) if optimizer is side.optimizer else None

        handles = [
            torch_optimizer.register_optimizer_step_pre_hook(noting("pre")),
            torch_optimizer.register_optimizer_step_post_hook(noting("post")),
        ]
        try:
            plainly(side)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    assert compare(any_job, train) == ["pre", "post"] * (EPOCHS * STEPS)


def test_a_hook_that_changes_gradients_before_the_step_counts(any_job):
    def train(side):
        def halve(optimizer, *_):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad.mul_(0.5)

        side.optimizer.register_step_pre_hook(halve)
        plainly(side)

    compare(any_job, train)


def one_step(job, optimizer, m, batches):
    for _ in job.epochs():
        for x, y in batches:
            loss_of(m, x, y).backward()
            optimizer.step()
            optimizer.zero_grad()


def test_a_hook_that_changes_the_arguments_of_step_is_refused(any_job):
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of())
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: (args, kwargs))
    with pytest.raises(Refused, match="a step_pre_hook of the optimizer changes the arguments of step"):
        one_step(any_job.job, optimizer, m, batches)


def test_a_hook_that_writes_parameters_after_the_step_is_refused(any_job):
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of())

    def clip(*_):
        for parameter in m.parameters():
            parameter.data.clamp_(-0.01, 0.01)

    optimizer.register_step_post_hook(clip)
    with pytest.raises(Refused, match="was written by the script after prepare"):
        one_step(any_job.job, optimizer, m, batches)


def test_a_hook_of_a_step_that_does_not_count_is_not_called(any_job):
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of(), accumulate=2, task_batches=2)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for _ in any_job.job.epochs():
        for x, y in batches:
            optimizer.zero_grad()
            (loss_of(m, x, y) / 2).backward()
            optimizer.step()
    assert len(calls) == EPOCHS * STEPS // 2


def test_an_option_that_parameter_servers_do_not_support_is_refused_at_the_step(any_job):
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of())
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises((Refused, TypeError, ValueError)):
        one_step(any_job.job, optimizer, m, batches)


# --- Averages and bounds ---


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.second(self.first(x))))


AVERAGED = {
    "each batch": (model, sgd, plainly),
    "tied weights": (Tied, sgd, plainly),
}


def some_skipped(side):
    for number, (x, y) in enumerate(side.batches):
        side.optimizer.zero_grad()
        loss_of(side.model, x, y).backward()
        if number % 3 != 1:
            side.optimizer.step()


def one_of_two(side):
    for number, (x, y) in enumerate(side.batches):
        side.model.zero_grad()
        loss_of(side.model, x, y).backward()
        side.optimizer[number % 2].step()


AVERAGED |= {"skipped batches": (model, sgd, some_skipped), "one of two optimizers": (model, halves, one_of_two)}


@pytest.mark.parametrize("name", AVERAGED)
def test_the_average_of_the_weights_is_that_of_torch(any_job, tmp_path, name):
    build, make, run = AVERAGED[name]

    def train(side):
        if side.job is not None:
            run(side)
            side.job.save(tmp_path / "model.safetensors")
            return
        average = AveragedModel(side.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        many = side.optimizer if isinstance(side.optimizer, list) else [side.optimizer]
        for one in many:
            one.register_step_post_hook(lambda *_: average.update_parameters(side.model))
        run(side)
        expected.update(average.module.state_dict())

    expected = {}
    compare(any_job, train, build=build, make=make, ema=0.8)
    saved = load_file(tmp_path / "model-ema.safetensors")
    assert saved.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(saved[key], value, rtol=1e-6, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    build().load_state_dict(saved, strict=True)
    plain = load_file(tmp_path / "model.safetensors")
    assert any(not torch.equal(plain[key], saved[key]) for key in saved)


def test_an_average_of_no_step_is_the_model(any_job, tmp_path):
    m = model()
    m, _, _ = any_job.job.prepare(m, sgd(m), loader_of(), ema=0.9)
    any_job.job.save(tmp_path / "m.safetensors")
    saved = load_file(tmp_path / "m-ema.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in m.state_dict().items())


def test_without_a_decay_there_is_no_average(any_job, tmp_path):
    m = model()
    m, _, _ = any_job.job.prepare(m, sgd(m), loader_of())
    any_job.job.save(tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("turns", [False, True], ids=["each batch", "in turn"])
@pytest.mark.parametrize("make", [sgd, halves], ids=["one optimizer", "two optimizers"])
def test_bounds_are_kept_after_every_step(any_job, make, turns):
    bounds = {"0.*": (-0.125, 0.125), "2.weight": (0.0, float("inf"))}
    norms = {"*.weight": 0.25}

    def train(side):
        seen = []
        many = side.optimizer if isinstance(side.optimizer, list) else [side.optimizer]
        for number, (x, y) in enumerate(side.batches):
            side.model.zero_grad()
            loss_of(side.model, x, y).backward()
            for one in many if not turns else [many[number % len(many)]]:
                one.step()
            if side.job is None:
                with torch.no_grad():
                    for parameter in side.model[0].parameters():
                        parameter.clamp_(-0.125, 0.125)
                    side.model[2].weight.clamp_(min=0.0)
                    for part in (side.model[0], side.model[2]):
                        part.weight.renorm_(2, 0, 0.25)
            if side.job is None or len(many) == 1:  # with several, the other parameters change at the batch's end
                largest, least = side.model[0].weight.detach().abs().max(), side.model[2].weight.detach().min()
                norm = side.model[0].weight.detach().norm(dim=1).max()
                seen.append((float(largest) <= 0.125, float(least) >= 0, float(norm) <= 0.25 + 1e-6))
        return set(seen) or {(True, True, True)}

    assert compare(any_job, train, make=make, clamp=bounds, max_norm=norms) == {(True, True, True)}


def test_a_batch_that_is_skipped_is_not_clamped(any_job):
    m = model()
    before = [p.detach().clone() for p in m.parameters()]
    m, _, batches = any_job.job.prepare(m, sgd(m), data(), batch_size=4, clamp={"*": (0.0, 0.0)})
    for _ in any_job.job.epochs():
        for x, y in batches:
            m.zero_grad()
            loss_of(m, x, y).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


def test_an_optimizer_that_prepare_did_not_get_is_refused_and_one_in_an_evaluation_is_not(any_job):
    m, (temperature,) = model(), [torch.nn.Parameter(torch.ones(1))]
    m, _, batches = any_job.job.prepare(m, sgd(m), loader_of())
    other = torch.optim.SGD([temperature], lr=0.1)
    for _ in any_job.job.epochs():
        for x, y in batches:
            assert any_job.job.evaluate(lambda _: other.step()) is None
            (loss_of(m, x, y) * temperature).sum().backward()
            with pytest.raises(Refused, match=r"SGD\.step\(\) of an optimizer that prepare did not get"):
                other.step()
            return
