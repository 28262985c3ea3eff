"""The tensors that are not divided into slots: the module's buffers and its fixed tensors, all in slot 0.

The first trainer supplies their initial values, and every snapshot of slot 0 contains them. Buffers are merged with those
of the trainers; fixed tensors (frozen parameters, non-persistent buffers) never change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoal.protocol.messages import ModelSpec
from shoal.protocol.slot_layout import WHOLE_SLOT, TensorArea
from shoal.tensors.views import TensorViews

__all__ = ["WholeTensors"]

_MERGES = {"mean", "sum", "last"}


class WholeTensors:
    """The buffers and fixed tensors of a job.

    Args:
        shape: The model spec of the job.

    Attributes:
        buffer_area: Offset of each buffer in a payload.
        fixed_area: Offset of each fixed tensor in a payload.

    Raises:
        ValueError: A dtype is not supported, or a merge does not exist or does not suit the dtype.
    """

    def __init__(self, shape: ModelSpec) -> None:
        self.buffer_area = TensorArea(shape.buffers)
        self.fixed_area = TensorArea(shape.fixed)
        self._merges = [buffer.merge for buffer in shape.buffers]
        for buffer in shape.buffers:
            kind: torch.dtype = getattr(torch, buffer.dtype)
            if buffer.merge not in _MERGES or (buffer.merge == "mean" and not kind.is_floating_point):
                raise ValueError(f"buffer {buffer.name} of {buffer.dtype} cannot be merged by {buffer.merge!r}")
        self._buffers: list[Tensor] | None = None
        self._fixed: list[Tensor] | None = None

    def __bool__(self) -> bool:
        return bool(self.buffer_area.entries or self.fixed_area.entries)

    def clear(self) -> None:
        """Free the tensors: their values have not arrived yet, or another server holds slot 0."""
        self._buffers = self._fixed = None

    def check(self, buffers: Sequence[Tensor], fixed: Sequence[Tensor]) -> None:
        """Check that there is one flat tensor for each buffer and each fixed tensor.

        Raises:
            ValueError: The number of tensors differs.
        """
        for kind, area, tensors in (("buffers", self.buffer_area, buffers), ("fixed", self.fixed_area, fixed)):
            if len(tensors) != len(area.entries):
                raise ValueError(f"slot {WHOLE_SLOT} needs {len(area.entries)} {kind}, got {len(tensors)}")

    def initialise(self, buffers: Sequence[Tensor], fixed: Sequence[Tensor]) -> None:
        """Copy the first trainer's values (flat, in the order of the model spec)."""
        self._buffers = [tensor.clone() for tensor in buffers]
        self._fixed = [tensor.clone() for tensor in fixed]

    def merge(self, views: TensorViews, trainers: int) -> None:
        """Merge a trainer's buffers into the job's (see ``Parameters.merge_buffers``).

        Raises:
            ValueError: Slot 0 still waits for its initial values.
        """
        held = _present(self._buffers)
        if trainers > 0:
            for value, pushed, merge in zip(held, views.tensors, self._merges, strict=True):
                if merge == "sum":
                    value.add_(pushed)
                elif merge == "mean" and trainers > 1:
                    value.add_((pushed - value) / trainers)
                else:
                    value.copy_(pushed)
        for pushed, value in zip(views.tensors, held, strict=True):
            pushed.copy_(value)

    def read_fixed(self, views: TensorViews) -> None:
        """Copy the fixed tensors into the views.

        Raises:
            ValueError: Slot 0 still waits for its initial values.
        """
        for pushed, value in zip(views.tensors, _present(self._fixed), strict=True):
            pushed.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Return copies of all tensors, named ``buffers/NAME`` and ``fixed/NAME``."""
        tensors: dict[str, Tensor] = {}
        for kind, area, held in (
            ("buffers", self.buffer_area, self._buffers),
            ("fixed", self.fixed_area, self._fixed),
        ):
            for entry, tensor in zip(area.entries, held or (), strict=held is not None):
                tensors[f"{kind}/{entry.name}"] = tensor.clone().reshape(entry.shape)
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Install tensors that ``state`` returned.

        Raises:
            ValueError: A tensor is missing, or has another size or dtype.
        """
        buffers = _loaded("buffers", self.buffer_area, tensors)
        self._fixed = _loaded("fixed", self.fixed_area, tensors)
        self._buffers = buffers


def _present(held: list[Tensor] | None) -> list[Tensor]:
    if held is None:
        raise ValueError(f"slot {WHOLE_SLOT} still waits for its initial values")
    return held


def _loaded(kind: str, area: TensorArea, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    loaded: list[Tensor] = []
    for entry in area.entries:
        stored = tensors.get(f"{kind}/{entry.name}")
        if stored is None or stored.numel() != entry.count or stored.dtype != getattr(torch, entry.dtype):
            raise ValueError(f"slot {WHOLE_SLOT} has no {kind}/{entry.name} {entry.shape} of {entry.dtype}")
        loaded.append(stored.reshape(-1).clone())
    return loaded
