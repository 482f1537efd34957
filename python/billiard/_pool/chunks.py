"""What workers call for a chunk of a map: apart, as a worker that was not forked imports it."""

from __future__ import annotations

import itertools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def mapstar(args: tuple[Any, ...]) -> list[Any]:
    """A chunk of ``map``: ``(func, items)``. Runs in the worker."""
    return list(map(*args))


def starmapstar(args: tuple[Any, Any]) -> list[Any]:
    """A chunk of ``starmap``: ``(func, argument tuples)``. Runs in the worker."""
    return list(itertools.starmap(args[0], args[1]))
