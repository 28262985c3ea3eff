"""A job alone in one process equals a plain PyTorch loop over the same order of batches."""

from __future__ import annotations

import atexit
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shoal import trainer
from shoal.trainer.alone import AloneJob
from shoal.trainer.describe import describe
from shoal.trainer.order import Order

EPOCHS, SEED = 2, 11


@pytest.fixture(autouse=True)
def signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def job():
    made = AloneJob(epochs=EPOCHS, seed=SEED)
    yield made
    if made._feed is not None:
        made._feed.close()
        atexit.unregister(made._feed.close)


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def data():
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(54, 4, generator=generator), torch.randn(54, 1, generator=generator))


def sgd(m):
    return torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9)


OPTIMIZERS = {
    "sgd": sgd,
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05),
}


def plain(make, loader, *, accumulate=1, clip=None, make_scheduler=None, task_batches=None):
    """The loop that everybody knows, in the job's order."""
    m = model()
    optimizer = make(m)
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    shape = describe(m, [optimizer], loader, accumulate=accumulate, task_batches=task_batches).shape
    order = Order(shape, SEED)
    for epoch in range(EPOCHS):
        for task in range(order.plan.tasks):
            for batch in range(order.plan.batches_in(task)):
                x, y = loader.dataset[order.indices(epoch, task, batch)]
                (nn.functional.mse_loss(m(x), y) / accumulate).backward()
                if (batch + 1) % accumulate == 0 or batch + 1 == order.plan.batches_in(task):
                    if clip:
                        nn.utils.clip_grad_norm_(m.parameters(), clip)
                    optimizer.step()
                    optimizer.zero_grad()
                if scheduler is not None:
                    scheduler.step()
    return m


def equal(found, wanted):
    for name, value in wanted.state_dict().items():
        assert torch.allclose(found.state_dict()[name].double(), value.double(), atol=1e-6, rtol=1e-6), name


@pytest.mark.parametrize("zero_after", [False, True], ids=["zero before", "zero after"])
@pytest.mark.parametrize(("shuffle", "drop_last"), [(True, False), (False, True)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_a_plain_loop(job, tmp_path, name, shuffle, drop_last, zero_after):
    make = OPTIMIZERS[name]
    loader = DataLoader(data(), batch_size=4, shuffle=shuffle, drop_last=drop_last)
    m = model()
    m, optimizer, batches = job.prepare(m, make(m), loader)
    seen = 0
    for _ in job.epochs():
        for x, y in batches:
            seen += len(x)
            if not zero_after:
                optimizer.zero_grad(set_to_none=False)
            nn.functional.mse_loss(m(x), y).backward()
            optimizer.step()
            if zero_after:
                optimizer.zero_grad()
    assert seen == EPOCHS * (52 if drop_last else 54)
    wanted = plain(make, loader)
    equal(m, wanted)
    fresh = model()
    fresh.load_state_dict(load_file(job.save(tmp_path / "m.safetensors")), strict=True)
    equal(fresh, wanted)


def test_accumulation_clipping_and_a_scheduler(job):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    loader = DataLoader(data(), batch_size=4, shuffle=True)
    m = model()
    inner = sgd(m)
    m, optimizer, batches = job.prepare(m, inner, loader, scheduler=schedule(inner), accumulate=2, task_batches=4)
    for _ in job.epochs():
        for x, y in batches:
            optimizer.zero_grad()
            (nn.functional.mse_loss(m(x), y) / 2).backward()
            if optimizer.closes:
                nn.utils.clip_grad_norm_(m.parameters(), 0.1)
            optimizer.step()
    with pytest.warns(UserWarning, match="optimizer.step"):
        wanted = plain(sgd, loader, accumulate=2, clip=0.1, make_scheduler=schedule, task_batches=4)
    equal(m, wanted)


def test_a_batch_without_a_step_changes_nothing(job):
    loader = DataLoader(data(), batch_size=4)
    m = model()
    m, optimizer, batches = job.prepare(m, sgd(m), loader)
    before = [p.detach().clone() for p in m.parameters()]
    for _ in job.epochs():
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(m(x), y).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


def test_an_error_of_the_dataset_reaches_the_loop(job):
    class Broken(TensorDataset):
        def __getitem__(self, index):
            if index == 30:
                raise KeyError("sample 30 is broken")
            return super().__getitem__(index)

    m = model()
    _, _, batches = job.prepare(m, sgd(m), DataLoader(Broken(*data().tensors), batch_size=4))
    epochs = job.epochs()
    next(epochs)
    with pytest.raises(KeyError, match="sample 30 is broken"):
        list(batches)


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("epochs", 2.0), ("epochs", True), ("seed", -1), ("seed", 2**63)]
)
def test_what_join_cannot_be_given(name, value):
    with pytest.raises(trainer.Refusal, match=f"join got {name}="):
        trainer.join(**{name: value})
