"""The loader that the script iterates: has the attributes of its DataLoader, but yields the batches of the job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader

from shoal.trainer.refusal import Refused

__all__ = ["BatchLoader", "Passes"]


class Passes(Protocol):
    """The source of the batches."""

    def begin_pass(self) -> int:
        """Begin a pass over the loader; return its number."""
        ...

    def following(self, number: int) -> tuple[bool, Any]:
        """Return (True, batch), or (False, None) at the end of the epoch."""
        ...

    def leave_pass(self, number: int) -> None:
        """End the pass: at its end, or because of ``break`` or an error."""
        ...


class BatchLoader(DataLoader[Any]):
    """Replaces the script's DataLoader in the loop; has the same attributes.

    Args:
        loader: The script's DataLoader.
        passes: The source of the batches.
        batches: Number of batches in an epoch of the job.
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
        """Return the number of batches in an epoch of the job, over all trainers. Constant."""
        return int(self.__dict__["_shoal_batches"])

    def __setattr__(self, attr: str, val: Any) -> None:
        """Refuse the assignment, which would have no effect.

        Raises:
            Refused: Always.
        """
        raise Refused(f"loader.{attr} = {val!r} after prepare has no effect any more; set it on the DataLoader before")
