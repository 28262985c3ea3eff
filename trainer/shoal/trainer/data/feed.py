"""The batches of assigned tasks, loaded by torch's own DataLoader in the same processes and at the same times as without a job.

The feed iterates a DataLoader on the caller's thread: one torch iterator per pass over the loader, with the script's own
workers. Only the batch sampler is replaced: it yields the next assigned batch. The number of batches in flight is fixed by
torch, so if no batch is assigned the sampler yields an empty placeholder, for which the workers return None without running
any code of the script.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch.utils.data import DataLoader, Dataset, get_worker_info

from shoal.trainer.data.sample_order import SampleOrder

__all__ = ["BatchFeed", "FedBatch"]

Place: TypeAlias = tuple[int, int, int]
"""Epoch, task, and batch in the task."""


@dataclass(frozen=True)
class FedBatch:
    """The data of a batch, with its epoch, task and number in the task."""

    epoch: int
    task: int
    batch: int
    data: Any


class BatchFeed:
    """Loads the batches of assigned tasks, in the order of their assignment.

    Nothing is loaded before the first ``get`` of a pass. With ``num_workers=0`` the dataset runs inside ``get``.

    Args:
        loader: The script's DataLoader. Its workers, memory pinning, timeout, generator and ``worker_init_fn`` are used
            unchanged; its samplers are not used, and batches are always returned in order.
        order: The samples of each batch.
    """

    def __init__(self, loader: DataLoader[Any], order: SampleOrder) -> None:
        self._loader = loader
        self._batches = _Batches(order)
        self._ours: DataLoader[Any] | None = None
        self._iterator: Iterator[Any] | None = None

    @property
    def ahead(self) -> int:
        """Number of batches to assign beyond the current one: those that the workers prefetch."""
        return (self._loader.prefetch_factor or 0) * self._loader.num_workers

    def begin_pass(self) -> None:
        """Begin a new pass, as ``for batch in loader`` does: discard all batches that are assigned or in flight.

        The next ``get`` creates a new torch iterator, with new workers unless they are persistent.
        """
        self.end_pass()
        self._batches.clear()

    def end_pass(self) -> None:
        """Release the torch iterator, as the end of a loop does; workers exit unless they are persistent.

        Batches that are assigned and were not returned stay assigned.
        """
        self._iterator = None
        self._batches.lose()

    def assign(self, epoch: int, task: int, first: int) -> None:
        """Assign a task's batches from ``first`` on, after those that were assigned before."""
        self._batches.assign(epoch, task, first)

    def expects(self, place: Place) -> bool:
        """Return whether ``get`` returns this (epoch, task, batch) next."""
        return self._batches.following() == place

    def clear(self) -> None:
        """Discard all assigned batches. The pass continues: batches in flight are discarded when they arrive."""
        self._batches.clear()

    def get(self) -> FedBatch:
        """Wait for the next batch and return it.

        Raises:
            BaseException: Any error of the DataLoader: of the dataset or of collate_fn, a killed worker, a timeout. The
                batch stays assigned, and the next ``get`` loads it again.
        """
        while True:
            assert self._batches.following() is not None, "no batch is assigned"
            if self._iterator is None:
                self._iterator = self._begun()
            drawn = self._batches.drawn
            try:
                data = next(self._iterator)
            except BaseException as error:
                if self._loader.num_workers:
                    # A reference cycle of torch's frames and the error would keep its iterator, and so the workers, alive.
                    traceback.clear_frames(error.__traceback__)
                # torch draws from the sampler once for each batch that it returns or whose error it raises.
                if self._after_error(arrived=self._batches.drawn > drawn) or not isinstance(error, Exception):
                    raise
                continue
            sent = self._batches.in_flight.popleft()
            if sent.place is not None and sent.needed:
                return FedBatch(*sent.place, data)

    def close(self) -> None:
        """Stop all workers, including persistent ones."""
        self.begin_pass()
        self._ours = None

    def _after_error(self, *, arrived: bool) -> bool:
        """Recover from an error of torch's iterator; return whether the error is to be raised.

        Args:
            arrived: Whether the error belongs to the oldest batch in flight. Otherwise the iterator itself failed (a killed
                worker): torch would skip that worker's batches, so the iterator is replaced.
        """
        if arrived:
            sent = self._batches.in_flight.popleft()
            if sent.needed:
                # A placeholder fails only where worker_init_fn failed.
                self._batches.redo(sent.place)
                return True
        # The error of a discarded batch may be one of worker_init_fn: new workers raise it again then.
        self._replace()
        return not arrived

    def _begun(self) -> Iterator[Any]:
        """Return a torch iterator for a pass."""
        if self._ours is None:
            self._ours = _loader_of(self._loader, self._batches)
        try:
            return iter(self._ours)
        except BaseException:
            self._replace()
            raise

    def _replace(self) -> None:
        """Start new workers at the next ``get``, even if they are persistent."""
        self.end_pass()
        self._ours = None


@dataclass
class _Sent:
    """A batch, or a placeholder (None), that torch has in flight."""

    place: Place | None
    needed: bool = True


class _Batches:
    """The batch sampler: yields the indices of the assigned batches, and an empty list if none is assigned.

    Args:
        order: The samples of each batch.
    """

    def __init__(self, order: SampleOrder) -> None:
        self._order = order
        self._assigned: deque[tuple[int, int, range]] = deque()
        self.in_flight: deque[_Sent] = deque()
        """What torch has drawn and not yet returned, oldest first; at most ``ahead`` + 1 entries."""
        self.drawn = 0
        """Number of draws by torch."""

    def __iter__(self) -> Iterator[list[Any]]:
        return _Drawing(self)

    def draw(self) -> list[Any]:
        """Return the indices of the next assigned batch; an empty list, a placeholder, if none is assigned."""
        place = self._first_assigned()
        indices = [] if place is None else self._order.indices(*place)
        if place is not None:
            epoch, task, batches = self._assigned.popleft()
            if len(batches) > 1:
                self._assigned.appendleft((epoch, task, batches[1:]))
        self.in_flight.append(_Sent(place))
        self.drawn += 1
        return indices

    def assign(self, epoch: int, task: int, first: int) -> None:
        """Append a task's batches from ``first`` on."""
        batches = range(first, self._order.plan.batches_in(task))
        if batches:
            self._assigned.append((epoch, task, batches))

    def following(self) -> Place | None:
        """Return the next batch to be returned; None if none is assigned."""
        for sent in self.in_flight:
            if sent.place is not None and sent.needed:
                return sent.place
        return self._first_assigned()

    def clear(self) -> None:
        """Discard all assigned batches and those in flight."""
        self._assigned.clear()
        for sent in self.in_flight:
            # A placeholder stays needed: its error would be worker_init_fn's.
            sent.needed = sent.place is None

    def redo(self, place: Place | None) -> None:
        """Put a failed batch back at the front, followed by those in flight."""
        needed = [sent for sent in self.in_flight if sent.place is not None and sent.needed]
        for again in reversed([place, *(sent.place for sent in needed)]):
            if again is not None:
                epoch, task, batch = again
                self._assigned.appendleft((epoch, task, range(batch, batch + 1)))
        for sent in needed:
            sent.needed = False

    def lose(self) -> None:
        """Put all batches in flight back at the front, because their iterator was released."""
        self.redo(None)
        self.in_flight.clear()

    def _first_assigned(self) -> Place | None:
        if not self._assigned:
            return None
        epoch, task, batches = self._assigned[0]
        return epoch, task, batches[0]


class _Drawing(Iterator[list[Any]]):
    """An endless iterator. Not a generator, as a generator ends when it raises."""

    def __init__(self, batches: _Batches) -> None:
        self._batches = batches

    def __next__(self) -> list[Any]:
        return self._batches.draw()


# --- In the workers ---


_NOTHING = object()
"""The samples of a placeholder."""


class _Samples(Dataset[Any]):
    """The script's dataset in a worker: fetches as torch does, and nothing for a placeholder."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: list[Any]) -> Any:
        if not indices:
            return _NOTHING
        if getattr(self.dataset, "__getitems__", None):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]


@dataclass(frozen=True)
class _Collated:
    """The script's collate_fn; None for a placeholder."""

    collate: Callable[[Any], Any]

    def __call__(self, samples: Any) -> Any:
        return None if samples is _NOTHING else self.collate(samples)


@dataclass(frozen=True)
class _WorkerBegun:
    """The script's worker_init_fn; makes ``get_worker_info()`` return the script's own dataset."""

    begin: Callable[[int], Any] | None

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)  # the object is frozen
        if self.begin is not None:
            self.begin(worker)


def _loader_of(loader: DataLoader[Any], batches: _Batches) -> DataLoader[Any]:
    """Return a DataLoader with the options of the script's, but with the feed's batch sampler."""
    workers = loader.num_workers
    begun: Any = loader.worker_init_fn
    return DataLoader(
        _Samples(loader.dataset) if workers else loader.dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_Collated(loader.collate_fn) if workers else loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=_WorkerBegun(begun) if workers else begun,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        pin_memory_device=loader.pin_memory_device,
    )
