"""The limit of open files of a process, and the errors of a lack of descriptors."""

from __future__ import annotations

import errno
import resource

__all__ = ["SHORT", "allow_all"]

SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) for a temporary lack of descriptors or memory."""


def allow_all() -> None:
    """Raise the process's soft limit of open files to its hard limit; a shell's limit of 1,024 exists for ``select``."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
