"""What callers may pass: numbers that are numbers, and of which kind."""

from __future__ import annotations

from operator import index
from threading import TIMEOUT_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _refuse_bool(name: str, value: object) -> None:
    # A bool is an int to Python: True would quietly be one worker, or one second.
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int or float, not bool (got {value!r})")


def count(name: str, value: Any, least: int = 0) -> Any:
    """A number of things, or None."""
    _refuse_bool(name, value)
    if value is None:
        return None
    number = index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def maxtasks(value: Any) -> int | None:
    """Tasks in a worker's life, or None."""
    _refuse_bool("maxtasksperchild", value)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"maxtasksperchild must be a positive int or None, not {value!r}")
    return value


def amount(name: str, value: Any) -> Any:
    """Seconds or KiB, or None; 0 means none, too."""
    _refuse_bool(name, value)
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        value = float(value) if hasattr(value, "__float__") else _not_a_number(name, value)
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, not {value!r}")
    return value


def patience(timeout: Any) -> Any:
    """Seconds to wait, or None, as locks, queues and threads accept them.

    A time that has passed is no time, and centuries are as many as there can be.
    """
    if timeout is None:
        return None
    if timeout != timeout:
        raise ValueError("timeout must not be NaN")
    return min(max(timeout, 0), TIMEOUT_MAX)


def _not_a_number(name: str, value: object) -> Any:
    raise TypeError(f"{name} must be a number or None, not {type(value).__name__}")


def chunksize(value: Any) -> int:
    """How many items go into one task."""
    _refuse_bool("chunksize", value)
    number = index(value)
    if number < 1:
        raise ValueError(f"Chunksize must be 1+, not {number:n}")
    return number


def function(name: str, value: Any) -> Any:
    """Something callable, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a callable")
    return value
