"""The feed returns batches in order and never a stale one, and the dataset runs in the same process as in plain PyTorch.

The single cases and the state machine are in one module, as they share the datasets and the code that makes a feed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from typing import ClassVar

import hypothesis.strategies as st
import pytest
import torch
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from torch.utils.data import DataLoader, Dataset, get_worker_info

from shoal.protocol.messages import ModelSpec
from shoal.trainer.data.feed import BatchFeed
from shoal.trainer.data.sample_order import SampleOrder, SamplerOrder
from shoal.trainer.refusal import Refusal
from tests.soak import examples

SAMPLES, SIZE, TASK_BATCHES = 40, 3, 4


def shape(*, shuffle=True, sampler="", samples=SAMPLES):
    return ModelSpec(
        samples=samples,
        fingerprint="f",
        batch_size=SIZE,
        drop_last=False,
        shuffle=shuffle,
        sampler=sampler,
        task_batches=TASK_BATCHES,
        accumulate=1,
        dense=[],
        tables=[],
        groups=[],
        buffers=[],
    )


class Numbers(Dataset):
    """Sample i is the number i."""

    bad: int | None = None

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        if index == self.bad:
            raise KeyError("no such picture")
        return index


WORKERS = [
    pytest.param({"num_workers": 0}, id="inline"),
    pytest.param({"num_workers": 1}, id="one"),
    pytest.param({"num_workers": 2}, id="two"),
    pytest.param({"num_workers": 2, "persistent_workers": True}, id="persistent"),
    pytest.param({"num_workers": 1, "prefetch_factor": 5, "persistent_workers": True}, id="deep"),
]


@pytest.fixture
def made():
    feeds = []

    def make(data=None, *, shuffle=True, **options):
        order = SampleOrder(shape(shuffle=shuffle), 1)
        feeds.append(BatchFeed(DataLoader(data if data is not None else Numbers(), batch_size=SIZE, **options), order))
        return feeds[-1], order

    yield make
    for feed in feeds:
        feed.close()
    assert not multiprocessing.active_children()


def expect(feed, order, epoch, task, batch):
    assert feed.expects((epoch, task, batch))
    fed = feed.get()
    assert (fed.epoch, fed.task, fed.batch) == (epoch, task, batch)
    assert fed.data.tolist() == order.indices(epoch, task, batch)


def expect_all(feed, order, *places):
    for place in places:
        expect(feed, order, *place)


def tasks_of(order):
    return range(order.plan.tasks)


def whole_pass(feed, order, epoch=0):
    """Return the data of an epoch's batches."""
    feed.begin_pass()
    for task in tasks_of(order):
        feed.assign(epoch, task, 0)
    found = [feed.get().data for _ in range(order.plan.batches)]
    feed.end_pass()
    return found


def workers_now():
    return {child.pid for child in multiprocessing.active_children()}


# --- Order of batches ---


@pytest.mark.parametrize("options", WORKERS)
def test_batches_are_returned_in_the_order_of_their_assignment(made, options):
    feed, order = made(**options)
    for _ in range(2):
        feed.begin_pass()
        feed.assign(0, 1, 2)
        feed.assign(1, 0, 0)
        feed.assign(0, 3, order.plan.batches_in(3))
        feed.assign(0, 3, 0)
        for epoch, task, first in ((0, 1, 2), (1, 0, 0), (0, 3, 0)):
            for batch in range(first, order.plan.batches_in(task)):
                expect(feed, order, epoch, task, batch)
        assert not feed.expects((0, 3, 2))
        feed.assign(2, 2, 3)
        expect(feed, order, 2, 2, 3)
        feed.end_pass()


class FeedMachine(RuleBasedStateMachine):
    """Compares a feed with a list of the batches that it must return."""

    options: ClassVar = {"num_workers": 0}

    def __init__(self):
        super().__init__()
        self.order = SampleOrder(shape(), 1)
        self.data = Numbers()
        self.data.bad = 7
        self.feed = BatchFeed(DataLoader(self.data, batch_size=SIZE, **self.options), self.order)
        self.model = deque()

    @rule(epoch=st.integers(0, 2), task=st.integers(0, 3), first=st.integers(0, 4))
    def assign(self, epoch, task, first):
        self.feed.assign(epoch, task, first)
        self.model.extend((epoch, task, batch) for batch in range(first, self.order.plan.batches_in(task)))

    @rule()
    def clear(self):
        self.feed.clear()
        self.model.clear()

    @rule()
    def begin_pass(self):
        self.feed.begin_pass()
        self.model.clear()

    @rule()
    def end_pass(self):
        self.feed.end_pass()

    @precondition(lambda self: self.model)
    @rule(count=st.integers(1, 6))
    def get(self, count):
        for _ in range(min(count, len(self.model))):
            place = self.model[0]
            assert self.feed.expects(place)
            if 7 in self.order.indices(*place):
                with pytest.raises(KeyError, match="no such picture"):
                    self.feed.get()
                return
            expect(self.feed, self.order, *place)
            self.model.popleft()

    @rule(place=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)))
    def expects(self, place):
        assert self.feed.expects(place) == (bool(self.model) and self.model[0] == place)

    def teardown(self):
        self.feed.close()
        assert not multiprocessing.active_children()


class TwoWorkers(FeedMachine):
    options: ClassVar = {"num_workers": 2}


class PersistentWorkers(FeedMachine):
    options: ClassVar = {"num_workers": 2, "prefetch_factor": 1, "persistent_workers": True}


class OneWorker(FeedMachine):
    options: ClassVar = {"num_workers": 1, "prefetch_factor": 3}


TestInline = FeedMachine.TestCase
TestInline.settings = examples(40)
TestTwoWorkers = TwoWorkers.TestCase
TestPersistentWorkers = PersistentWorkers.TestCase
TestOneWorker = OneWorker.TestCase
for _case in (TestTwoWorkers, TestPersistentWorkers, TestOneWorker):
    _case.settings = examples(5, stateful_step_count=25)


@pytest.mark.parametrize("options", WORKERS)
def test_what_the_dataset_raises_is_raised_where_the_batch_is_asked_for_and_the_batch_is_not_lost(made, options):
    data = Numbers()
    feed, order = made(data, **options)
    data.bad = order.indices(0, 0, 1)[0]
    feed.assign(0, 0, 0)
    expect(feed, order, 0, 0, 0)
    for _ in range(2):
        with pytest.raises(KeyError, match="no such picture") as caught:
            feed.get()
        assert feed.expects((0, 0, 1))
    if not options["num_workers"]:
        assert any(entry.name == "__getitem__" for entry in caught.traceback)
    feed.clear()
    feed.assign(0, 0, 2)
    expect(feed, order, 0, 0, 2)


def test_the_error_of_a_batch_that_was_cleared_is_not_raised(made):
    data = Numbers()
    feed, order = made(data, num_workers=2)
    data.bad = order.indices(0, 0, 2)[0]
    feed.assign(0, 0, 0)
    expect(feed, order, 0, 0, 0)
    feed.clear()
    feed.assign(0, 1, 0)
    for batch in range(order.plan.batches_in(1)):
        expect(feed, order, 0, 1, batch)


def test_an_order_that_fails_leaves_the_feed_whole():
    class Shorter:
        length = SAMPLES

        def __len__(self):
            return self.length

        def __iter__(self):
            return iter(range(self.length))

        def set_epoch(self, epoch):
            self.length = SAMPLES - (epoch == 1)

    for workers in (0, 1):
        order = SampleOrder(shape(sampler="Shorter"), 1, SamplerOrder(Shorter(), batches=False))
        feed = BatchFeed(DataLoader(Numbers(), batch_size=SIZE, num_workers=workers), order)
        feed.assign(0, 3, 0)
        feed.assign(1, 0, 0)
        with pytest.raises(Refusal, match="Shorter gives 39 samples in epoch 2 and 40 in the first"):
            expect_all(feed, order, (0, 3, 0), (0, 3, 1), (1, 0, 0))
        feed.clear()
        feed.assign(2, 0, 0)
        expect(feed, order, 2, 0, 0)
        feed.close()


# --- Where and when the script's code runs ---


def test_without_workers_all_runs_inline_and_nothing_ahead(made, monkeypatch):
    class Seen(Numbers):
        calls: ClassVar = []

        def __getitem__(self, index):
            self.calls.append((index, threading.get_ident()))
            return index

    data = Seen()
    here, start, started = threading.get_ident(), threading.Thread.start, []

    def noted(thread):
        """Record the threads that this thread starts; threads of earlier tests may start others at any time."""
        if threading.get_ident() == here:
            started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    feed, order = made(data)
    assert feed.ahead == 0
    feed.assign(0, 0, 0)
    assert not data.calls
    feed.get()
    assert data.calls == [(index, threading.get_ident()) for index in order.indices(0, 0, 0)]
    assert started == []


class Counted(Numbers):
    calls = 0

    def __getitem__(self, index):
        self.calls += 1
        return index


@pytest.mark.parametrize("options", WORKERS[1:])
def test_with_workers_nothing_of_the_dataset_runs_in_the_parent(made, options):
    data = Counted()
    feed, order = made(data, **options)
    for epoch in range(2):
        assert torch.cat(whole_pass(feed, order, epoch)).sort().values.tolist() == list(range(SAMPLES))
    assert data.calls == 0


class LazyFile(Numbers):
    """A dataset that opens its file at the first use."""

    opened_by = None

    def __getitem__(self, index):
        if self.opened_by is None:
            self.opened_by = os.getpid()
        return torch.tensor([self.opened_by, os.getpid()])


@pytest.mark.parametrize("options", WORKERS)
def test_a_file_that_is_opened_lazily_is_opened_in_the_process_that_reads_it(made, options):
    feed, order = made(LazyFile(), **options)
    for epoch in range(2):
        pids = torch.cat(whole_pass(feed, order, epoch))
        assert torch.equal(pids[:, 0], pids[:, 1])
        assert (os.getpid() in pids) == (not options["num_workers"])


class Only(Numbers):
    """A dataset that works only in workers where ``worker_init_fn`` has set its handle."""

    handle = None

    def __getitem__(self, index):
        return self.handle[index]


class OnlyTogether(Only):
    def __getitems__(self, indices):
        assert indices
        return [self.handle[index] for index in indices]


def open_it(worker):
    info = get_worker_info()
    assert info.id == worker
    info.dataset.handle = [100 + index for index in range(SAMPLES)]


@pytest.mark.parametrize("kind", [Only, OnlyTogether])
def test_a_dataset_that_is_opened_by_worker_init_fn_works(made, kind):
    feed, order = made(kind(), num_workers=2, worker_init_fn=open_it)
    assert torch.cat(whole_pass(feed, order)).sort().values.tolist() == [100 + index for index in range(SAMPLES)]


def test_the_workers_find_the_scripts_own_dataset(made):
    class Self(Numbers):
        def __getitem__(self, index):
            return get_worker_info().dataset is self

    feed, order = made(Self(), num_workers=1)
    assert torch.cat(whole_pass(feed, order)).all()


def test_an_error_of_worker_init_fn_is_raised_even_if_placeholders_are_first(made):
    def fails(worker):
        if worker == 1:
            raise OSError("no such disk")

    feed, order = made(num_workers=2, worker_init_fn=fails)
    feed.assign(0, 0, 3)
    expect(feed, order, 0, 0, 3)
    feed.assign(0, 1, 0)
    with pytest.raises(OSError, match="no such disk"):
        feed.get()


class Epochal(Numbers):
    epoch = 0

    def __getitem__(self, index):
        return self.epoch


@pytest.mark.parametrize("options", WORKERS)
def test_changes_of_a_dataset_before_a_pass_apply_as_in_a_plain_loop(made, options):
    data = Epochal()
    feed, order = made(data, **options)
    plain = DataLoader(data, batch_size=SIZE, **options)
    for epoch in range(3):
        data.epoch = epoch
        assert torch.cat(whole_pass(feed, order, epoch)).tolist() == torch.cat(list(plain)).tolist()


class Noise(Numbers):
    def __getitem__(self, index):
        return torch.randint(10**6, ())


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("options", WORKERS)
def test_the_random_numbers_are_those_of_a_plain_loop(made, options, seeded):
    def drawn(passes):
        torch.manual_seed(5)
        generator = torch.Generator().manual_seed(9) if seeded else None
        found = passes(DataLoader(Noise(), batch_size=SIZE, generator=generator, **options))
        return found, torch.get_rng_state().tolist()

    def ours(loader):
        order = SampleOrder(shape(shuffle=False), 1)
        feed = BatchFeed(loader, order)
        found = [torch.cat(whole_pass(feed, order, epoch)).tolist() for epoch in range(2)]
        feed.close()
        return found

    assert drawn(ours) == drawn(lambda loader: [torch.cat(list(loader)).tolist() for _ in range(2)])


def test_workers_go_on_across_the_ends_of_tasks(made):
    feed, order = made(num_workers=2, prefetch_factor=3)
    assert feed.ahead == 6
    for task in tasks_of(order):
        feed.assign(0, task, 0)
    flight = feed._batches.in_flight
    for given in range(1, order.plan.batches + 1):
        feed.get()
        real = [sent.place for sent in flight if sent.place is not None]
        assert len(flight) == feed.ahead
        assert len(real) == min(feed.ahead, order.plan.batches - given)


def test_placeholders_run_none_of_the_scripts_code_and_delay_nothing_for_ever(made):
    def collate(samples):
        assert samples
        return torch.tensor(samples)

    feed, order = made(OnlyTogether(), num_workers=2, worker_init_fn=open_it, collate_fn=collate)
    for task in tasks_of(order):
        for batch in range(order.plan.batches_in(task)):
            feed.clear()
            feed.assign(0, task, batch)
            assert (feed.get().data - 100).tolist() == order.indices(0, task, batch)


def test_getitems_that_gives_nothing_is_collated_as_in_a_plain_loop(made):
    class Empty(Numbers):
        def __getitems__(self, indices):
            return []

    feed, _ = made(Empty(), num_workers=1, collate_fn=lambda samples: ["collated", *samples])
    feed.assign(0, 0, 0)
    assert feed.get().data == ["collated"]


# --- Lifetime of workers ---


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_live_as_long_as_in_a_plain_loop(made, persistent):
    feed, order = made(num_workers=2, persistent_workers=persistent)
    assert not workers_now()
    feed.assign(0, 0, 0)
    expect(feed, order, 0, 0, 0)
    first = workers_now()
    assert len(first) == 2
    feed.clear()
    feed.assign(0, 1, 0)
    expect(feed, order, 0, 1, 0)
    assert workers_now() == first
    feed.begin_pass()  # as after ``break`` in the loop
    assert workers_now() == (first if persistent else set())
    feed.assign(0, 0, 0)
    expect(feed, order, 0, 0, 0)
    assert (workers_now() == first) == persistent
    feed.end_pass()
    assert workers_now() == (first if persistent else set())
    assert feed.expects((0, 0, 1))
    feed.close()
    feed.close()
    assert not workers_now()


# Torch raises that error in a signal handler, between any two steps of the interpreter: a socket that multiprocessing has just
# opened may then have no owner that closes it.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_that_is_killed_is_torchs_error_and_no_batch_is_lost(made, persistent):
    class Killed(Numbers):
        worker_of = None

        def __getitem__(self, index):
            if index == self.worker_of:
                os.kill(os.getpid(), signal.SIGKILL)
            return index

    data = Killed()
    feed, order = made(data, num_workers=2, persistent_workers=persistent)
    data.worker_of = order.indices(0, 0, 1)[1]
    feed.assign(0, 0, 0)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        expect_all(feed, order, (0, 0, 0), (0, 0, 1))
    data.worker_of = None
    for batch in range(4):
        if batch or feed.expects((0, 0, 0)):
            expect(feed, order, 0, 0, batch)


def test_the_scripts_options_are_handed_over(made):
    feed, order = made(
        num_workers=1,
        timeout=50,
        prefetch_factor=3,
        persistent_workers=True,
        multiprocessing_context="fork",
        generator=torch.Generator().manual_seed(3),
        in_order=False,
    )
    feed.assign(0, 0, 0)
    expect(feed, order, 0, 0, 0)
    ours, theirs = feed._ours, feed._loader
    for name in ("num_workers", "timeout", "prefetch_factor", "persistent_workers", "generator", "pin_memory"):
        assert getattr(ours, name) is getattr(theirs, name)
    assert ours.multiprocessing_context is theirs.multiprocessing_context
    assert ours.in_order


@pytest.mark.slow
def test_workers_that_are_spawned(made):
    feed, order = made(OnlyTogether(), num_workers=1, multiprocessing_context="spawn", worker_init_fn=open_it)
    assert torch.cat(whole_pass(feed, order)).sort().values.tolist() == [100 + index for index in range(SAMPLES)]
