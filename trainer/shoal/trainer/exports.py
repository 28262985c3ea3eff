"""Model files: safetensors with the names of the module's ``state_dict``, so that plain PyTorch loads them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["save_model", "why_unwritable"]


def save_model(model: nn.Module, path: Path) -> None:
    """Write the module's parameters and buffers; whoever finds the file finds all of it.

    Raises:
        OSError: It cannot be written there.
    """
    tensors: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder) / path.name
        save_file(tensors, part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)


def why_unwritable(path: Path) -> str:
    """Why no file can be written there, as far as that is known before; empty: nothing speaks against it."""
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"user {os.geteuid()} may not write into {folder}"
    return ""
