"""The order of samples is the same in every trainer, and drawing it leaves the script's random generators unchanged."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from shoal.protocol.messages import ModelSpec
from shoal.trainer.data.sample_order import SampleOrder, SamplerOrder
from shoal.trainer.refusal import Refusal

WEIGHTS = [1.0, 0.0, 3.0, 4.0, 0.0, 2.0]


def order(sampler=None, *, seed=1, samples=40, size=3, batches=False, shuffle=True):
    drawn = None if sampler is None else SamplerOrder(sampler, batches=batches)
    shape = ModelSpec(
        samples=samples,
        fingerprint="f",
        batch_size=size,
        drop_last=False,
        shuffle=shuffle and drawn is None,
        sampler="" if drawn is None else drawn.name,
        task_batches=4,
        accumulate=1,
        dense=[],
        tables=[],
        groups=[],
        buffers=[],
    )
    return SampleOrder(shape, seed, drawn)


def epoch_of(order, epoch=0):
    plan = order.plan
    return [
        i for task in range(plan.tasks) for k in range(plan.batches_in(task)) for i in order.indices(epoch, task, k)
    ]


class Own(Sampler):
    """A sampler that draws from every random generator that a sampler may use."""

    def __init__(self, entropy=0):
        self.numpy = np.random.default_rng(entropy)
        self.old_numpy = np.random.RandomState(entropy)
        self.python = random.Random(entropy)
        self.inner = RandomSampler(range(40), generator=torch.Generator().manual_seed(entropy))
        self.epoch = None

    def __len__(self):
        return 40

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        shift = int(self.numpy.integers(40)) + int(self.old_numpy.randint(40)) + self.python.randrange(40)
        shift += random.randrange(40) + int(np.random.randint(40)) + int(torch.randint(40, ()))  # noqa: NPY002
        for index in self.inner:
            yield (index + shift) % 40 if self.epoch != 5 else 0


SAMPLERS = {
    "random with replacement": lambda: RandomSampler(range(30), replacement=True, num_samples=40),
    "random, a part": lambda: RandomSampler(range(90), num_samples=40),
    "weighted": lambda: WeightedRandomSampler(WEIGHTS, 40),
    "subset": lambda: SubsetRandomSampler(range(100, 140)),
    "with a generator": lambda: SubsetRandomSampler(range(40), generator=torch.Generator()),
    "nested": lambda: BatchSampler(SubsetRandomSampler(range(40), generator=torch.Generator()), 3, drop_last=False),
    "own": Own,
}


def test_the_shuffled_order_is_a_function_of_fingerprint_seed_and_epoch():
    one = order()
    assert sorted(epoch_of(one)) == list(range(40))
    assert epoch_of(one) != list(range(40))
    assert epoch_of(order(), 2) == epoch_of(one, 2)
    assert epoch_of(order(seed=2), 2) != epoch_of(one, 2)
    assert epoch_of(one, 0) != epoch_of(one, 1)
    assert order(shuffle=False).indices(5, 1, 0) == [12, 13, 14]


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_a_samplers_order_is_a_function_of_seed_and_epoch(make):
    batches = isinstance(make(), BatchSampler)
    one, other = order(make(), batches=batches), order(make(), batches=batches)
    epochs = [epoch_of(one, epoch) for epoch in range(4)]
    assert [epoch_of(other, epoch) for epoch in (3, 1, 0, 2)] == [epochs[epoch] for epoch in (3, 1, 0, 2)]
    assert epoch_of(one, 0) == epochs[0]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epoch_of(order(make(), seed=2, batches=batches)) != epochs[0]


def test_generators_that_a_sampler_holds_do_not_matter_but_its_epoch_does():
    one, other = order(Own(1)), order(Own(2))
    assert epoch_of(one, 3) == epoch_of(other, 3)
    assert epoch_of(one, 5) == [0] * 40


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_drawing_leaves_all_generators_as_they_were(make):
    sampler = make()
    held = dict(vars(sampler))
    inner = getattr(sampler, "inner", getattr(sampler, "sampler", None))
    generator = getattr(inner or sampler, "generator", None)

    def states():
        own = generator.get_state().tolist() if generator is not None else []
        numpy_state = str(np.random.get_state())  # noqa: NPY002
        kept = [numpy_state, random.getstate(), torch.get_rng_state().tolist(), own]
        if isinstance(sampler, Own):
            kept += [str(sampler.numpy.bit_generator.state), sampler.python.getstate()]
        return kept

    before = states()
    drawn = order(sampler, batches=isinstance(sampler, BatchSampler))
    epoch_of(drawn, 0)
    epoch_of(drawn, 1)
    assert states() == before
    assert getattr(inner or sampler, "generator", None) is generator
    assert {name: value for name, value in vars(sampler).items() if name != "epoch"} == {
        name: value for name, value in held.items() if name != "epoch"
    }


def test_generators_are_put_back_when_a_sampler_fails():
    class Fails(SubsetRandomSampler):
        def __iter__(self):
            torch.rand(1)
            raise OSError("no such file")

    generator = torch.Generator()
    sampler = Fails(range(40), generator=generator)
    before = torch.get_rng_state()
    with pytest.raises(OSError, match="no such file"):
        order(sampler).indices(0, 0, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert sampler.generator is generator


def test_a_weighted_sampler_keeps_its_distribution():
    drawn = order(WeightedRandomSampler(WEIGHTS, 2_000), samples=2_000)
    counts = Counter(index for epoch in range(5) for index in epoch_of(drawn, epoch))
    assert set(counts) == {0, 2, 3, 5}
    for index, weight in enumerate(WEIGHTS):
        # Five standard deviations of a binomial distribution of 10,000 draws are less than 250.
        assert abs(counts[index] - weight * 1_000) < 250


def test_a_subset_is_covered_once_in_every_epoch():
    subset = [3, 5, 8, 13, 21, 34]
    drawn = order(SubsetRandomSampler(subset), samples=6)
    for epoch in range(3):
        assert sorted(epoch_of(drawn, epoch)) == subset


def test_indices_may_be_anything():
    names = ["a", ("b", 1), np.int64(3), 2**70]
    drawn = order(names, samples=4)
    assert epoch_of(drawn) == names
    assert [type(index) for index in epoch_of(drawn)] == [str, tuple, np.int64, int]


def test_batches_of_a_batch_sampler_are_kept_together():
    made = [[9, 8], [7, 6], [5]]
    assert order(made, samples=5, size=2, batches=True).indices(0, 0, 1) == [7, 6]


def test_an_epoch_is_drawn_once_while_it_is_in_use_whatever_its_number():
    class Drawn(SequentialSampler):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    sampler = Drawn(range(40))
    used = order(sampler)
    for epoch in (7, 8, 1, 8, 1):
        epoch_of(used, epoch)
    assert sampler.times == 3
    assert len(used._epochs) == 2


class Growing(list):
    grown = False

    def set_epoch(self, epoch):
        if epoch and not self.grown:
            self.grown = True
            self.append(self[-1])


@pytest.mark.parametrize(
    ("sampler", "options", "reason"),
    [
        (Growing(range(4)), {"samples": 4}, "Growing gives 5 samples in epoch 2 and 4 in the first"),
        (
            Growing([[1, 2], [3]]),
            {"samples": 3, "size": 2, "batches": True},
            "Growing gives a batch of 1 samples in epoch 2 beside batches of 2",
        ),
    ],
)
def test_an_epoch_of_another_size_is_refused(sampler, options, reason):
    drawn = order(sampler, **options)
    epoch_of(drawn)
    with pytest.raises(Refusal, match=reason):
        epoch_of(drawn, 1)
