"""Names of the environment variables, exit codes and times that the processes of a job agree on."""

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
"""Where the master is: ``unix://``, ``tcp://`` or ``file://`` (a file that holds one of these, read at each connect)."""

TOKEN_FILE = "SHOAL_TOKEN_FILE"  # noqa: S105 - the name of a variable, not a token
"""The file with the job's token. The token itself is in no environment, argument or log."""

UID = "SHOAL_UID"
"""What tells this job from another one of the same name."""

ROLE = "SHOAL_ROLE"
"""``master``, ``pserver`` or ``trainer``."""

INDEX = "SHOAL_INDEX"
"""The number of this trainer or parameter server, from 0."""

FOLDER = "SHOAL_FOLDER"
"""What a script's relative paths are relative to, wherever it changes its directory to; without it where it started."""

SEED = "SHOAL_SEED"
"""The manifest's seed, if it has one: a script's model is made before its trainer can ask the master."""

EXIT_NO_ETCD = 74
"""The master could not reach etcd."""

EXIT_DEPOSED = 75
"""The master found that a newer one took over."""

EXIT_REFUSED = 78
"""Refused for good: bad input, said on stderr. Trying again cannot help."""


LONG_FACTOR = 3
"""So many times as long as a batch (``spec.runPolicy.stepTimeout``) may take: a trainer's first batch, which compiles, fills
caches and starts workers; an evaluation; the writing of a model; what a script does between two passes over its loader."""


def text(name: str) -> str:
    """The value of a variable that whoever starts the processes of a job sets.

    Raises:
        ValueError: It is not set.
    """
    found = os.environ.get(name, "")
    if not found:
        raise ValueError(f"{name} is not set; it is set for every process of a job by whoever starts it")
    return found


def number(name: str) -> int:
    """The same, as a whole number from 0.

    Raises:
        ValueError: It is not set, or not a number.
    """
    found = text(name)
    if not (found.isascii() and found.isdigit()):
        raise ValueError(f"{name} is {found!r}; it must be a whole number from 0")
    return int(found)
