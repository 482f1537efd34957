"""What the pool logs: :mod:`billiard.util`'s logger, under its names here."""

from __future__ import annotations

from .. import util
from ..util import debug, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["debug", "error", "warning"]


def error(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log an error; without any logging set up it goes to standard error. Origin: billiard."""
    util.get_logger().error(msg, *args, **kwargs)


error.__module__ = "billiard.pool"
