"""The job as a training script sees it: one contract, kept alone in one process or together with many."""

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

    The loop is a plain one: ``for epoch in job.epochs()``, and in it ``for batch in loader``. ``optimizer.step()`` takes
    effect at once, on all trainers' model; a batch without one counts as skipped when the next is asked for; what a
    script may do beside that, and what is refused, is in ``docs/scripts.md``.
    """

    @property
    def device(self) -> torch.device:
        """Where this trainer computes: a GPU if there is one."""
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
        """Make the job's of what the script has; returns the three for the loop. See ``docs/scripts.md``.

        Args:
            model: The module, on the device where it computes; several in an ``nn.ModuleDict``. The same module comes
                back. Initial values of parameters, frozen parameters and buffers are those of the job's first trainer.
            optimizer: One of ``torch.optim``, or a list of them (SparseAdam beside Adam). The same objects come back;
                parameter servers carry out their steps from here on.
            loader: A DataLoader, with any sampler or batch sampler that gives the same finite order for the same seed; or
                a map-style Dataset (shuffled; with ``batch_size``). What comes back has the attributes of the DataLoader.
            scheduler: Of ``torch.optim.lr_scheduler``, or a list of them. The job steps them, by its own count of
                optimizer steps; the script's ``scheduler.step()`` may stay where it is.
            scheduler_interval: ``step`` or ``epoch``: what the schedulers count.
            accumulate: Batches whose gradients are added up for one step. ``step`` and ``zero_grad`` do nothing in
                between; divide the loss by it, as ever. Clipping and a GradScaler's calls belong behind
                ``if optimizer.closes:``.
            batch_size: With a Dataset.
            task_batches: Batches that are handed out together; by default some 64 tasks an epoch.
            ema: Decay of a moving average of the weights (0.999), kept by the parameter servers and saved beside the
                model as ``NAME-ema.safetensors``; 0: none.
            clamp: Bounds (low, high) by parameter name (``*`` and ``?`` match), kept after every step.
            max_norm: By parameter name, the largest Euclidean norm of a row (all values with one first index): after
                every step, and after ``clamp``, larger rows are scaled down to it, as ``renorm_(2, 0, max_norm)`` does.

        Raises:
            Refused: Something cannot be trained so; the message says what to do instead.
        """

    @abstractmethod
    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from the job's current one; the last may come again if work came back."""

    @abstractmethod
    def log(self, **values: Any) -> None:
        """Report values such as ``loss=loss``: numbers or tensors of one element. Never waits for the device."""

    @abstractmethod
    def evaluate(self, score: Callable[[Any], Any]) -> Any:
        """Score the model: one trainer runs ``score(model)`` (in eval mode, without gradients), all get what it gave.

        Each call is an evaluation of its own: the n-th call of an epoch in one trainer is the n-th in all.

        Args:
            score: Gives a number, or a dict of numbers, or anything else that JSON can hold.
        """

    @abstractmethod
    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the model of this moment as safetensors, with the names of its ``state_dict``; where it is.

        One trainer writes it, and nobody finds half a file; a moving average (``ema``) goes beside it. Each call writes
        anew: the n-th call for a path in an epoch is the same one in all trainers. At the job's end ``spec.output.path``
        has the last model, whatever the script saves.

        Args:
            path: Of the file; a relative one is relative to where the job started (on a cluster with
                ``spec.output.volumeClaimName``: to that volume).
        """

    @abstractmethod
    def stop(self, reason: str) -> None:
        """End the job early, in good order: the tasks that are begun are finished, no other begins.

        The job is Complete then, with the account of what was trained. The loops over the loader and over
        ``job.epochs()`` end by themselves; a script that leaves them by ``break`` has the rest of its task counted as
        skipped.

        Args:
            reason: For the status and the log.
        """


def seed_everything(seed: int) -> None:
    """Seed the generators that a script may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
