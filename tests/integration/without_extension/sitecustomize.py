"""Put first on PYTHONPATH, this hides `_billiard`, as if only the Python modules were there."""

import sys

sys.modules["_billiard"] = None  # type: ignore[assignment]
