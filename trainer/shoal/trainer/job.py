"""The job as a training script sees it: one contract, kept alone in one process or together with many."""

from __future__ import annotations

import os
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

__all__ = ["Job", "seed_everything"]

Model = TypeVar("Model", bound=nn.Module)


class Job(ABC):
    """One training job.

    The loop is a plain one: ``for epoch in job.epochs()``, and in it ``for batch in loader``. Asking for the next batch
    closes the one before: its gradients are pushed, merged into the next push (``accumulate``), or, if the script made
    no step, pushed as an explicit nothing that counts as skipped.
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
    ) -> tuple[Model, Any, Any]:
        """Make the job's of what the script has; returns what takes the place of the three in the loop.

        Args:
            model: The module, on the device where it computes. The same module comes back.
            optimizer: One of ``torch.optim``, or a list of them (SparseAdam beside Adam); a list comes back for a list.
                Parameter servers run it; here its ``step`` only says that the batch made one.
            loader: A DataLoader without a sampler of its own, or a map-style Dataset (shuffled; with ``batch_size``).
            scheduler: Of ``torch.optim.lr_scheduler``. Don't step it: its values are taken as a function of the job's
                step, the number of the batch in the job's order.
            scheduler_interval: ``step`` or ``epoch``: what the scheduler counts.
            accumulate: Batches whose gradients are added up for one step. ``step`` and ``zero_grad`` do nothing in
                between; divide the loss by it, as ever. Clipping and a GradScaler's calls belong behind
                ``if optimizer.closes:``.
            batch_size: With a Dataset.
            task_batches: Batches that are handed out together; by default some 64 tasks an epoch.

        Raises:
            Refusal: Something cannot be trained so; the message says what to do instead.
        """

    @abstractmethod
    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from the job's current one; the last may come again if work came back."""

    @abstractmethod
    def log(self, **values: Any) -> None:
        """Report values such as ``loss=loss``: numbers or tensors of one element. Never waits for the device."""

    @abstractmethod
    def evaluate(self, score: Callable[[Any], Any]) -> Any:
        """Score the epoch's model: one trainer runs ``score(model)`` (in eval mode, without gradients), all get it.

        Args:
            score: Gives a number, or a dict of numbers, or anything else that JSON can hold.
        """

    @abstractmethod
    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the model as safetensors, with the names of its ``state_dict``; where it is.

        In a job with ``output.path`` in its manifest that path is taken instead.
        """


def seed_everything(seed: int) -> None:
    """Seed the generators that a script may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
