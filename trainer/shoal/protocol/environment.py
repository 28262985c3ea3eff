"""Environment variables, exit codes and times that the processes of a job share."""

from __future__ import annotations

import os

__all__ = [
    "EXIT_DEPOSED",
    "EXIT_NO_ETCD",
    "EXIT_REFUSED",
    "FOLDER",
    "INDEX",
    "LONG_FACTOR",
    "MASTER",
    "ROLE",
    "SEED",
    "TOKEN_FILE",
    "UID",
    "number",
    "text",
]

MASTER = "SHOAL_MASTER"
"""The master's address: ``unix://``, ``tcp://`` or ``file://`` (a file that holds one of these, read at each connect)."""

TOKEN_FILE = "SHOAL_TOKEN_FILE"  # noqa: S105 - the name of a variable, not a token
"""The path of the file with the job's token. The token itself is in no environment, argument or log."""

UID = "SHOAL_UID"
"""The job's uid, which distinguishes it from another job of the same name."""

ROLE = "SHOAL_ROLE"
"""``master``, ``pserver`` or ``trainer``."""

INDEX = "SHOAL_INDEX"
"""The index of this trainer or parameter server, from 0."""

FOLDER = "SHOAL_FOLDER"
"""The folder of relative paths of ``job.save``, even if the script changes its directory. Default: its directory at start."""

SEED = "SHOAL_SEED"
"""The manifest's seed, if it has one: a script creates its model before its trainer connects to the master."""

EXIT_NO_ETCD = 74
"""Exit code of a master that cannot reach etcd."""

EXIT_DEPOSED = 75
"""Exit code of a master that was deposed by a newer one."""

EXIT_REFUSED = 78
"""Exit code of a process that is refused for good: invalid input, described on stderr. A retry has the same result."""


LONG_FACTOR = 3
"""The factor on the step timeout (``spec.runPolicy.stepTimeout``) for: a trainer's first batch, which compiles, fills
caches and starts workers; an evaluation; the writing of a model; the script between two passes over its loader."""


def text(name: str) -> str:
    """Return the value of a variable that the runner or the operator sets for every process of a job.

    Raises:
        ValueError: The variable is not set.
    """
    found = os.environ.get(name, "")
    if not found:
        raise ValueError(f"{name} is not set; the runner or the operator sets it for every process of a job")
    return found


def number(name: str) -> int:
    """Return the value of such a variable as an integer from 0.

    Raises:
        ValueError: The variable is not set, or is not a whole number from 0.
    """
    found = text(name)
    if not (found.isascii() and found.isdigit()):
        raise ValueError(f"{name} is {found!r}; it must be a whole number from 0")
    return int(found)
