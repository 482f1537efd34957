"""Failures as outcomes of tasks: exceptions in an `ExceptionInfo`, and out of one.

Apart from `results`, which workers have no use for.
"""

from __future__ import annotations

from ..einfo import ExceptionInfo, ExceptionWithTraceback


def task_error(info: ExceptionInfo) -> BaseException:
    """The exception that a caller gets for a failure: the task's own, never the wrapper."""
    exc = info.exception
    if isinstance(exc, ExceptionWithTraceback) and exc.exc is not None:
        exc = exc.exc
    return exc  # type: ignore[no-any-return]


def captured(exc: BaseException) -> ExceptionInfo:
    """An exception that is made here, not caught, as what callbacks and callers expect."""
    try:
        raise exc
    except type(exc):
        return ExceptionInfo()
    finally:
        # It would keep the frames of whoever has called this, and what they know.
        exc.__traceback__ = None
