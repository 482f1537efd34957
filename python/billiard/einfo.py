"""Exceptions and tracebacks that survive a journey to another process.

A pool worker that catches an exception makes an :class:`ExceptionInfo` of it and sends that. The
tracebacks, frames and code objects in it are stand-ins: they say what a formatter asks for, pass
``isinstance`` checks for the interpreter's own types, and keep nothing else alive.

State of ``ExceptionInfo.exception``, which Celery relies on:

    where it was made   an ExceptionWithTraceback around the exception
    after unpickling    the exception itself, its __cause__ the RemoteTraceback
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType, TracebackType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Positions = tuple[int | None, int | None, int | None, int | None]

__all__ = ["ExceptionInfo", "Traceback"]

#: Deeper tracebacks are cut: pickling one takes several stack frames per entry.
DEFAULT_MAX_FRAMES = sys.getrecursionlimit() // 8

# What a stand-in copies from the code object, and what it answers for the rest.
_CODE_COPIED = (
    "co_filename",
    "co_name",
    "co_argcount",
    "co_firstlineno",
    "co_flags",
    "co_names",
    "co_nlocals",
    "co_stacksize",
    "co_qualname",
)
_CODE_EMPTY = {
    "co_cellvars": (),
    "co_freevars": (),
    "co_varnames": (),
    "co_code": b"",
    "co_lnotab": b"",
}


class _StandIn:
    """Claims to be of another class, and pickles as its attributes, around ``__init__``."""

    _claims: type

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._claims

    def __reduce__(self) -> tuple[Any, ...]:
        cls = type(self)
        return cls.__new__, (cls,), self.__dict__


class _Code(_StandIn):
    _claims = CodeType

    co_filename: str
    co_name: str
    co_qualname: str
    co_argcount: int
    co_firstlineno: int
    co_flags: int
    co_names: tuple[str, ...]
    co_nlocals: int
    co_stacksize: int

    def __init__(self, code: CodeType) -> None:
        for name in _CODE_COPIED:
            setattr(self, name, getattr(code, name))
        self.__dict__.update(_CODE_EMPTY)
        self._co_positions: list[Positions] = list(code.co_positions())

    @property
    def co_positions(self) -> Callable[[], Iterator[Positions]]:
        return self._co_positions.__iter__


class _Frame(_StandIn):
    _claims = FrameType
    Code = _Code

    def __init__(self, frame: FrameType) -> None:
        self.f_code = self.Code(frame.f_code)
        self.f_lineno = frame.f_lineno
        self.f_lasti = frame.f_lasti
        names = frame.f_globals
        self.f_globals: dict[str, Any] = {
            "__file__": names.get("__file__", "__main__"),
            "__name__": names.get("__name__"),
            "__loader__": None,
        }
        # The one local variable that formatters (pytest's, Celery's) look at.
        hide = "__traceback_hide__"
        self.f_locals = {hide: frame.f_locals[hide]} if hide in frame.f_locals else {}
        self.f_builtins: dict[str, Any] = {}
        self.f_back = self.f_trace = None
        self.f_exc_traceback = self.f_exc_type = self.f_exc_value = None
        self.f_restricted = False

    @property
    def co_positions(self) -> Callable[[], Iterator[Positions]]:
        return self.f_code.co_positions


class _Object:
    """Any attributes, and the positions that a formatter may ask a code object for."""

    def __init__(self, **kw: Any) -> None:
        for name, value in kw.items():
            setattr(self, name, value)

    @property
    def co_positions(self) -> Callable[[], Iterator[Positions]]:
        found: tuple[Positions, ...] = self.__dict__.get(
            "_co_positions", ((None, None, None, None),)
        )
        return found.__iter__

    @co_positions.setter
    def co_positions(self, value: tuple[Positions, ...]) -> None:
        self._co_positions = value


class _Truncated(_StandIn):
    """The last entry of a traceback that was cut."""

    _claims = TracebackType

    def __init__(self) -> None:
        self.tb_frame = _Object(
            f_code=_Object(co_filename="...", co_name="[rest of traceback truncated]"),
            f_globals={"__file__": "", "__name__": "", "__loader__": None},
            f_fileno=None,
        )
        self.tb_lineno = -1
        self.tb_lasti = 0
        self.tb_next = None

    @property
    def co_positions(self) -> Callable[[], Iterator[Positions]]:
        return self.tb_frame.co_positions


class Traceback(_StandIn):
    """A picklable stand-in for a traceback, for :mod:`traceback` and its like.

    :param tb: the traceback.
    :param max_frames: how many entries to keep beyond the first.
    :param depth: how many entries are above this one.

    Origin: billiard.
    """

    _claims = TracebackType
    Frame = _Frame

    def __init__(
        self, tb: TracebackType, max_frames: int = DEFAULT_MAX_FRAMES, depth: int = 0
    ) -> None:
        self._copy(tb)
        last, following = self, tb.tb_next
        while following is not None:
            if depth > max_frames:
                last.tb_next = _Truncated()
                break
            depth += 1
            link = Traceback.__new__(Traceback)
            link._copy(following)
            last.tb_next = link
            last, following = link, following.tb_next

    def _copy(self, tb: TracebackType) -> None:
        self.tb_frame = self.Frame(tb.tb_frame)
        self.tb_lineno = tb.tb_lineno
        self.tb_lasti = tb.tb_lasti
        self.tb_next: Traceback | _Truncated | None = None


class RemoteTraceback(Exception):
    """The cause of an exception that comes from another process: the traceback it had there.

    :param tb: the text. Origin: multiprocessing.
    """

    def __init__(self, tb: str) -> None:
        self.tb = tb

    def __str__(self) -> str:
        return self.tb


class ExceptionWithTraceback(Exception):
    """An exception with its traceback as text; pickles as the exception, the text its cause.

    :param exc: the exception.
    :param tb: the formatted traceback.

    Origin: multiprocessing, public in billiard.
    """

    def __init__(self, exc: BaseException | None, tb: str) -> None:
        super().__init__()
        self.exc = exc
        self.tb = f'\n"""\n{tb}"""'

    def __str__(self) -> str:
        return self.tb

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_exc, (self.exc, self.tb)


def rebuild_exc(exc: BaseException, tb: str) -> BaseException:
    """What unpickling an :class:`ExceptionWithTraceback` makes."""
    exc.__cause__ = RemoteTraceback(tb)
    return exc


class ExceptionInfo:
    """An exception and its traceback, to be sent to another process or given to a callback.

    :param exc_info: a tuple as of :func:`sys.exc_info`; the exception being handled by default.
    :param internal: true for an error of the machinery, not of the task.

    ``type``: the exception's class. ``exception``: see the top of this file. ``tb``: the
    traceback's stand-in, None if there was none. ``traceback``: the text. Origin: billiard.
    """

    type: Any = None
    exception: Any = None
    tb: Any = None
    traceback: Any = None
    internal: bool = False

    def __init__(
        self,
        exc_info: tuple[Any, Any, TracebackType | None] | None = None,
        internal: bool = False,
    ) -> None:
        from traceback import format_exception

        self.type, exception, tb = exc_info or sys.exc_info()
        try:
            self.tb = None if tb is None else Traceback(tb)
            self.traceback = "".join(format_exception(self.type, exception, tb))
        finally:
            del tb
        self.internal = internal
        self.exception = ExceptionWithTraceback(exception, self.traceback)

    def __str__(self) -> str:
        return str(self.traceback)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.exception!r}>"

    @property
    def exc_info(self) -> tuple[Any, Any, Any]:
        """``(type, exception, tb)``, for :mod:`logging` and the like."""
        return self.type, self.exception, self.tb
