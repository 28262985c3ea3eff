"""What a script trains, put into words; and what is refused, with the reason and the fix."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from shoal.trainer.describe import Refusal, as_loader, describe
from shoal.trainer.optimizer import SharedOptimizer
from shoal.trainer.schedule import Schedule
from shoal.wire.shapes import differences, digest


def numbers(count=20):
    return TensorDataset(torch.arange(float(count)).reshape(-1, 1), torch.ones(count, 1))


def words(model=None, optimizers=None, data=None, *, accumulate=1, task_batches=None, **loader):
    model = model if model is not None else nn.Linear(1, 1)
    optimizers = optimizers or [torch.optim.SGD(model.parameters(), lr=0.1)]
    made = DataLoader(data if data is not None else numbers(), **({"batch_size": 4, "shuffle": True} | loader))
    return describe(
        model, optimizers, as_loader(made, batch_size=None), accumulate=accumulate, task_batches=task_batches
    )


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Endless(Dataset):
    def __getitem__(self, index):
        return index


class MySGD(torch.optim.SGD):
    pass


def sparse(**options):
    return nn.Embedding(10, 2, sparse=True, **options)


def shared_table():
    model = nn.ModuleDict({"a": sparse(), "b": sparse()})
    model["b"].weight = model["a"].weight
    return model


def foreign():
    return words(optimizers=[torch.optim.SGD(nn.Linear(7, 1).parameters(), lr=0.1)])


def twice():
    model = nn.Linear(1, 1)
    return words(model, [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.1)])


def half():
    model = nn.Linear(1, 1)
    return words(model, [torch.optim.SGD([model.weight], lr=0.1)])


def with_optimizer(make, model=None):
    model = model if model is not None else nn.Linear(1, 1)
    return words(model, [make(model.parameters())])


REFUSED = {
    "an IterableDataset has no samples that could be named": lambda: as_loader(Stream(), batch_size=2),
    "an IterableDataset has no samples": lambda: as_loader(DataLoader(Stream(), batch_size=2), batch_size=None),
    "custom batch_sampler": lambda: as_loader(
        DataLoader(numbers(), batch_sampler=BatchSampler(SequentialSampler(numbers()), 2, drop_last=False)),
        batch_size=None,
    ),
    "sampler WeightedRandomSampler is a custom one": lambda: as_loader(
        DataLoader(numbers(), sampler=WeightedRandomSampler([1.0] * 20, 20)), batch_size=None
    ),
    "without batch_size; add batch_size=": lambda: as_loader(numbers(), batch_size=None),
    "the dataset Endless has no __len__; add it": lambda: as_loader(Endless(), batch_size=2),
    "the dataset has no samples": lambda: as_loader(numbers(0), batch_size=2),
    "prepare got a list as loader": lambda: as_loader([1, 2], batch_size=2),
    "drop_last leaves no batch: 20 samples are fewer than one batch of 32": lambda: words(
        batch_size=32, drop_last=True
    ),
    "accumulate=0; it must be at least 1": lambda: words(accumulate=0),
    "task_batches=3; it must be a positive multiple of accumulate=2": lambda: words(accumulate=2, task_batches=3),
    "wrapped in DataParallel; give prepare the plain module": lambda: words(nn.DataParallel(nn.Linear(1, 1))),
    "parameter bias is trained but no optimizer holds it": half,
    "an optimizer holds a parameter of shape [1, 7] that the model does not have": foreign,
    "parameter weight is in two parameter groups; keep one": twice,
    "LBFGS cannot run on parameter servers": lambda: with_optimizer(torch.optim.LBFGS),
    "MySGD is not one of torch.optim's own classes": lambda: with_optimizer(lambda p: MySGD(p, lr=0.1)),
    "has max_norm": lambda: with_optimizer(lambda p: torch.optim.SGD(p, lr=0.1), sparse(max_norm=1.0)),
    "is sparse and shared between modules": lambda: with_optimizer(
        lambda p: torch.optim.SGD(p, lr=0.1), shared_table()
    ),
    "with momentum=0.9 would have to change rows": lambda: with_optimizer(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), sparse()
    ),
    "Adam cannot train an embedding with sparse=True": lambda: with_optimizer(torch.optim.Adam, sparse()),
    "the dtype complex64, which parameter servers do not hold": lambda: words(nn.Linear(1, 1, dtype=torch.complex64)),
    "is not initialised yet (a lazy module); run one forward pass first": lambda: with_optimizer(
        lambda p: torch.optim.SGD(p, lr=0.1), nn.LazyLinear(3)
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_trained_is_refused_with_the_fix(said):
    with pytest.raises(Refusal, match=re.escape(said)):
        REFUSED[said]()


def test_schedulers_that_follow_a_metric_or_another_optimizer_are_refused():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(Refusal, match="ReduceLROnPlateau follows a metric"):
        Schedule(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), optimizer.param_groups, steps_per_value=1)
    with pytest.raises(Refusal, match="belongs to another optimizer"):
        Schedule(torch.optim.lr_scheduler.StepLR(optimizer, 2), [], steps_per_value=1)


def test_the_state_of_the_optimizer_is_not_here():
    made = SharedOptimizer(
        torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), closing=lambda: True, stepped=lambda: None
    )
    for call in (made.state_dict, lambda: made.load_state_dict({})):
        with pytest.raises(Refusal, match="on the parameter servers"):
            call()


def test_tied_weights_are_one_and_frozen_ones_are_none():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.BatchNorm1d(1))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    described = words(model, [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)])
    assert [p.name for p in described.shape.dense] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [b.name for b in described.shape.buffers] == ["2.running_mean", "2.running_var", "2.num_batches_tracked"]


@pytest.mark.parametrize(
    ("fill", "family"),
    [
        (lambda weight: nn.init.constant_(weight, 0.5), "constant"),
        (lambda weight: nn.init.normal_(weight, std=0.1), "normal"),
        (lambda weight: nn.init.uniform_(weight, -0.3, 0.7), "uniform"),
    ],
)
def test_a_tables_first_values_come_from_what_it_was_initialised_with(fill, family):
    torch.manual_seed(0)
    model = nn.Embedding(2000, 4, sparse=True, padding_idx=3)
    fill(model.weight)
    with torch.no_grad():
        model.weight[3] = 0
    table = with_optimizer(torch.optim.SparseAdam, model).shape.tables[0]
    assert (table.family, table.zero_rows) == (family, [3])
    if family == "uniform":
        assert (table.first, table.second) == pytest.approx((-0.3, 0.7), abs=0.03)
    elif family == "normal":
        assert (table.first, table.second) == pytest.approx((0.0, 0.1), abs=0.01)
    else:
        assert table.first == 0.5


def test_a_fingerprint_knows_length_and_contents_and_bears_random_augmentation():
    class Noisy(Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return torch.rand(3)

    one = words().shape
    assert words().shape == one
    assert digest(words().shape) == digest(one)
    assert words(data=Noisy()).shape == words(data=Noisy()).shape
    other = TensorDataset(torch.arange(20.0).reshape(-1, 1) + 1, torch.ones(20, 1))
    assert differences(words(data=other).shape, one) == [
        "the dataset's contents differ (its fingerprint changed since the job began)"
    ]


class Made(Dataset):
    """Every look makes the sample anew, so nothing in it has the address that it had in another process."""

    def __init__(self, make):
        self.make = make
        self.kept = []  # so that the next one lies elsewhere

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.kept.append(self.make(index))
        return self.kept[-1]


@pytest.mark.parametrize(
    "make",
    [
        lambda index: np.array([f"text {index}", object()], dtype=object),
        lambda index: (object(), {"id": index, "words": {"a", "b"}}),
        lambda index: torch.eye(3).to_sparse(),
        lambda index: [np.float32(index), None, True, b"x", "y"],
    ],
    ids=["an array of objects", "things unknown", "a sparse tensor", "plain values"],
)
def test_a_fingerprint_never_depends_on_where_things_lie_in_memory(make):
    here, there = Made(make), Made(make)
    assert words(data=here).shape.fingerprint == words(data=there).shape.fingerprint


def test_a_fingerprint_sees_values_of_every_plain_kind():
    seen = {
        words(data=Made(lambda index, value=value: (value, torch.zeros(1)))).shape.fingerprint
        for value in (0, 1, 1.5, "a", b"a", np.float32(2), np.arange(3), torch.ones(2), {"a": 1}, [7])
    }
    assert len(seen) == 10


def test_differences_name_what_differs():
    one = words().shape
    wider = words(nn.Linear(1, 2)).shape
    assert differences(wider, one) == [
        "parameter weight is float32 [2, 1], group 0 here, float32 [1, 1], group 0 in the job",
        "parameter bias is float32 [2], group 0 here, float32 [1], group 0 in the job",
    ]
    assert differences(words(batch_size=5).shape, one) == ["the batch size is 5 here, 4 in the job"]
    assert differences(words(data=numbers(10)).shape, one) == ["the dataset's length is 10 here, 20 in the job"]
    assert differences(one, one) == []
