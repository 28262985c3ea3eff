"""Removes the wrapper and the name prefix that torch.compile adds to a model."""

from __future__ import annotations

from torch import nn

__all__ = ["clean_name", "plain_module"]

_COMPILED = "_orig_mod."
"""The prefix that torch.compile adds to the names of a module's tensors."""


def plain_module(model: nn.Module) -> nn.Module:
    """Return the module inside a wrapper of torch.compile; any other module unchanged."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def clean_name(name: str) -> str:
    """Return a tensor's name without the prefix of torch.compile."""
    return name.replace(_COMPILED, "")
