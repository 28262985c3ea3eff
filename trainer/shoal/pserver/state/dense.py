"""The dense parameters of a server's slots, updated by torch's own optimizers, and their moving averages.

Every piece of every slot is a separate tensor with separate optimizer state, because slots move and fall behind
independently: a push may be new at some slots and a duplicate at others. One optimizer per parameter group runs over the
pieces of all slots at once; torch skips a piece without a gradient, including its state and its count of steps. No other
selection is needed.

Gradients and values are views into the memory of a connection (``DenseViews``) that are created once: a push of 40 MB is
read in place and never modified.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shoal.protocol.messages import Group, ModelSpec
from shoal.protocol.slot_layout import Piece, pieces
from shoal.tensors.constraints import constrain, is_constrained
from shoal.tensors.optimizers import build, check_changed, from_json, keeps_gradients
from shoal.tensors.views import DenseViews

__all__ = ["Dense"]


class Dense:
    """The dense pieces of the slots that a server holds.

    Args:
        shape: The model spec of the job.
        slots_total: Number of slots of the job.

    Raises:
        UnsupportedOptimizer: The optimizer of a group is not supported on parameter servers.
    """

    def __init__(self, shape: ModelSpec, slots_total: int) -> None:
        self._shape = shape
        self._cut = pieces(shape, slots_total)
        self._values: dict[int, list[Tensor]] = {}
        self._averages: dict[int, list[Tensor]] = {}
        """Slot -> moving averages, of the slots at which a step was applied; empty if the job keeps no averages."""
        self._constrains = any(is_constrained(parameter) for parameter in shape.dense)
        self._optimizers: dict[int, Optimizer] = {}
        self._options: dict[int, dict[str, Any]] = {}
        for index in sorted({parameter.group for parameter in shape.dense}):
            optimizer = _empty(shape.groups[index])
            self._optimizers[index] = optimizer
            self._options[index] = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}

    def create(self, slot: int) -> None:
        """Allocate the slot with zeros and the optimizer's initial state."""
        if slot in self._values:
            self.drop(slot)
        self._values[slot] = [self._new(piece) for piece in self._cut[slot]]

    def drop(self, slot: int) -> None:
        """Free the slot's values, averages and optimizer state."""
        dropped = self._values.pop(slot)
        self._averages.pop(slot, None)
        ids = {id(value) for value in dropped}
        for optimizer in self._optimizers.values():
            group = optimizer.param_groups[0]
            group["params"] = [value for value in group["params"] if id(value) not in ids]
        for piece, value in zip(self._cut[slot], dropped, strict=True):
            self._optimizer(piece).state.pop(value, None)

    def initialise(self, slot: int, values: Sequence[Tensor]) -> None:
        """Allocate the slot with these values, one tensor per piece, and the optimizer's initial state."""
        self.create(slot)
        _copy(self._values[slot], values)

    def check(self, slots: Collection[int], views: DenseViews) -> None:
        """Check that a push can be applied at these slots.

        Raises:
            ValueError: A slot is not in the push.
        """
        missing = [slot for slot in slots if slot not in views.by_slot]
        if missing:
            raise ValueError(f"a push for the slots {list(views.by_slot)} cannot be applied at {missing}")

    def check_options(self, options: Mapping[int, Mapping[str, Any]]) -> None:
        """Check the options of a push, given by parameter group.

        Raises:
            ValueError: A group does not exist, or its optimizer does not have the option or accept the value.
        """
        for index, changed in options.items():
            if not 0 <= index < len(self._shape.groups):
                raise ValueError(f"no parameter group {index}: the job has {len(self._shape.groups)}")
            known = self._options.get(index)
            if known is not None:
                check_changed(self._shape.groups[index].optimizer, known, changed)

    def apply(
        self,
        slots: Collection[int],
        gradients: DenseViews,
        *,
        absent: Collection[int],
        options: Mapping[int, Mapping[str, Any]],
    ) -> None:
        """Take one optimizer step at these slots, then constrain their values and update their moving averages.

        Constraints and averages apply to every piece, as in a plain loop, including pieces without a gradient.
        """
        without = set(absent)
        groups: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for slot in slots:
            for piece, value, gradient in zip(
                self._cut[slot], self._values[slot], gradients.by_slot[slot], strict=True
            ):
                if piece.parameter not in without:
                    group = self._shape.dense[piece.parameter].group
                    groups.setdefault(group, []).append((value, gradient))
        for index, pairs in groups.items():
            self._step(index, pairs, options.get(index, {}))
        if self._constrains:
            self._constrain(slots)
        if self._shape.ema > 0:
            self._average(slots)

    def read(self, views: DenseViews, *, average: bool = False) -> None:
        """Copy the values of the views' slots into the views; slots that are not held here are not written.

        Args:
            views: The memory to write into.
            average: Copy the moving averages instead; for a slot without an applied step, the values. Default: False.

        Raises:
            ValueError: The job keeps no moving averages.
        """
        if average and not self._shape.ema > 0:
            raise ValueError("the job keeps no moving average of its parameters")
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for slot, tensors in views.by_slot.items():
            if slot in self._values:
                targets += tensors
                sources += self._averages.get(slot, self._values[slot]) if average else self._values[slot]
        _copy(targets, sources)

    def export(self, slot: int) -> list[Tensor]:
        """Return copies of the slot's pieces, in the order of the parameters."""
        return [value.clone() for value in self._values[slot]]

    def state(self, slot: int) -> dict[str, Tensor]:
        """Return copies of the slot's state: ``dense/NAME@START``, ``state/KEY/NAME@START``, ``ema/NAME@START``."""
        tensors: dict[str, Tensor] = {}
        for piece, value in zip(self._cut[slot], self._values[slot], strict=True):
            label = self._label(piece)
            tensors[f"dense/{label}"] = value.clone()
            for key, part in self._optimizer(piece).state.get(value, {}).items():
                if part is not None:
                    tensors[f"state/{key}/{label}"] = torch.as_tensor(part).clone()
        for piece, average in zip(self._cut[slot], self._averages.get(slot, ()), strict=slot in self._averages):
            tensors[f"ema/{self._label(piece)}"] = average.clone()
        return tensors

    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Install tensors that ``state`` returned.

        Raises:
            ValueError: A piece is missing, or has another size or dtype.
        """
        self.create(slot)
        states: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("state/"):
                _, key, label = name.split("/", 2)
                states.setdefault(label, {})[key] = tensor.clone()
        for piece, value in zip(self._cut[slot], self._values[slot], strict=True):
            label = self._label(piece)
            value.copy_(_stored(tensors, f"dense/{label}", slot=slot, expected=value))
            if label in states:
                self._optimizer(piece).state[value] = states[label]
        if any(name.startswith("ema/") for name in tensors):
            self._averages[slot] = [
                _stored(tensors, f"ema/{self._label(piece)}", slot=slot, expected=value).clone()
                for piece, value in zip(self._cut[slot], self._values[slot], strict=True)
            ]

    def _step(self, index: int, pairs: Sequence[tuple[Tensor, Tensor]], changed: Mapping[str, Any]) -> None:
        optimizer = self._optimizers[index]
        group = optimizer.param_groups[0]
        group.update(self._options[index])
        group.update(from_json(changed))
        kept = keeps_gradients(self._shape.groups[index].optimizer, group)
        for value, gradient in pairs:
            value.grad = gradient if kept else gradient.clone()
        try:
            optimizer.step()
        finally:
            for value, _ in pairs:
                value.grad = None

    def _constrain(self, slots: Collection[int]) -> None:
        for slot in slots:
            for piece, value in zip(self._cut[slot], self._values[slot], strict=True):
                parameter = self._shape.dense[piece.parameter]
                if is_constrained(parameter):
                    # A piece of a parameter with a maximum norm consists of whole rows.
                    constrain(value.view(-1, *parameter.shape[1:]) if parameter.max_norm else value, parameter)

    def _average(self, slots: Collection[int]) -> None:
        """Update the moving averages; bit-identical to ``torch.optim.swa_utils.get_ema_multi_avg_fn``."""
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for slot in slots:
            if slot in self._averages:
                averages += self._averages[slot]
                values += self._values[slot]
            else:
                self._averages[slot] = self.export(slot)
        if averages:
            torch._foreach_lerp_(averages, values, 1 - self._shape.ema)

    def _new(self, piece: Piece) -> Tensor:
        value = torch.zeros(len(piece), dtype=getattr(torch, self._shape.dense[piece.parameter].dtype))
        index = self._shape.dense[piece.parameter].group
        group = self._shape.groups[index]
        self._optimizers[index].param_groups[0]["params"].append(value)
        # Some optimizers create their state in the constructor: build one for this piece alone and take its state.
        state = build(group.optimizer, [value], group.options).state.get(value)
        if state:
            self._optimizers[index].state[value] = state
        return value

    def _optimizer(self, piece: Piece) -> Optimizer:
        return self._optimizers[self._shape.dense[piece.parameter].group]

    def _label(self, piece: Piece) -> str:
        return f"{self._shape.dense[piece.parameter].name}@{piece.start}"


def _empty(group: Group) -> Optimizer:
    """Build an optimizer without parameters, which its constructor would reject."""
    placeholder = torch.zeros(1)
    optimizer = build(group.optimizer, [placeholder], group.options)
    optimizer.param_groups[0]["params"] = []
    optimizer.state.pop(placeholder, None)
    return optimizer


def _stored(tensors: Mapping[str, Tensor], name: str, *, slot: int, expected: Tensor) -> Tensor:
    stored = tensors.get(name)
    if stored is None or stored.shape != expected.shape or stored.dtype != expected.dtype:
        raise ValueError(f"slot {slot} has no {name} of {expected.numel()} elements of {expected.dtype}")
    return stored


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(list(targets), list(sources))
