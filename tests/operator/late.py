"""An operator to which etcd's watch tells everything two seconds late, as on a machine that has too much to do."""

from __future__ import annotations

import sys
from collections.abc import Callable

from shoal.operator.__main__ import main
from shoal.operator.manager import Operator

SECONDS = 2.0


def delayed(records: Callable[..., None]) -> Callable[..., None]:
    def told(self: Operator, events: list) -> None:
        self._loop.call_soon_threadsafe(self._loop.call_later, SECONDS, records, self, events)

    return told


if __name__ == "__main__":
    Operator._records = delayed(Operator._records)
    sys.exit(main())
