"""The flights that left New York in 2013, as tensors.

Reading and joining the CSV files takes seconds, and every trainer of a job does so again after each restart. The
result is therefore kept in the user's cache folder as one safetensors file, which is memory-mapped. Trainers that
start at the same time may each compute it: each writes a temporary file and renames it, so none reads a partial file.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Batch", "Flights", "load", "whole_batch"]

CACHE_VERSION = 1
"""Part of the cache file's name. Increase it whenever the result of `prepare` changes."""


class Batch(NamedTuple):
    """One batch of n flights."""

    categories: Tensor
    """int64 [n, len(CATEGORIES)], rows of one table of CATEGORY_ROWS."""
    crosses: Tensor
    """int64 [n, len(CROSSES)], rows of one table of CROSS_ROWS."""
    numbers: Tensor
    """float32 [n, len(NUMBERS)], standardised."""
    late: Tensor
    """float32 [n], 1 where the flight arrived late."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with all its tensors on `device`."""
        return Batch(*(values.to(device) for values in self))


class Flights(Dataset[Batch]):
    """Flights with a known arrival, as tensors in memory. `__getitems__` indexes a whole batch at once."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.categories = tensors["categories"]
        self.crosses = tensors["crosses"]
        self.numbers = tensors["numbers"]
        self.late = tensors["late"]

    def __len__(self) -> int:
        return len(self.late)

    def __getitem__(self, index: int) -> Batch:
        return Batch(*(values[0] for values in self.__getitems__([index])))

    def __getitems__(self, indices: list[int] | Tensor) -> Batch:
        """Return the flights at `indices` as one batch; the DataLoader calls this instead of `__getitem__`."""
        chosen = torch.as_tensor(indices)
        return Batch(
            self.categories[chosen].long(), self.crosses[chosen].long(), self.numbers[chosen], self.late[chosen].float()
        )


def whole_batch(batch: Batch) -> Batch:
    """The DataLoader's collate_fn: returns its argument, as `Flights.__getitems__` returns whole batches."""
    return batch


def load() -> tuple[Flights, Flights]:
    """Return the training set and the held-out set (about every tenth flight), from the cache where it exists."""
    path = cache_file()
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        # Imported here because pandas is slow to import, and a trainer that finds the cache does not need it.
        from prepare import prepare, read_flights, read_weather  # noqa: PLC0415

        tensors = prepare(read_flights(), read_weather())
        write_whole(tensors, path)
    return part(tensors, "train"), part(tensors, "held_out")


def part(tensors: dict[str, Tensor], name: str) -> Flights:
    prefix = f"{name}/"
    return Flights({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})


def cache_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "shoal" / f"flights-v{CACHE_VERSION}.safetensors"


def write_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a temporary file and rename it to `path`, so that no reader sees a partial file; on an error, warn only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
            draft = Path(folder) / path.name
            save_file(tensors, draft)
            draft.replace(path)
    except (OSError, SafetensorError) as error:
        print(f"flights: nothing cached in {path.parent}: {error}", file=sys.stderr)
