"""The interface of a training job for scripts; the same alone in one process and in a job of many trainers."""

from __future__ import annotations

import os
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

__all__ = ["Job", "seed_everything"]

Model = TypeVar("Model", bound=nn.Module)


class Job(ABC):
    """One training job.

    The training loop is ``for epoch in job.epochs():`` and inside it ``for batch in loader:``. ``optimizer.step()`` updates
    the model of all trainers immediately; a batch without a step counts as skipped when the loop requests the next batch.
    ``docs/scripts.md`` describes what a script may do and what is refused.
    """

    @property
    def device(self) -> torch.device:
        """The device of this trainer: a CUDA device (index ``LOCAL_RANK``) if one is available, otherwise the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("cpu")

    @abstractmethod
    def prepare(
        self,
        model: Model,
        optimizer: Any,
        loader: DataLoader[Any] | Dataset[Any],
        *,
        scheduler: Any = None,
        scheduler_interval: str = "step",
        accumulate: int = 1,
        batch_size: int | None = None,
        task_batches: int | None = None,
        ema: float = 0.0,
        clamp: Mapping[str, tuple[float, float]] | None = None,
        max_norm: Mapping[str, float] | None = None,
    ) -> tuple[Model, Any, Any]:
        """Register model, optimizer and data with the job; return the three objects to use in the training loop.

        Blocks until the job is ready to train. May be called once. See ``docs/scripts.md``.

        Args:
            model: The module, on the device where it computes; put several into an ``nn.ModuleDict``. The same module is
                returned. It has the parameters, frozen parameters and buffers of the job; their initial values are those of
                the job's first trainer.
            optimizer: A ``torch.optim`` optimizer, or a list of them (for example SparseAdam and Adam). The same objects are
                returned; the parameter servers execute their steps.
            loader: A DataLoader, with any sampler or batch sampler that yields the same finite order for the same seed; or
                a map-style Dataset, which is shuffled and needs ``batch_size``. The returned loader has the attributes of
                the DataLoader.
            scheduler: A ``torch.optim.lr_scheduler`` scheduler, or a list of them. The job steps them by its own count of
                optimizer steps; calls of ``scheduler.step()`` in the script may stay in their place. Default: None.
            scheduler_interval: Unit of the schedulers: ``step`` (optimizer steps) or ``epoch``. Default: ``step``.
            accumulate: Number of batches whose gradients are added up for one step. ``step`` and ``zero_grad`` have no effect
                in between; divide the loss by this number, as in a plain loop. Put clipping and the calls of a GradScaler
                under ``if optimizer.closes:``. Default: 1.
            batch_size: Batch size in samples; only with a Dataset.
            task_batches: Number of batches in a task, which is leased as a whole. Default: about 64 tasks per epoch.
            ema: Decay of a moving average of the weights, for example 0.999. The parameter servers compute it, and it is
                saved next to the model as ``NAME-ema.safetensors``. Default: 0, no average.
            clamp: Bounds (low, high) by parameter name, applied after every step; ``*`` and ``?`` in names match.
            max_norm: Maximum Euclidean norm of a row (all values with the same first index) by parameter name, applied
                after every step and after ``clamp``: larger rows are scaled down, as by ``renorm_(2, 0, max_norm)``.

        Returns:
            The model, the optimizer or list of optimizers, and the loader.

        Raises:
            Refused: The model, the optimizer or the data are not supported; the message contains the fix.
        """

    @abstractmethod
    def epochs(self) -> Iterator[int]:
        """Yield the remaining epochs, from 0, beginning with the job's current one.

        The last epoch is yielded again if some of its tasks must be repeated, for example after the loss of a server.

        Raises:
            Refused: ``prepare`` was not called, the method is called a second time, or the loop over the loader was left
                before its end.
        """

    @abstractmethod
    def log(self, **values: Any) -> None:
        """Report values, for example ``loss=loss``. Does not synchronise with the device.

        Args:
            values: Numbers or tensors of one element, by name; at most 100 names of at most 100 characters.

        Raises:
            TypeError: A value is neither a number nor a tensor of one element.
            ValueError: There are too many names, or a name is too long.
        """

    @abstractmethod
    def evaluate(self, score: Callable[[Any], Any]) -> Any:
        """Evaluate the model on one trainer and return the result in all trainers.

        One trainer calls ``score(model)`` in eval mode and without gradients. The n-th call in an epoch is the same
        evaluation in all trainers.

        Args:
            score: Function of the model; returns a number, a dict of numbers, or any other value that JSON can represent, up
                to 64,000 characters of JSON.

        Returns:
            The result of ``score``, decoded from JSON.

        Raises:
            Refused: ``prepare`` was not called, or the script has written to the model.
            TypeError: JSON cannot represent the result.
            ValueError: The result is too large.
        """

    @abstractmethod
    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the current model as a safetensors file with the names of its ``state_dict``.

        One trainer writes the file, atomically; a moving average (``ema``) is written next to it. The n-th call for a path
        in an epoch is the same one in all trainers, and each overwrites the file. At the end of the job
        ``spec.output.path`` has the last model, regardless of this method.

        Args:
            path: Path of the file. A relative path refers to the directory where the job started, or on a cluster with
                ``spec.output.volumeClaimName`` to that volume.

        Returns:
            The path of the file.

        Raises:
            OSError: The file cannot be written.
            Refused: ``prepare`` was not called, the script has written to the model, or it left the loop over the epochs
                early without ``stop``.
        """

    @abstractmethod
    def stop(self, reason: str) -> None:
        """Stop the job early: tasks that were begun are completed, and no further tasks are leased.

        The job then becomes Complete, and its status reports what was trained. The loops over the loader and over
        ``job.epochs()`` end on their own; if the script leaves them with ``break``, the rest of its task counts as skipped.

        Args:
            reason: Reason for the status and the log.

        Raises:
            Refused: ``prepare`` was not called.
        """


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, ``random`` and, if it is imported, numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
