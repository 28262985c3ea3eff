"""The feed: batches in order, ahead of the compute, and never a stale one."""

from __future__ import annotations

import multiprocessing
import random
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from shoal.trainer.feed import Feed
from shoal.trainer.order import Order
from shoal.wire.messages import Shape


def shape(*, samples=40, size=3, task_batches=4, shuffle=True):
    return Shape(
        samples=samples,
        fingerprint="f",
        batch_size=size,
        drop_last=False,
        shuffle=shuffle,
        task_batches=task_batches,
        accumulate=1,
        dense=[],
        tables=[],
        groups=[],
        buffers=[],
    )


class Numbers(Dataset):
    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == self.bad:
            raise KeyError("no such picture")
        return index


@pytest.fixture
def made():
    feeds = []

    def make(data=None, **options):
        order = Order(shape(), 1)
        feeds.append(Feed(DataLoader(data or Numbers(), batch_size=3, **options), order))
        return feeds[-1], order

    yield make
    for feed in feeds:
        feed.close()


def expect(feed, order, epoch, task, batch):
    fed = feed.get()
    assert (fed.epoch, fed.task, fed.batch) == (epoch, task, batch)
    assert fed.data.tolist() == order.indices(epoch, task, batch)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_come_in_the_order_of_their_assignment(made, workers):
    feed, order = made(num_workers=workers)
    feed.assign(0, 1, 2)
    feed.assign(1, 0, 0)
    feed.assign(0, 3, 0)
    for epoch, task, first in ((0, 1, 2), (1, 0, 0), (0, 3, 0)):
        for batch in range(first, order.plan.batches_in(task)):
            assert feed.expects((epoch, task, batch))
            expect(feed, order, epoch, task, batch)
    assert not feed.expects((0, 3, 2))


def test_what_was_cleared_never_comes(made):
    feed, order = made()
    chance = random.Random(3)
    for _ in range(200):
        epoch, task = chance.randrange(3), chance.randrange(order.plan.tasks)
        first = chance.randrange(order.plan.batches_in(task))
        feed.assign(epoch, task, first)
        for batch in range(first, chance.randint(first, order.plan.batches_in(task))):
            expect(feed, order, epoch, task, batch)
        feed.clear()


def test_what_the_dataset_raises_is_raised_where_the_batch_is_asked_for(made):
    bad = Order(shape(), 1).indices(0, 0, 1)[0]
    feed, order = made(Numbers(bad))
    feed.assign(0, 0, 0)
    expect(feed, order, 0, 0, 0)
    with pytest.raises(KeyError, match="no such picture") as caught:
        feed.get()
    assert any(entry.name == "__getitem__" for entry in caught.traceback)


def test_no_thread_outlives_it(made):
    feed, _ = made()
    feed.assign(0, 0, 0)
    feed.close()
    assert "shoal-feed" not in {thread.name for thread in threading.enumerate()}


def test_the_generator_of_the_script_is_left_alone(made):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    feed, order = made()
    feed.assign(0, 0, 0)
    for batch in range(order.plan.batches_in(0)):
        expect(feed, order, 0, 0, batch)
    assert torch.equal(before, torch.get_rng_state())


def test_the_order_is_a_function_of_fingerprint_seed_and_epoch():
    order = Order(shape(), 1)
    plan = order.plan
    everything = [
        i for task in range(plan.tasks) for k in range(plan.batches_in(task)) for i in order.indices(0, task, k)
    ]
    assert sorted(everything) == list(range(40))
    assert everything != list(range(40))
    assert Order(shape(), 1).indices(2, 1, 1) == order.indices(2, 1, 1)
    assert Order(shape(), 2).indices(2, 1, 1) != order.indices(2, 1, 1)
    assert order.indices(0, 1, 1) != order.indices(1, 1, 1)
    assert Order(shape(shuffle=False), 1).indices(5, 1, 0) == [12, 13, 14]


@pytest.mark.slow
def test_the_workers_end_with_the_feed():
    feed = Feed(DataLoader(Numbers(), batch_size=3, num_workers=2), Order(shape(), 1))
    feed.assign(0, 0, 0)
    feed.get()
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    feed.close()
    for worker in workers:
        worker.join(10)
        assert worker.exitcode is not None
