"""Model files: safetensors with the names of the module's ``state_dict``, so that plain PyTorch loads them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shoal.trainer.refusal import Refused
from shoal.trainer.script.tensor_names import clean_name

__all__ = ["average_path", "other_format", "save_model", "why_unwritable"]


def save_model(model: nn.Module, path: Path, *, instead: Mapping[str, Tensor] | None = None) -> None:
    """Write the module's parameters and buffers; whoever finds the file finds all of it.

    Args:
        model: The module.
        path: Of the file; its folder is made.
        instead: Values by the tensors' names that take the place of the module's, flat or shaped.

    Raises:
        OSError: It cannot be written there.
        Refused: The module's state_dict holds something that is no tensor.
    """
    other = _for_all_names(model, instead or {})
    tensors: dict[str, Tensor] = {}
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - a sparse table gives its rows only, otherwise
        for key, value in model.state_dict().items():
            name = clean_name(key)
            if not isinstance(value, Tensor):
                raise Refused(
                    f"the model's state_dict has {name}, a {type(value).__name__}, which a safetensors file cannot hold; "
                    "keep it in a buffer, or leave get_extra_state out"
                )
            chosen = other[name].view(value.shape) if name in other else value
            tensors[name] = chosen.detach().cpu().contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder) / path.name
        save_file(tensors, part)
        part.chmod(0o666 & ~_umask())
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)


def _umask() -> int:
    """What this process takes away from the mode of new files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _for_all_names(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by the parameters' names, and by the other names of those that are tied."""
    found = dict(values)
    first: dict[int, str] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        name = first.setdefault(id(parameter), clean_name(key))
        if name in values:
            found[clean_name(key)] = values[name]
    return found


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


def average_path(path: Path) -> Path:
    """Where the moving average of the weights is written, beside the model."""
    return path.with_name(f"{path.stem}-ema{path.suffix}")


def other_format(path: Path) -> str:
    """A file's name promises what ``torch.load`` reads; "" where it does not."""
    if path.suffix not in {".pt", ".pth", ".bin", ".ckpt", ".pkl"}:
        return ""
    return (
        f"{path} is a safetensors file, which torch.load cannot read: name it {path.with_suffix('.safetensors').name}, and read it by "
        "safetensors.torch.load_file"
    )
