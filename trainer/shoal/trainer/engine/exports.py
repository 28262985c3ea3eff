"""Model files: safetensors with the names of the module's ``state_dict``, so that plain PyTorch can load them."""

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

__all__ = ["average_path", "other_format", "save_model", "write_problem"]


def save_model(model: nn.Module, path: Path, *, instead: Mapping[str, Tensor] | None = None) -> None:
    """Write the module's parameters and buffers to a file, atomically.

    Args:
        model: The module.
        path: Path of the file; its directory is created.
        instead: Values that replace the module's, by the names of the tensors, flat or shaped. Default: none.

    Raises:
        OSError: The file cannot be written.
        Refused: The module's state_dict contains a value that is not a tensor.
    """
    other = _for_all_names(model, instead or {})
    tensors: dict[str, Tensor] = {}
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - the use of a whole sparse table is refused otherwise
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
    """Return the file mode creation mask of this process."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _for_all_names(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values by all names of their parameters: tied parameters have several names."""
    found = dict(values)
    first: dict[int, str] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        name = first.setdefault(id(parameter), clean_name(key))
        if name in values:
            found[clean_name(key)] = values[name]
    return found


def write_problem(path: Path) -> str:
    """Return why no file can be written at a path, without trying it; empty if no reason is found."""
    folder = path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"user {os.geteuid()} may not write into {folder}"
    return ""


def average_path(path: Path) -> Path:
    """Return the path of the moving average of the weights, next to the model."""
    return path.with_name(f"{path.stem}-ema{path.suffix}")


def other_format(path: Path) -> str:
    """Return a warning if the file's suffix is one of ``torch.load``'s; otherwise an empty string."""
    if path.suffix not in {".pt", ".pth", ".bin", ".ckpt", ".pkl"}:
        return ""
    return (
        f"{path} is a safetensors file, which torch.load cannot read: name it {path.with_suffix('.safetensors').name}, and read it by "
        "safetensors.torch.load_file"
    )
