"""Buffers, compiled models and logged values, alone and with a real master and parameter servers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shoal.trainer.refusal import Refused
from tests.trainer.toy import (
    EPOCHS,
    SAMPLES,
    STEPS,
    compare,
    halves,
    loader_of,
    loss_of,
    model,
    plainly,
    sgd,
    step,
    total,
)


class Statistics(nn.Module):
    """A model with buffers that are written in place, assigned anew, counted, and not saved."""

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


@pytest.mark.parametrize("reason", WRONG_BUFFERS)
def test_a_buffer_that_trainers_could_not_merge_is_refused_alone_and_together_alike(any_job, reason):
    m = Statistics()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of())

    def run():
        for _ in any_job.job.epochs():
            for batch in batches:
                step(m, optimizer, batch)
                WRONG_BUFFERS[reason](m)

    with pytest.raises(Refused) as refused:
        run()
    assert reason in refused.value.reason


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


def discriminate_and_step(m, x, optimizer):
    m(x)
    optimizer.step()


# Torch's compiler reads .grad of every tensor at a graph break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "compiled",
    [lambda m: torch.compile(m, backend="eager", fullgraph=True), compiled_in_place, compiled_part],
    ids=["a model", "in place", "a part"],
)
def test_a_step_after_a_run_of_a_compiled_model_and_another_step_is_refused(any_job, compiled):
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
        discriminate_and_step(m, x, second)


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
