"""``python -m shoal.simulator``."""

from __future__ import annotations

import sys

from shoal.simulator.command import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
