"""An operator that exits, as after SIGKILL, immediately after (or before) its n-th change on the API server."""

from __future__ import annotations

import os
import signal
import sys

from shoal.kube.wire import Wire
from shoal.operator.__main__ import main


def die_at(number: int, *, before: bool) -> None:
    once, count = Wire._once, 0

    async def counted(self, method, *arguments):
        nonlocal count
        if method == "GET":
            return await once(self, method, *arguments)
        count += 1
        mine = count  # other changes are in flight at the same time
        if before and mine == number:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await once(self, method, *arguments)
        if mine == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    Wire._once = counted


if __name__ == "__main__":
    die_at(int(os.environ["DIE_AT"]), before=os.environ["DIE_BEFORE"] == "1")
    sys.exit(main())
