"""Pickling of what travels between a pool and its workers, and what to do when it cannot.

An object that cannot be pickled or unpickled spoils its own job and nothing else: it is replaced
by an error that can. The native drive's Rust part calls these functions where it needs Python.
"""

from __future__ import annotations

import os
import sys
from _pickle import PicklingError, Unpickler, dumps, loads
from io import BytesIO
from types import BuiltinFunctionType, FunctionType, ModuleType

from .. import exceptions
from ..einfo import ExceptionInfo, RemoteTraceback
from ..exceptions import SoftTimeLimitExceeded, Terminated
from ..popen_fork import flush_standard_streams
from ..process import current_process
from ..reduction import ForkingPickler, dumps_by_value
from .constants import STRANGE, TASK, job_counter
from .failures import captured, task_error  # noqa: F401  (for the Rust part)
from .log import error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from typing_extensions import Buffer

#: Types that need none of the reducers that can be registered. What is longer than SHORT goes the
#: general way, which copies less.
_NUMBERS = frozenset({int, float, bool, type(None)})
_TEXTS = frozenset({str, bytes})
_SHORT = 1 << 12


class MaybeEncodingError(Exception):
    """A result or an exception could not be sent, or not be understood by its receiver.

    :param exc: what went wrong. :param value: the thing that was to be sent.

    Both are kept as texts. Origin: multiprocessing.
    """

    __module__ = "billiard.pool"

    def __init__(self, exc: object, value: object) -> None:
        self.exc = repr(exc)
        self.value = _repr(value)
        super().__init__(self.exc, self.value)

    def __reduce__(self) -> tuple[Any, ...]:
        # Around __init__, which would quote the texts once more.
        return _rebuild_encoding_error, (type(self), self.exc, self.value)

    def __str__(self) -> str:
        return f"Error sending result: '{self.value}'. Reason: '{self.exc}'"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"


def _rebuild_encoding_error(
    cls: type[MaybeEncodingError], exc: str, value: str
) -> MaybeEncodingError:
    error = cls.__new__(cls, exc, value)
    error.exc, error.value = exc, value
    return error


def _repr(value: object) -> str:
    """A text for any object, whatever its own ``__repr__`` does."""
    try:
        return repr(value)
    except Exception as exc:
        return f"<{type(value).__name__} object whose repr raises {type(exc).__name__}>"


# ---- pickling ----

#: what the pickler raises for functions that have no importable name
REFUSALS = (PicklingError, AttributeError)


def name_of(func: object) -> bytes | None:
    """The pickle of a function that travels by its name alone, None if it does not."""
    kind = type(func)
    if kind is FunctionType or kind is type or _is_of_module(func):
        try:
            return dumps(func)
        except REFUSALS:
            return None
    return None


def _is_of_module(func: object) -> bool:
    return type(func) is BuiltinFunctionType and type(func.__self__) in (ModuleType, type(None))


def encode_by_value(call: object, refusal: BaseException) -> memoryview:
    """Pickle a call whose function has no importable name, or raise why it was refused."""
    return dumps_by_value(ForkingPickler, call, None, refusal)


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in _NUMBERS or (kind in _TEXTS and len(value) < _SHORT)


def _dumps(obj: object) -> bytes:
    """A pickle with the package's reducers; nothing goes by value."""
    buffer = BytesIO()
    ForkingPickler(buffer).dump(obj)
    return buffer.getvalue()


def failure(exc: BaseException) -> ExceptionInfo:
    """What to send for ``exc``, which a task has raised.

    One that would arrive broken (its class cannot be rebuilt from its arguments, or cannot be
    imported) is replaced by a :class:`MaybeEncodingError`; the traceback's text always arrives.
    """
    info = info_of(exc)
    if type(exc).__module__ != "builtins" or not all(map(_is_plain, exc.args)):
        try:
            loads(_dumps((info.type, info.exception)))
        except Exception as broken:
            return _replaced(info, MaybeEncodingError(broken, exc))
    return info


def info_of(exc: BaseException) -> ExceptionInfo:
    """An exception with its traceback, as callbacks and callers expect it."""
    return ExceptionInfo((type(exc), exc, exc.__traceback__))


def _replaced(info: ExceptionInfo, error: BaseException) -> ExceptionInfo:
    error.__cause__ = RemoteTraceback(f'\n"""\n{info.traceback}"""')
    # The cause does not travel, but it is in the text, which does.
    other = ExceptionInfo((type(error), error, None), internal=info.internal)
    other.tb = info.tb
    return other


def unsent(exc: BaseException, value: object) -> ExceptionInfo:
    """What to send in place of an outcome that could not be pickled."""
    if isinstance(value, ExceptionInfo):
        return _replaced(value, MaybeEncodingError(exc, value.exception))
    error = MaybeEncodingError(exc, value)
    return ExceptionInfo((MaybeEncodingError, error, exc.__traceback__))


def abridged(info: ExceptionInfo, refused: BaseException) -> ExceptionInfo:
    """A failure that is too long to be sent, in some thousand characters."""
    error = MaybeEncodingError(refused, info.type)
    error.__cause__ = RemoteTraceback(f'\n"""\n{_abridge(info.traceback)}"""')
    return ExceptionInfo((type(error), error, None), internal=info.internal)


def _abridge(text: str) -> str:
    return text if len(text) <= 2 * _SHORT else f"{text[:_SHORT]}\n...\n{text[-_SHORT:]}"


def end_if_stray(worker: int) -> None:
    """After code of the user's, with the pid of before: see :func:`end_stray`."""
    if os.getpid() != worker:
        end_stray(sys.exception())


def end_stray(exc: BaseException | None) -> NoReturn:
    """End a process that a task has forked and that has come back from it: it is no worker.

    :param exc: what it came back with, if not with a value.
    """
    status = 1
    try:
        try:
            if exc is not None:
                raise exc
            status = 0
        except BaseException as raised:
            status = current_process()._exit_status_of(raised)
        flush_standard_streams()
    finally:
        # Whatever its streams and its signals' handlers raise.
        os._exit(status & 0xFF)


class Unreadable:
    """Stands in for the function of a task that could not be decoded: it fails when called."""

    def __init__(self, exc: Exception) -> None:
        self.exc = exc

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self.exc


class _Placeholder:
    """Whatever an unpickler wants to make of something that is not there."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Placeholder:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Placeholder:
        return self

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _NumbersOnly(Unpickler):
    """Understands the numbers and containers of a message, and calls nothing in it."""

    def find_class(self, module: str, name: str) -> Any:
        return _Placeholder


def decode_message(payload: Buffer) -> Any:
    """Unpickle a message to a worker; a task that cannot be decoded fails when it is run.

    :raises Exception: not even the job's number can be made out.
    """
    try:
        return loads(payload)
    except Exception as exc:
        kind, (job, i, *_) = _NumbersOnly(BytesIO(payload)).load()
        if kind != TASK:
            raise
        return TASK, (job, i, Unreadable(exc), (), {})


# ---- for the Rust part ----


def undecodable(exc: BaseException, size: int) -> ExceptionInfo:
    """What becomes of an outcome that this process cannot unpickle."""
    error = MaybeEncodingError(exc, _Unknown(size))
    return ExceptionInfo((MaybeEncodingError, error, exc.__traceback__))


class _Unknown:
    """In the place of a value that only its sender knows."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __repr__(self) -> str:
        return f"<pickle of {self.size} bytes>"


def message_of(pid: int, pickled: bytes) -> Any:
    """A message of a worker that belongs to no task."""
    try:
        return loads(pickled)
    except Exception as exc:
        error("worker %s sent something strange: %r", pid, exc)
        return STRANGE, ()


def timeout_error() -> BaseException:
    """What a caller gets that has waited long enough."""
    return exceptions.TimeoutError()


def soft_limit() -> BaseException:
    """What a task gets that has not begun before its soft limit."""
    return SoftTimeLimitExceeded()


def cancelled() -> ExceptionInfo:
    """The outcome of a task that was cancelled."""
    return captured(Terminated("the task has been cancelled"))


def new_job() -> int:
    """The next number of a job."""
    return next(job_counter)
