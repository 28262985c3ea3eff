"""The loader that prepare gets is described without running the dataset's code, or refused with the fix."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from shoal.trainer.data.dataset import as_loader, describe_data
from shoal.trainer.refusal import Refusal


def numbers(count=20, *, plus=0.0):
    return TensorDataset(torch.arange(float(count)).reshape(-1, 1) + plus, torch.ones(count, 1))


def described(data=None, **options):
    options = {"batch_size": 4} | options
    return describe_data(DataLoader(data if data is not None else numbers(), **options), batch_size=None)


def by_batches(sampler, data=None):
    loader = DataLoader(data if data is not None else numbers(), batch_sampler=sampler)
    return describe_data(loader, batch_size=None)


class Untouched(Dataset):
    """A dataset whose samples must not be read in this process."""

    def __init__(self, count=20):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        raise AssertionError("read in the parent")

    __getitems__ = __getitem__


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Endless(Dataset):
    def __getitem__(self, index):
        return index


class Scaled(DataLoader):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch * 2


class Options(DataLoader):
    """A DataLoader subclass that only sets options, like those of many libraries."""

    def __init__(self, data):
        super().__init__(data, batch_size=2, collate_fn=list)


class Given(Sampler):
    def __init__(self, indices, length=None):
        self.indices = indices
        self.length = length

    def __iter__(self):
        return iter(self.indices)

    def __len__(self):
        return len(self.indices) if self.length is None else self.length


class Forever:
    def __iter__(self):
        while True:
            yield random.randrange(20)


class SaysTen(Forever):
    def __len__(self):
        return 10


class Moves(Given):
    """A sampler that continues from where the last epoch ended."""

    def __iter__(self):
        self.indices = self.indices[1:] + self.indices[:1]
        return iter(self.indices)


class OwnEntropy(Given):
    def __iter__(self):
        return iter(np.random.default_rng().permutation(self.indices).tolist())


class Remembers(Given):
    """A sampler whose later epochs depend on its first one."""

    first = None

    def set_epoch(self, epoch):
        if epoch:
            self.indices = self.indices[::-1]


REFUSED = {
    "Stream is an IterableDataset: it has no samples that could be named, so they cannot be counted exactly once; "
    "make it a map-style Dataset whose __len__": lambda: as_loader(Stream(), batch_size=2),
    "Stream is an IterableDataset": lambda: described(Stream()),
    "the dataset Endless has no __len__; add it": lambda: as_loader(Endless(), batch_size=2),
    "dataset Endless has no __len__; add it": lambda: described(Endless(), sampler=[1, 2]),
    "the dataset has no samples": lambda: as_loader(numbers(0), batch_size=2),
    "has no samples: training needs at least one": lambda: described(numbers(0)),
    "without batch_size; add batch_size=": lambda: as_loader(numbers(), batch_size=None),
    "prepare got batch_size=8 beside a DataLoader with batch_size=4; the DataLoader's counts: leave prepare's away": (
        lambda: as_loader(DataLoader(numbers(), batch_size=4), batch_size=8)
    ),
    "prepare got a list as loader; give it a torch DataLoader or Dataset": lambda: as_loader([1, 2], batch_size=2),
    "the DataLoader has batch_size=None": lambda: described(batch_size=None),
    "the loader is a Scaled, a DataLoader with an __iter__ of its own, which Shoal would pass over; do in the loop "
    "what its __iter__ does, or in collate_fn": lambda: describe_data(Scaled(numbers()), batch_size=None),
    "a DistributedSampler; Shoal hands the samples out to the trainers itself: leave the sampler away and write "
    "shuffle=True": lambda: described(sampler=DistributedSampler(numbers(), num_replicas=2, rank=0)),
    "has a DistributedSampler": lambda: by_batches(
        BatchSampler(DistributedSampler(numbers(), num_replicas=2, rank=0), 2, drop_last=False)
    ),
    "the sampler Forever has no __len__, so it may never end; add it: the number of samples in an epoch": (
        lambda: described(sampler=Forever())
    ),
    "the batch sampler Forever has no __len__, so it may never end; add it: the number of batches": (
        lambda: by_batches(Forever())
    ),
    "the sampler list_iterator has no __len__": lambda: described(sampler=iter([1, 2])),
    "the sampler SaysTen gives more indices than the 10 that its __len__ says; an epoch must be finite": (
        lambda: described(sampler=SaysTen())
    ),
    "the sampler Given gives more batches than the 1 that its __len__ says": (
        lambda: by_batches(Given([[1, 2], [3, 4]], 1))
    ),
    "the sampler Moves does not give the same order twice for the same seed, but all trainers must draw the same": (
        lambda: described(sampler=Moves([1, 2, 3]))
    ),
    "the batch sampler Moves does not give the same order twice": lambda: by_batches(Moves([[1, 2], [3, 4]])),
    "the sampler OwnEntropy does not give the same order": lambda: described(sampler=OwnEntropy(list(range(20)))),
    "the sampler Remembers does not give the same order": lambda: described(sampler=Remembers([1, 2, 3])),
    "the sampler Given gives nothing: training needs at least one sample": lambda: described(sampler=Given([])),
    "the batch sampler Given gives nothing": lambda: by_batches(Given([])),
    "the batch sampler Given gives batches of different sizes: 2 samples, then 1 in batch 1; all but a smaller last "
    "one must have one size": lambda: by_batches(Given([[1, 2], [3], [4, 5]])),
    "gives batches of different sizes: 1 samples, then 2 in batch 1": lambda: by_batches(Given([[1], [2, 3]])),
    "gives batches of different sizes: 2 samples, then 0 in batch 1": lambda: by_batches(Given([[1, 2], []])),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_handed_out_is_refused_with_the_fix(reason):
    with pytest.raises(Refusal, match=re.escape(reason)):
        REFUSED[reason]()


def test_a_dataset_becomes_a_shuffled_loader():
    found = describe_data(Untouched(), batch_size=3)
    assert (found.samples, found.batch_size, found.drop_last, found.shuffle) == (20, 3, False, True)
    assert (found.sampler, found.order) == ("", None)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_plain_loaders_and_their_batch_samplers_have_equal_descriptions(shuffle, drop_last):
    data = numbers()
    plain = described(data, shuffle=shuffle, drop_last=drop_last)
    assert (plain.samples, plain.batch_size) == (20, 4)
    assert (plain.shuffle, plain.drop_last, plain.order) == (shuffle, drop_last, None)
    inner = RandomSampler(data) if shuffle else SequentialSampler(data)
    batched = by_batches(BatchSampler(inner, 4, drop_last), data)
    for name in ("samples", "batch_size", "drop_last", "shuffle", "sampler", "order", "fingerprint"):
        assert getattr(batched, name) == getattr(plain, name)


def test_a_subclass_without_an_iter_of_its_own_is_taken():
    assert describe_data(Options(numbers()), batch_size=None).batch_size == 2


TAKEN = {
    "WeightedRandomSampler": (lambda: WeightedRandomSampler([1.0] * 20, 50), 50),
    "SubsetRandomSampler": (lambda: SubsetRandomSampler([3, 5, 8]), 3),
    "RandomSampler": (lambda: RandomSampler(numbers(), replacement=True), 20),
    "RandomSampler of a part": (lambda: RandomSampler(numbers(), num_samples=7), 7),
    "SequentialSampler of a part": (lambda: SequentialSampler(range(7)), 7),
    "Given": (lambda: Given([5, 5, 1]), 3),
    "Given, fewer than it says": (lambda: Given([5, 5, 1], 4), 3),
    "list": (lambda: [3, 1, 2, 0], 4),
}


@pytest.mark.parametrize("case", TAKEN)
def test_finite_samplers_are_taken(case):
    make, samples = TAKEN[case]
    found = described(sampler=make(), drop_last=True)
    assert found.sampler == case.split()[0].rstrip(",")
    assert (found.samples, found.batch_size, found.drop_last, found.shuffle) == (samples, 4, True, False)
    assert len(found.order.draw(seed=3, epoch=1)) == samples
    assert described(sampler=make(), drop_last=True).fingerprint == found.fingerprint != described().fingerprint


def test_batch_samplers_of_one_size_are_taken():
    found = by_batches(Given([[1, 2, 3], [4, 5, 6], [7]]))
    assert (found.samples, found.batch_size, found.drop_last, found.shuffle) == (7, 3, False, False)
    assert found.sampler == "Given"
    assert found.order.batches
    assert by_batches(Given([[1, 2]])).batch_size == 2


def test_describing_leaves_the_generators_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    described(sampler=WeightedRandomSampler([1.0] * 20, 50))
    described(shuffle=True)
    assert torch.equal(before, torch.get_rng_state())


def test_a_fingerprint_of_a_sampler_depends_on_its_order():
    def of(weights):
        return described(sampler=WeightedRandomSampler(weights, 50)).fingerprint

    assert of([1.0] * 20) == of([1.0] * 20) != of([1.0] * 19 + [9.0])


# --- Fingerprints of contents ---


class Hub(Untouched):
    """A dataset with a fingerprint like that of a Hugging Face dataset."""

    def __init__(self, fingerprint):
        super().__init__()
        self._fingerprint = fingerprint


class Property(Untouched):
    @property
    def fingerprint(self):
        raise AssertionError("the script's code")


class Reading(TensorDataset):
    def __getitem__(self, index):
        raise AssertionError("read in the parent")


def changed(row):
    values = torch.zeros(50, 3)
    values[row] = 1
    return values


CONTENTS = {
    "length": [Untouched(20), Untouched(21)],
    "kind": [Untouched(20), Hub("")],
    "tensors": [numbers(), numbers(plus=1), numbers(19)],
    "last row": [TensorDataset(changed(0)), TensorDataset(changed(49))],
    "dtype": [TensorDataset(torch.zeros(5)), TensorDataset(torch.zeros(5).bfloat16())],
    "tensors of a subclass": [Reading(torch.zeros(5)), Reading(torch.ones(5))],
    "indices": [Subset(Untouched(), [1, 2]), Subset(Untouched(), [2, 1]), Subset(Untouched(), range(2))],
    "subset's inside": [Subset(numbers(), [1, 2]), Subset(numbers(plus=1), [1, 2])],
    "concatenated": [ConcatDataset([numbers(), numbers(plus=p)]) for p in (0, 1)],
    "stacked": [StackDataset(numbers(), numbers(plus=p)) for p in (0, 1)],
    "stacked by name": [StackDataset(a=numbers(), b=numbers(plus=p)) for p in (0, 1)],
    "its own": [Hub("one"), Hub("two")],
    "subset of its own": [Subset(Hub("one"), [1]), Subset(Hub("two"), [1])],
}


@pytest.mark.parametrize("what", CONTENTS)
def test_a_fingerprint_contains_what_can_be_read_without_the_scripts_code(what):
    found = [described(data).fingerprint for data in CONTENTS[what]]
    assert len(set(found)) == len(found)
    assert [described(data).fingerprint for data in CONTENTS[what]] == found


@pytest.mark.parametrize(
    "data",
    [
        Property(),
        ConcatDataset([Untouched(), Untouched(3)]),
        Subset(Untouched(), torch.tensor([1, 2])),
        Subset(Untouched(), np.array([1, 2])),
        Subset(Untouched(), ["a", "b"]),
        Subset(Endless(), [1, 2]),
        TensorDataset(torch.eye(3).to_sparse()),
        TensorDataset(torch.view_as_complex(torch.rand(3, 2)).conj()),
        TensorDataset(torch.zeros(3, 0)),
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_fingerprint_bears_every_kind_of_dataset(data):
    assert described(data).fingerprint == described(data).fingerprint
