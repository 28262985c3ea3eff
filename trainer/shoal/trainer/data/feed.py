"""The batches of assigned tasks, made by torch's own DataLoader where and when a plain script's DataLoader makes them.

The feed iterates a DataLoader on the caller's thread: one torch iterator for each pass over the loader, with the
script's own workers. Only the batch sampler is the feed's: it yields the next assigned batch. The number of batches
that torch has in flight is fixed, so where nothing more is assigned the sampler yields an empty placeholder, which
comes back from the workers as nothing without any code of the script being run.
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
    """A batch and which one it is."""

    epoch: int
    task: int
    batch: int
    data: Any


class BatchFeed:
    """Gives the batches of assigned tasks, in the order of their assignment.

    Nothing runs before the first ``get`` of a pass. With ``num_workers=0`` the dataset runs inside ``get``.

    Args:
        loader: The script's. Its workers, memory pinning, timeout, generator and ``worker_init_fn`` are used as they
            are; its samplers are not, and batches always come in order.
        order: Which samples each batch has.
    """

    def __init__(self, loader: DataLoader[Any], order: SampleOrder) -> None:
        self._loader = loader
        self._batches = _Batches(order)
        self._ours: DataLoader[Any] | None = None
        self._iterator: Iterator[Any] | None = None

    @property
    def ahead(self) -> int:
        """How many batches beyond the current one are worth being assigned: those that the workers take in advance."""
        return (self._loader.prefetch_factor or 0) * self._loader.num_workers

    def begin_pass(self) -> None:
        """Begin a new pass, as ``for batch in loader`` does: forget all that is assigned or in flight.

        The next ``get`` makes a new torch iterator, with new workers unless they are persistent.
        """
        self.end_pass()
        self._batches.clear()

    def end_pass(self) -> None:
        """Release the torch iterator, as the end of a loop does; workers end unless they are persistent.

        What is assigned and was not given stays assigned.
        """
        self._iterator = None
        self._batches.lose()

    def assign(self, epoch: int, task: int, first: int) -> None:
        """Go on with a task's batches from ``first`` on, behind what was assigned before."""
        self._batches.assign(epoch, task, first)

    def expects(self, wanted: Place) -> bool:
        """Whether the next batch that ``get`` gives is this (epoch, task, batch)."""
        return self._batches.following() == wanted

    def clear(self) -> None:
        """Forget all that is assigned. The pass goes on: batches in flight are dropped when they arrive."""
        self._batches.clear()

    def get(self) -> FedBatch:
        """The next batch; waits for it.

        Raises:
            BaseException: Whatever the DataLoader raises: an error of the dataset or of collate_fn, a worker's death, a
                timeout. The batch stays assigned: the next ``get`` makes it again.
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
                    # Torch's frames would keep its iterator, and thereby the workers, in a cycle with the error.
                    traceback.clear_frames(error.__traceback__)
                # The sampler is asked once for each batch that torch gives or whose error it raises.
                if self._after_error(arrived=self._batches.drawn > drawn) or not isinstance(error, Exception):
                    raise
                continue
            sent = self._batches.in_flight.popleft()
            if sent.place is not None and sent.wanted:
                return FedBatch(*sent.place, data)

    def close(self) -> None:
        """End the workers, persistent ones too."""
        self.begin_pass()
        self._ours = None

    def _after_error(self, *, arrived: bool) -> bool:
        """Go on behind an error of torch's iterator; returns whether it is the caller's.

        Args:
            arrived: The error came in the place of the oldest batch in flight. Otherwise the iterator itself failed (a
                dead worker): torch would skip that worker's batches, so it is replaced.
        """
        if arrived:
            sent = self._batches.in_flight.popleft()
            if sent.wanted:
                # A placeholder fails only where worker_init_fn failed.
                self._batches.redo(sent.place)
                return True
        # A worker that failed for a dropped batch may have failed in worker_init_fn: new ones tell.
        self._replace()
        return not arrived

    def _begun(self) -> Iterator[Any]:
        """A torch iterator for a pass."""
        if self._ours is None:
            self._ours = _loader_of(self._loader, self._batches)
        try:
            return iter(self._ours)
        except BaseException:
            self._replace()
            raise

    def _replace(self) -> None:
        """Let the next ``get`` begin with new workers, even where they are persistent."""
        self.end_pass()
        self._ours = None


@dataclass
class _Sent:
    """One that torch has in flight: a batch, or a placeholder (None)."""

    place: Place | None
    wanted: bool = True


class _Batches:
    """The batch sampler: the indices of the assigned batches, and an empty list where torch asks for more.

    Args:
        order: Which samples each batch has.
    """

    def __init__(self, order: SampleOrder) -> None:
        self._order = order
        self._assigned: deque[tuple[int, int, range]] = deque()
        self.in_flight: deque[_Sent] = deque()
        """What torch took and has not given yet, oldest first; at most ``ahead`` of them and one more."""
        self.drawn = 0
        """How often torch was given something."""

    def __iter__(self) -> Iterator[list[Any]]:
        return _Drawing(self)

    def draw(self) -> list[Any]:
        """The indices of the next assigned batch."""
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
        """Put a task's batches from ``first`` on at the end."""
        batches = range(first, self._order.plan.batches_in(task))
        if batches:
            self._assigned.append((epoch, task, batches))

    def following(self) -> Place | None:
        """The next batch to give; None: nothing is assigned."""
        for sent in self.in_flight:
            if sent.place is not None and sent.wanted:
                return sent.place
        return self._first_assigned()

    def clear(self) -> None:
        """Forget what is assigned; what is in flight is not wanted any more."""
        self._assigned.clear()
        for sent in self.in_flight:
            # A placeholder stays wanted: its error would be worker_init_fn's.
            sent.wanted = sent.place is None

    def redo(self, place: Place | None) -> None:
        """Put a batch that failed back in front, and behind it those in flight."""
        wanted = [sent for sent in self.in_flight if sent.place is not None and sent.wanted]
        for again in reversed([place, *(sent.place for sent in wanted)]):
            if again is not None:
                epoch, task, batch = again
                self._assigned.appendleft((epoch, task, range(batch, batch + 1)))
        for sent in wanted:
            sent.wanted = False

    def lose(self) -> None:
        """Put all in flight back in front: the iterator that had it is gone."""
        self.redo(None)
        self.in_flight.clear()

    def _first_assigned(self) -> Place | None:
        if not self._assigned:
            return None
        epoch, task, batches = self._assigned[0]
        return epoch, task, batches[0]


class _Drawing(Iterator[list[Any]]):
    """Draws for ever. No generator: one that raised would be at its end."""

    def __init__(self, batches: _Batches) -> None:
        self._batches = batches

    def __next__(self) -> list[Any]:
        return self._batches.draw()


# --- In the workers ---


_NOTHING = object()
"""The samples of a placeholder."""


class _Samples(Dataset[Any]):
    """The script's dataset in a worker: fetches as torch does, but nothing for a placeholder."""

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
    """The script's collate_fn; nothing for a placeholder."""

    collate: Callable[[Any], Any]

    def __call__(self, samples: Any) -> Any:
        return None if samples is _NOTHING else self.collate(samples)


@dataclass(frozen=True)
class _WorkerBegun:
    """The script's worker_init_fn; the script's code finds its own dataset in ``get_worker_info()``."""

    begin: Callable[[int], Any] | None

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)  # it is frozen
        if self.begin is not None:
            self.begin(worker)


def _loader_of(loader: DataLoader[Any], batches: _Batches) -> DataLoader[Any]:
    """A DataLoader as the script made it, but for the batches that it is asked for."""
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
