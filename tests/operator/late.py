"""An operator that receives each event of etcd's watch two seconds late, as on an overloaded machine."""

from __future__ import annotations

import sys
from collections.abc import Callable

from shoal.operator.__main__ import main
from shoal.operator.manager import Operator

SECONDS = 2.0


def delayed(records: Callable[..., None]) -> Callable[..., None]:
    def reported(self: Operator, events: list) -> None:
        self._loop.call_soon_threadsafe(self._loop.call_later, SECONDS, records, self, events)

    return reported


if __name__ == "__main__":
    Operator._records = delayed(Operator._records)
    sys.exit(main())
