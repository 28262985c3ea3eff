"""What a script trains is described to the master, or refused with the reason and the fix."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from shoal.protocol.model_spec import differences, digest
from shoal.trainer.data.dataset import as_loader, describe_data
from shoal.trainer.refusal import Refusal
from shoal.trainer.script.description import AfterStep, describe


def numbers(count=20):
    return TensorDataset(torch.arange(float(count)).reshape(-1, 1), torch.ones(count, 1))


def describe_script(
    model=None,
    optimizers=None,
    data=None,
    *,
    accumulate=1,
    task_batches=None,
    ema=0.0,
    clamp=None,
    max_norm=None,
    **loader,
):
    model = model if model is not None else nn.Linear(1, 1)
    optimizers = optimizers or [torch.optim.SGD(model.parameters(), lr=0.1)]
    made = DataLoader(data if data is not None else numbers(), **({"batch_size": 4, "shuffle": True} | loader))
    return describe(
        model,
        optimizers,
        describe_data(made, batch_size=None),
        accumulate=accumulate,
        task_batches=task_batches,
        after=AfterStep(ema, clamp or {}, max_norm or {}),
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
    return describe_script(optimizers=[torch.optim.SGD(nn.Linear(7, 1).parameters(), lr=0.1)])


def twice():
    model = nn.Linear(1, 1)
    return describe_script(
        model, [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.1)]
    )


def stepped():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 1)).backward()
    optimizer.step()
    return describe_script(model, [optimizer])


def parametrized_table():
    model = sparse()
    nn.utils.parametrizations.weight_norm(model)
    return model


def with_sampler(sampler, **options):
    return describe_script(shuffle=None, sampler=sampler, **options)


class Endlessly(Sampler):
    def __iter__(self):
        return iter(int, 1)

    def __len__(self):
        return 3


class Forgetful(Sampler):
    """A sampler that continues from where it ended."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        self.at += 1
        return iter([self.at, self.at + 1])

    def __len__(self):
        return 2


class Uncounted(Sampler):
    def __iter__(self):
        return iter([1])


def uneven():
    return describe_script(batch_size=1, shuffle=None, batch_sampler=[[1, 2], [3], [4, 5]])


def describe_with_table(**options):
    model = sparse()
    return describe_script(model, [torch.optim.SparseAdam(model.parameters())], **options)


def only_weight(**options):
    model = nn.Linear(1, 1)
    return describe_script(model, [torch.optim.SGD([model.weight], lr=0.1)], **options)


def with_optimizer(make, model=None):
    model = model if model is not None else nn.Linear(1, 1)
    return describe_script(model, [make(model.parameters())])


REFUSED = {
    "Stream is an IterableDataset: it has no samples that could be named": lambda: as_loader(Stream(), batch_size=2),
    "Stream is an IterableDataset": lambda: as_loader(DataLoader(Stream(), batch_size=2), batch_size=None),
    "the batch sampler list gives batches of different sizes": uneven,
    "the sampler Endlessly gives more indices than the 3 that its __len__ says": lambda: with_sampler(Endlessly()),
    "the sampler Forgetful does not give the same order twice for the same seed": lambda: with_sampler(Forgetful()),
    "the sampler Uncounted has no __len__": lambda: with_sampler(Uncounted()),
    "the DataLoader has batch_size=None": lambda: as_loader(DataLoader(numbers(), batch_size=None), batch_size=None),
    "beside a DataLoader with batch_size=2": lambda: as_loader(DataLoader(numbers(), batch_size=2), batch_size=3),
    "without batch_size; add batch_size=": lambda: as_loader(numbers(), batch_size=None),
    "the dataset Endless has no __len__; add it": lambda: as_loader(Endless(), batch_size=2),
    "the dataset has no samples": lambda: as_loader(numbers(0), batch_size=2),
    "prepare got a list as loader": lambda: as_loader([1, 2], batch_size=2),
    "drop_last leaves no batch: 20 samples are fewer than one batch of 32": lambda: describe_script(
        batch_size=32, drop_last=True
    ),
    "accumulate=0; it must be a whole number of at least 1": lambda: describe_script(accumulate=0),
    "task_batches=3; it must be a positive multiple of accumulate=2": lambda: describe_script(
        accumulate=2, task_batches=3
    ),
    "wrapped in DataParallel; give prepare the plain module": lambda: describe_script(nn.DataParallel(nn.Linear(1, 1))),
    "prepare got a list as model; give it one nn.Module": lambda: describe_script([1], [object()]),
    "the Adam has a state already": stepped,
    "is on the meta device and has no values": lambda: describe_script(nn.Linear(1, 1, device="meta")),
    "its weight is parametrized, which needs all rows": lambda: with_optimizer(
        lambda p: torch.optim.SGD(p, lr=0.1), parametrized_table()
    ),
    "ema=1.0; it must be a decay from 0": lambda: describe_script(ema=1.0),
    "ema=0.9 cannot average the sparse table weight": lambda: describe_with_table(ema=0.9),
    "clamp={'weight': (1, 0)}; give (low, high)": lambda: describe_script(clamp={"weight": (1, 0)}),
    "clamp: no parameter is named 'fc.*'; there are weight, bias": lambda: describe_script(clamp={"fc.*": (0, 1)}),
    "max_norm={'weight': -1}; give a number above 0": lambda: describe_script(max_norm={"weight": -1}),
    "max_norm={'weight': inf}; give a number above 0": lambda: describe_script(max_norm={"weight": float("inf")}),
    "max_norm={'weight': (0, 1)}; give a number above 0": lambda: describe_script(max_norm={"weight": (0, 1)}),
    "max_norm: no parameter is named 'fc.*'; there are weight, bias": lambda: describe_script(max_norm={"fc.*": 1.0}),
    "max_norm: parameter bias has the shape [1], and so no rows": lambda: describe_script(max_norm={"*": 1.0}),
    "max_norm: parameter bias is not in an optimizer": lambda: only_weight(max_norm={"bias": 1.0}),
    "max_norm: parameter weight is a sparse table": lambda: describe_with_table(max_norm={"weight": 1.0}),
    "clamp: parameter weight is a sparse table": lambda: describe_with_table(clamp={"weight": (0, 1)}),
    "clamp: parameter bias is not in an optimizer": lambda: only_weight(clamp={"bias": (0, 1)}),
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
    "the dtype complex64, which parameter servers do not hold": lambda: describe_script(
        nn.Linear(1, 1, dtype=torch.complex64)
    ),
    "is not initialised yet (a lazy module); run one forward pass first": lambda: with_optimizer(
        lambda p: torch.optim.SGD(p, lr=0.1), nn.LazyLinear(3)
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_trained_is_refused_with_the_fix(reason):
    with pytest.raises(Refusal, match=re.escape(reason)):
        REFUSED[reason]()


def test_a_parameter_that_no_optimizer_holds_is_fixed_as_in_plain_pytorch():
    described = only_weight()
    assert [p.name for p in described.shape.dense] == ["weight"]
    assert [t.name for t in described.shape.fixed] == ["bias"]
    assert [name for name, _ in described.watched] == ["weight", "bias"]


def test_a_frozen_parameter_of_an_optimizer_is_trained_for_it_may_be_unfrozen():
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    assert [p.name for p in describe_script(model).shape.dense] == ["weight", "bias"]


def test_buffers_that_are_not_saved_are_given_and_not_merged():
    model = nn.Linear(1, 1)
    model.register_buffer("mean", torch.zeros(2))
    model.register_buffer("grid", torch.zeros(3), persistent=False)
    model.register_buffer("seen", torch.zeros((), dtype=torch.int64))
    model.register_buffer("nothing", None)
    described = describe_script(model)
    assert [(b.name, b.merge) for b in described.shape.buffers] == [("mean", "mean"), ("seen", "last")]
    assert [t.name for t in described.shape.fixed] == ["grid"]
    model.mean = torch.ones(2)
    assert described.buffers[0].tensor is model.mean
    del model.mean
    with pytest.raises(Refusal, match="buffer mean was removed after prepare"):
        _ = described.buffers[0].tensor


def test_large_frozen_values_are_compared_and_small_ones_sent(monkeypatch):
    monkeypatch.setattr("shoal.trainer.script.description.FIXED_BYTES", 100)
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(1, 1))
    described = describe_script(model, [torch.optim.SGD(model[1].parameters(), lr=0.1)])
    assert (described.shape.fixed, described.fixed) == ([], [])
    before = described.shape.frozen
    assert before == describe_script(model, [torch.optim.SGD(model[1].parameters(), lr=0.1)]).shape.frozen
    with torch.no_grad():
        model[0].weight[3, 4] += 1
    assert describe_script(model, [torch.optim.SGD(model[1].parameters(), lr=0.1)]).shape.frozen != before


def test_a_compiled_models_names_are_those_of_the_model_itself():
    model = nn.Sequential(torch.compile(nn.Linear(1, 1), backend="eager"), nn.BatchNorm1d(1))
    described = describe_script(model)
    assert [p.name for p in described.shape.dense] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert described.shape.buffers[0].name == "1.running_mean"


def test_norms_are_those_of_all_parameters_whose_name_matches():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    described = describe_script(model, max_norm={"0.weight": 2, "[1-9].weight": 0.5})
    assert {p.name: p.max_norm for p in described.shape.dense} == {
        "0.weight": 2.0,
        "0.bias": 0.0,
        "1.weight": 0.5,
        "1.bias": 0.0,
    }


def test_bounds_are_those_of_all_parameters_whose_name_matches():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    described = describe_script(model, clamp={"*.weight": (-0.5, float("inf")), "1.*": (0, 1)})
    assert {p.name: p.clamp for p in described.shape.dense} == {
        "0.weight": [-0.5, None],
        "0.bias": [],
        "1.weight": [0.0, 1.0],
        "1.bias": [0.0, 1.0],
    }


def test_tied_weights_are_one_and_frozen_ones_are_none():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.BatchNorm1d(1))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    described = describe_script(model, [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)])
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
def test_a_large_tables_first_values_follow_its_initialisation(monkeypatch, fill, family):
    monkeypatch.setattr("shoal.trainer.script.description.GIVEN_TABLE_BYTES", 0)
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


def test_a_tables_first_values_are_the_modules():
    table = with_optimizer(torch.optim.SparseAdam, sparse(padding_idx=3)).shape.tables[0]
    assert (table.family, table.zero_rows) == ("given", [])


def test_a_sampler_is_named_and_its_order_belongs_to_the_fingerprint():
    plain = describe_script().shape
    assert (plain.sampler, plain.shuffle, plain.samples) == ("", True, 20)
    weighted = with_sampler(WeightedRandomSampler([1.0] * 20, 12)).shape
    assert (weighted.sampler, weighted.shuffle, weighted.samples) == ("WeightedRandomSampler", False, 12)
    part = with_sampler(SubsetRandomSampler(range(8))).shape
    assert part.samples == 8
    assert part.fingerprint != with_sampler(SubsetRandomSampler(range(1, 9))).shape.fingerprint
    again = with_sampler(RandomSampler(numbers(), replacement=True)).shape
    assert (again.sampler, again.samples) == ("RandomSampler", 20)
    cut = describe_script(
        batch_size=1, shuffle=None, batch_sampler=BatchSampler(SequentialSampler(numbers()), 6, drop_last=True)
    ).shape
    assert (cut.sampler, cut.batch_size, cut.drop_last, cut.samples) == ("", 6, True, 20)


class NeverRun(Dataset):
    """A dataset whose code must not run in the script's process."""

    def __init__(self, count=5, fingerprint=None):
        self.count = count
        if fingerprint is not None:
            self.fingerprint = fingerprint

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        raise AssertionError("the dataset's code ran at prepare")


def test_a_fingerprint_contains_length_and_contents_without_running_the_datasets_code():
    one = describe_script().shape
    assert describe_script().shape == one
    assert digest(describe_script().shape) == digest(one)
    other = TensorDataset(torch.arange(20.0).reshape(-1, 1) + 1, torch.ones(20, 1))
    assert differences(describe_script(data=other).shape, one) == [
        "the dataset's contents differ (its fingerprint changed since the job began)"
    ]
    seen = [
        describe_script(data=made).shape.fingerprint
        for made in (
            NeverRun(),
            NeverRun(6),
            NeverRun(fingerprint="a"),
            NeverRun(fingerprint="b"),
            numbers(),
            Subset(numbers(), [1, 2]),
            Subset(numbers(), [2, 1]),
            Subset(NeverRun(), torch.tensor([1, 2])),
            ConcatDataset([numbers(), numbers(5)]),
            ConcatDataset([numbers(5), numbers()]),
            TensorDataset(torch.arange(20).reshape(-1, 1), torch.ones(20, 1)),
        )
    ]
    assert len(set(seen)) == len(seen)
    assert describe_script(data=NeverRun()).shape == describe_script(data=NeverRun()).shape
    assert describe_script(data=NeverRun(fingerprint="a")).shape.fingerprint == seen[2]


def test_differences_name_what_differs():
    one = describe_script().shape
    wider = describe_script(nn.Linear(1, 2)).shape
    assert differences(wider, one) == [
        "parameter weight is float32 [2, 1], group 0 here, float32 [1, 1], group 0 in the job",
        "parameter bias is float32 [2], group 0 here, float32 [1], group 0 in the job",
    ]
    assert differences(describe_script(batch_size=5).shape, one) == ["the batch size is 5 here, 4 in the job"]
    assert differences(describe_script(data=numbers(10)).shape, one) == [
        "the dataset's length is 10 here, 20 in the job"
    ]
    assert differences(one, one) == []
