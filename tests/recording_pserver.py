"""A parameter server that records in each slot's state the order in which it applied pushes, so that a test can replay it.

The record is part of the slot's state like the parameters: it is in every snapshot, and a restore sets it back too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

import shoal.pserver.service
from shoal.pserver.__main__ import main
from shoal.pserver.state.parameters import Parameters
from shoal.pserver.state.slot_states import SlotStates

ORDER = "order"
applied: dict[int, list[tuple[int, int, int]]] = {}


class Recording(Parameters):
    def create(self, slot: int) -> Any:
        applied[slot] = []
        return super().create(slot)

    def state(self, slot: int) -> dict[str, torch.Tensor]:
        return super().state(slot) | {ORDER: torch.tensor(applied[slot], dtype=torch.int64).reshape(-1, 3)}

    def load(self, slot: int, tensors: Mapping[str, torch.Tensor]) -> None:
        super().load(slot, {name: tensor for name, tensor in tensors.items() if name != ORDER})
        applied[slot] = [tuple(row) for row in tensors[ORDER].tolist()]


advance = SlotStates.advance


def advance_and_record(self: SlotStates, slots: Any, push: Any) -> None:
    advance(self, slots, push)
    for slot in slots:
        applied[slot].append((push.epoch, push.task, push.first))


if __name__ == "__main__":
    shoal.pserver.service.Parameters = Recording  # type: ignore[misc]
    SlotStates.advance = advance_and_record  # type: ignore[method-assign]
    sys.exit(main())
