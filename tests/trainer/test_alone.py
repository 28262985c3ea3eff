"""A job alone in one process gives the same results as a plain PyTorch loop over the same order of batches."""

from __future__ import annotations

import atexit
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shoal import trainer
from shoal.protocol import environment
from shoal.trainer import joining
from tests.trainer.toy import EPOCHS, SEED, compare, equal, order_of, plain_epochs


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


def plain(make, loader):
    """Train with the usual PyTorch loop, in the job's order of batches."""
    m = model()
    optimizer = make(m)
    for _, batches in plain_epochs(order_of(m, optimizer, loader), loader):
        for x, y in batches:
            nn.functional.mse_loss(m(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return m


@pytest.mark.parametrize("zero_after", [False, True], ids=["zero before", "zero after"])
@pytest.mark.parametrize(("shuffle", "drop_last"), [(True, False), (False, True)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_a_plain_loop(alone, tmp_path, name, shuffle, drop_last, zero_after):
    make = OPTIMIZERS[name]
    loader = DataLoader(data(), batch_size=4, shuffle=shuffle, drop_last=drop_last)
    m = model()
    m, optimizer, batches = alone.prepare(m, make(m), loader)
    seen = 0
    for _ in alone.epochs():
        for x, y in batches:
            seen += len(x)
            if not zero_after:
                optimizer.zero_grad(set_to_none=False)
            nn.functional.mse_loss(m(x), y).backward()
            optimizer.step()
            if zero_after:
                optimizer.zero_grad()
    assert seen == EPOCHS * (52 if drop_last else 54)
    expected = plain(make, loader)
    equal(m, expected)
    fresh = model()
    fresh.load_state_dict(load_file(alone.save(tmp_path / "m.safetensors")), strict=True)
    equal(fresh, expected)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_accumulation_clipping_and_a_scheduler(any_job):
    def train(side):
        for number, (x, y) in enumerate(side.batches):
            closes = side.closes(number, 2)
            (nn.functional.mse_loss(side.model(x), y) / 2).backward()
            if closes:
                nn.utils.clip_grad_norm_(side.model.parameters(), 0.1)
                side.optimizer.step()
                side.scheduler.step()
                side.optimizer.zero_grad()

    loader = DataLoader(TensorDataset(*(t[:48] for t in data().tensors)), batch_size=4, shuffle=True)
    compare(
        any_job,
        train,
        build=model,
        loader=loader,
        schedule=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        accumulate=2,
        task_batches=4,
    )


def test_a_batch_without_a_step_changes_nothing(any_job):
    loader = DataLoader(data(), batch_size=4)
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader)
    before = [p.detach().clone() for p in m.parameters()]
    for _ in any_job.job.epochs():
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(m(x), y).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))
    assert any_job.skipped() == EPOCHS * 54


def test_a_script_that_never_steps_is_warned_at_the_end(alone, capsys):
    m = model()
    m, optimizer, batches = alone.prepare(m, sgd(m), DataLoader(data(), batch_size=4))
    for _ in alone.epochs():
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(m(x), y).backward()
    assert "108 of 108 samples were skipped: the script made no optimizer step for them" in capsys.readouterr().err


def test_an_error_of_the_dataset_reaches_the_loop(any_job):
    class Broken(TensorDataset):
        def __getitem__(self, index):
            if index == 30:
                raise KeyError("sample 30 is broken")
            return super().__getitem__(index)

        __getitems__ = None

    m = model()
    _, _, batches = any_job.job.prepare(m, sgd(m), DataLoader(Broken(*data().tensors), batch_size=4))
    epochs = any_job.job.epochs()
    next(epochs)
    with pytest.raises(KeyError, match="sample 30 is broken"):
        list(batches)


# --- join ---


@pytest.fixture
def not_joined(monkeypatch):
    monkeypatch.setattr(joining, "_joined", set())
    monkeypatch.delenv(environment.MASTER, raising=False)


@pytest.mark.usefixtures("not_joined")
@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("epochs", 2.0), ("epochs", True), ("seed", -1), ("seed", 2**63)]
)
def test_what_join_cannot_be_given(name, value):
    with pytest.raises(trainer.Refused, match=f"join got {name}=") as refused:
        trainer.join(**{name: value})
    assert (refused.value.code, isinstance(refused.value, SystemExit)) == (78, True)


@pytest.mark.usefixtures("not_joined")
def test_a_process_joins_once_and_its_generators_are_seeded():
    torch.manual_seed(99)
    atexit.unregister(trainer.join(seed=SEED)._report_unfinished)
    drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(SEED)))
    with pytest.raises(trainer.Refused, match=r"trainer\.join\(\) is called a second time in one process"):
        trainer.join()


ENDS = {
    "the script ended without job.prepare(...)": "",
    "the script ended without `for epoch in job.epochs():`": "job.prepare(m, o, data, batch_size=2)",
    "the script ended in epoch 1 of 1": "_, _, l = job.prepare(m, o, data, batch_size=2)\n"
    "for _ in job.epochs():\n    for b in l: sys.exit(3)",
}


@pytest.mark.slow
@pytest.mark.parametrize("reason", ENDS)
def test_an_unfinished_script_alone_prints_the_reason(tmp_path, reason):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\nfrom shoal import trainer\njob = trainer.join()\nm = torch.nn.Linear(1, 1)\n"
        "o = torch.optim.SGD(m.parameters(), lr=0.1)\ndata = torch.utils.data.TensorDataset(torch.ones(6, 1))\n"
        + ENDS[reason]
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=200)
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr
