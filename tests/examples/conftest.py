"""The examples are scripts with helper modules beside them, so their folder goes on the path, as python does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "flights"))
