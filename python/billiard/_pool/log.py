"""What the pool logs: :mod:`billiard.util`'s logger, under its names here."""

from __future__ import annotations

from .. import util
from ..util import debug, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["debug", "error", "warning"]


def error(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log an error; without any logging set up it goes to standard error. Origin: billiard.

    What cannot be logged, because there is no descriptor left for it or a filter fails, is no
    reason for a thread to end on which others depend.
    """
    try:  # noqa: SIM105  (contextlib is dear to import)
        util.get_logger().error(msg, *args, **kwargs)
    except Exception:
        pass


error.__module__ = "billiard.pool"
