"""Tensors as bytes, where they lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["bytes_of"]


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a CPU tensor (of a copy, where it is not contiguous), writable."""
    whole: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(whole)
