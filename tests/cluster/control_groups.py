"""The root of a node's control groups, in every hierarchy of this machine (version 1, version 2 or both)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["make_control_groups", "remove_control_groups"]


def make_control_groups(name: str) -> None:
    """Create a group of this name below each hierarchy's root."""
    for root in _hierarchies():
        available = root / "cgroup.controllers"
        if available.exists():
            # In version 2, child groups get controllers only if the parent enables them.
            wanted = " ".join(f"+{each}" for each in available.read_text().split())
            with contextlib.suppress(OSError):
                (root / "cgroup.subtree_control").write_text(wanted)
        (root / name).mkdir(exist_ok=True)


def remove_control_groups(name: str) -> None:
    """Remove the whole tree after its processes have ended."""
    for root in _hierarchies():
        for folder, _, _ in os.walk(root / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def _hierarchies() -> list[Path]:
    rows = [row.split() for row in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(row[1]) for row in rows if row[2] in {"cgroup", "cgroup2"}]
