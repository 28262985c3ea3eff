"""Batches ahead of the compute: a thread runs torch's own DataLoader over the samples of the tasks at hand.

Using torch's DataLoader keeps everything that users know about it: collate_fn, workers, pinned memory. It gets its
batches from a sampler of ours, one run of it per task; persistent workers outlive the tasks.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from shoal.trainer.order import Order

__all__ = ["FedBatch", "Feed"]

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class FedBatch:
    """A batch and which one it is."""

    epoch: int
    task: int
    batch: int
    data: Any


class _Batches(Sampler[list[int]]):
    """The batches of one task, as lists of indices."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.epoch = self.task = self.first = 0

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, self._order.plan.batches_in(self.task)):
            yield self._order.indices(self.epoch, self.task, batch)

    def __len__(self) -> int:
        return self._order.plan.batches_in(self.task) - self.first


class _Failure:
    """What the dataset raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Feed:
    """Yields the batches of assigned tasks, in order.

    Args:
        loader: The user's.
        order: Which samples each batch has.
    """

    def __init__(self, loader: DataLoader[Any], order: Order) -> None:
        self._sampler = _Batches(order)
        self._order = order
        self._planned: deque[tuple[int, int, int]] = deque()
        """What ``get`` will give: tasks and their next batch."""
        workers = loader.num_workers
        options: dict[str, Any] = {"prefetch_factor": loader.prefetch_factor} if workers else {}
        ours: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            # One of its own, so that the thread never draws from the generator that the script's dropout uses.
            generator=loader.generator if loader.generator is not None else torch.Generator().manual_seed(0),
            persistent_workers=workers > 0,
            **options,
        )
        self._tasks: deque[tuple[int, int, int]] = deque()
        self._ready: queue.Queue[tuple[int, FedBatch | _Failure]] = queue.Queue(maxsize=BATCHES_AHEAD + workers)
        self._changed = threading.Condition()
        self._version = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(ours,), name="shoal-feed", daemon=True)
        self._thread.start()

    def expects(self, wanted: tuple[int, int, int]) -> bool:
        """Whether the next batch that ``get`` gives is this (epoch, task, batch)."""
        while self._planned and self._planned[0][2] >= self._order.plan.batches_in(self._planned[0][1]):
            self._planned.popleft()
        return bool(self._planned) and self._planned[0] == wanted

    def assign(self, epoch: int, task: int, first: int) -> None:
        """Go on with a task's batches from ``first`` on, behind what was assigned before."""
        self._planned.append((epoch, task, first))
        with self._changed:
            self._tasks.append((epoch, task, first))
            self._changed.notify()

    def get(self) -> FedBatch:
        """The next batch; waits for it.

        Raises:
            BaseException: Whatever the dataset or collate_fn raised.
        """
        while True:
            version, fed = self._ready.get()
            if version != self._version:
                continue
            if isinstance(fed, _Failure):
                raise fed.error
            self.expects((0, 0, 0))  # drops tasks that are through
            epoch, task, batch = self._planned[0]
            self._planned[0] = (epoch, task, batch + 1)
            return fed

    def clear(self) -> None:
        """Forget all that was assigned."""
        self._planned.clear()
        with self._changed:
            self._tasks.clear()
            self._version += 1
        while True:
            try:
                self._ready.get_nowait()
            except queue.Empty:
                return

    def close(self) -> None:
        """End the thread and the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self.clear()
        self._thread.join(timeout=2.0)

    def _run(self, loader: DataLoader[Any]) -> None:
        # Nobody else holds the loader: its workers end with this thread.
        while True:
            with self._changed:
                while not self._tasks and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                epoch, task, first = self._tasks.popleft()
                version = self._version
            self._feed(loader, epoch, task, first, version)

    def _feed(self, loader: DataLoader[Any], epoch: int, task: int, first: int, version: int) -> None:
        self._sampler.epoch, self._sampler.task, self._sampler.first = epoch, task, first
        try:
            for batch, data in enumerate(loader, first):
                if not self._put(version, FedBatch(epoch, task, batch, data)):
                    return
        except Exception as error:  # noqa: BLE001 - the script's own error, raised where it asks for the batch
            self._put(version, _Failure(error))

    def _put(self, version: int, fed: FedBatch | _Failure) -> bool:
        """Wait for room; False: nobody wants it any more."""
        while version == self._version and not self._closed:
            try:
                self._ready.put((version, fed), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
