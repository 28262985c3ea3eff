"""How a script is refused: in words that name its object and the fix, and with one exit code, alone and in a job."""

from __future__ import annotations

import sys

from shoal.protocol.environment import EXIT_REFUSED

__all__ = ["Refusal", "Refused"]


class Refusal(ValueError):  # noqa: N818 - what the user reads
    """The script asks for something that Shoal does not do; the message says what, and what to do instead."""


class Refused(SystemExit):
    """This script cannot be trained, and trying again cannot help: the process ends with exit code 78.

    It is no ``Exception``, so that a script's ``except Exception`` does not turn a refusal into silence.

    Args:
        reason: Names the object of the script and the fix; it is printed on stderr at once, behind ``error: ``.

    Attributes:
        reason: The same text.
    """

    raised = False
    """Whether this process raised one: whatever the script leaves undone has been explained then."""

    def __init__(self, reason: str) -> None:
        super().__init__(EXIT_REFUSED)
        Refused.raised = True
        self.reason = reason
        print(f"error: {reason}", file=sys.stderr, flush=True)  # noqa: T201 - where the script's own errors go

    def __str__(self) -> str:
        return self.reason
