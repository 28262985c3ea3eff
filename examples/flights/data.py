"""The flights that left New York in 2013, as tensors.

Reading and joining the CSV files takes seconds, and every trainer of a job does it, again after each restart. So
the result is kept in the user's cache folder as one safetensors file, which is mapped rather than read. Trainers
that start at once may each make it; each writes a file of its own and renames it, so none sees half a file.
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
"""Part of the cache's file name; to be raised with every change of what `prepare` computes."""


class Batch(NamedTuple):
    """One batch of n flights."""

    categories: Tensor
    """int64 [n, len(CATEGORIES)], rows of one table of CATEGORY_ROWS."""
    crosses: Tensor
    """int64 [n, len(CROSSES)], rows of one table of CROSS_ROWS."""
    numbers: Tensor
    """float32 [n, len(NUMBERS)], standardised."""
    late: Tensor
    """float32 [n], 1 where the flight came late."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(*(values.to(device) for values in self))


class Flights(Dataset[Batch]):
    """Flights with a known arrival, as tensors in memory; a whole batch is cut out at once."""

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
        """The flights at `indices` as one batch; a DataLoader asks for it this way."""
        chosen = torch.as_tensor(indices)
        return Batch(
            self.categories[chosen].long(), self.crosses[chosen].long(), self.numbers[chosen], self.late[chosen].float()
        )


def whole_batch(batch: Batch) -> Batch:
    """The DataLoader's collate_fn: `Flights` hands out whole batches already."""
    return batch


def load() -> tuple[Flights, Flights]:
    """The flights to learn from and every tenth, held out; from the cache where it has them."""
    path = cache_file()
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        # Only here, as pandas takes a while to import and a trainer that finds the cache has no use for it.
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
    """Write beside `path` and rename, so that whoever finds the file finds all of it; without room, do without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
            draft = Path(folder) / path.name
            save_file(tensors, draft)
            draft.replace(path)
    except (OSError, SafetensorError) as error:
        print(f"flights: nothing cached in {path.parent}: {error}", file=sys.stderr)
