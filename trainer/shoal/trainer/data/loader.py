"""The loader that the script iterates: a DataLoader to look at, whose batches are the job's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader

from shoal.trainer.refusal import Refused

__all__ = ["BatchLoader", "Passes"]


class Passes(Protocol):
    """What gives the batches."""

    def begin_pass(self) -> int:
        """A pass over the loader begins; its number."""
        ...

    def following(self, number: int) -> tuple[bool, Any]:
        """(True, batch), or (False, None) at the end of the epoch."""
        ...

    def leave_pass(self, number: int) -> None:
        """The pass ends: through, or left by ``break`` or an error."""
        ...


class BatchLoader(DataLoader[Any]):
    """Takes the place of the user's DataLoader in the loop; its attributes are the user's.

    Args:
        loader: The user's.
        passes: Gives the batches.
        batches: Batches in an epoch of the job.
    """

    _shoal_ready = False

    def __init__(self, loader: DataLoader[Any], passes: Passes, *, batches: int) -> None:
        self.__dict__.update(loader.__dict__)
        self.__dict__.update(_shoal_passes=passes, _shoal_batches=batches, _shoal_ready=True)

    def __iter__(self) -> Any:
        return self._shoal_iterate(self.__dict__["_shoal_passes"])

    def _shoal_iterate(self, passes: Passes) -> Iterator[Any]:
        number = passes.begin_pass()
        try:
            while True:
                more, batch = passes.following(number)
                if not more:
                    return
                yield batch
        finally:
            passes.leave_pass(number)

    def __len__(self) -> int:
        """Batches in an epoch of the job, over all trainers: constant."""
        return int(self.__dict__["_shoal_batches"])

    def __setattr__(self, attr: str, val: Any) -> None:
        """Refused.

        Raises:
            Refused: Always.
        """
        raise Refused(f"loader.{attr} = {val!r} after prepare has no effect any more; set it on the DataLoader before")
