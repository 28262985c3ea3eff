"""Refusal of a script: a message that names the object and the fix, and the same exit code alone and in a job."""

from __future__ import annotations

import sys

from shoal.protocol.environment import EXIT_REFUSED

__all__ = ["Refusal", "Refused"]


class Refusal(ValueError):  # noqa: N818 - the name that users read
    """The script needs something that Shoal does not support; the message names it and the fix."""


class Refused(SystemExit):
    """The script cannot be trained, and a retry cannot help; the process exits with code 78.

    It is not an ``Exception``, so that ``except Exception`` in a script does not hide a refusal.

    Args:
        reason: Text that names the object in the script and the fix; printed to stderr immediately, after ``error: ``.

    Attributes:
        reason: The text.
    """

    raised = False
    """Whether this process raised a refusal, so that an unfinished loop needs no further explanation."""

    def __init__(self, reason: str) -> None:
        super().__init__(EXIT_REFUSED)
        Refused.raised = True
        self.reason = reason
        print(f"error: {reason}", file=sys.stderr, flush=True)  # noqa: T201 - where the script's own errors go

    def __str__(self) -> str:
        return self.reason
