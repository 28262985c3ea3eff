"""A model and its tensors' names without what torch.compile adds to them."""

from __future__ import annotations

from torch import nn

__all__ = ["clean_name", "plain_module"]

_COMPILED = "_orig_mod."
"""What torch.compile puts into the names of a module's tensors."""


def plain_module(model: nn.Module) -> nn.Module:
    """The module itself, where torch.compile wrapped it."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def clean_name(name: str) -> str:
    """A tensor's name without what torch.compile puts into it."""
    return name.replace(_COMPILED, "")
