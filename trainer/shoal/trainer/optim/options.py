"""Compares the options of a script's parameter groups with those registered at the start of the job. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shoal.protocol.messages import Group
from shoal.tensors.optimizers import group_options

__all__ = ["option_messages", "options_changed"]


def option_messages(groups: Iterable[Mapping[str, Any]], registered: Iterable[Group]) -> Iterator[str]:
    """Yield a text for users for each option, such as a learning rate, that differs from the registered one."""
    for number, (group, began) in enumerate(zip(groups, registered, strict=True)):
        for name, value in group_options(group).items():
            before = began.options.get(name)
            if before != value and name in began.options and "initial_lr" not in group:
                yield (
                    f"parameter group {number}: {name} is {value} in this script, {before} when the job began; "
                    f"{value} counts from here"
                )


def options_changed(options: Mapping[int, Mapping[str, Any]], registered: Sequence[Group]) -> dict[int, dict[str, Any]]:
    """Return, by parameter group, the options of a step that differ from the registered ones."""
    changed = {}
    for number, now in options.items():
        began = registered[number].options
        if now != began:
            changed[number] = {name: value for name, value in now.items() if began.get(name) != value}
    return changed
