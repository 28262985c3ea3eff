"""Open files of a process: as many as the machine allows, and what it means that there are none left."""

from __future__ import annotations

import errno
import resource

__all__ = ["SHORT", "allow_all"]

SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) that say that descriptors or memory are short; they pass when one is free again."""


def allow_all() -> None:
    """Raise the process's own bound to what it may have: a shell's bound of 1,024 is there for ``select``."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
