"""Stress tests use what the unit tests have their workers do, too."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "unit"))
