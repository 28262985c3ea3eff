"""Adds the flights example's folder to sys.path, as Python does for a script: it imports helper modules beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "flights"))
