"""``python -m shoal.autoscaler.simulate``."""

from __future__ import annotations

import sys

from shoal.autoscaler.simulate.command import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
