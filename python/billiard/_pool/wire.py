"""What travels between a pool and its workers, and what to do when it cannot.

Frames of the threads drive, inside the frames of a connection:

```
 to a worker       task      job: i64 │ i: i64 │ pickle of (func, args, kwargs)
                   goodbye   (empty)
 from a worker     ACK       b"A" │ job: i64 │ i: i64 │ accepted at: f64, monotonic seconds
                     READY     b"R" │ job: i64 │ i: i64 │ success: bool │ done at: f64 │ pickle
                   other     b"O" │ pickle of the message
```

``i`` is the number of a task in its job, -1 for None. The pickles are apart from the numbers: an
object that cannot be decoded spoils its own job, and it is known which one that is.
"""

from __future__ import annotations

import os
from _pickle import PicklingError, Unpickler, dumps, loads
from io import BytesIO
from struct import Struct
from time import monotonic
from types import BuiltinFunctionType, FunctionType

from .. import _core
from ..einfo import ExceptionInfo, RemoteTraceback
from ..queues import _SimpleQueue
from ..reduction import DupFd, ForkingPickler
from .constants import ACK, DROPPED, READY, TASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from typing_extensions import Buffer

    from .results import Outcome

_TASK_HEAD = Struct(">qq")
_FRAMED_HEAD = Struct(">iqq")  # with the length in front
#: the frame that tells a worker to exit
GOODBYE = bytes(4)
_ACK = Struct("<cqqd")
_READY_HEAD = Struct("<cqq?d")
_KIND_ACK, _KIND_READY = b"AR"
_KIND_OTHER = b"O"

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


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in _NUMBERS or (kind in _TEXTS and len(value) < _SHORT)


def _plain_dumps(obj: object, prefix: bytes = b"") -> bytes:
    """A pickle after a prefix, without a copy of what is large."""
    buffer = BytesIO()
    buffer.write(prefix)
    ForkingPickler(buffer).dump(obj)
    return buffer.getvalue()


def encode_call(call: tuple[Any, Any, Any]) -> bytes | memoryview:
    """Pickle a call; functions that have no importable name go by value."""
    func, args, kwargs = call
    try:
        if (
            not kwargs
            and type(func) in (FunctionType, BuiltinFunctionType)
            and all(map(_is_plain, args))
        ):
            return dumps(call)
        return _plain_dumps(call)
    except (PicklingError, AttributeError):
        return ForkingPickler.dumps(call)


def encode_value(value: object, prefix: bytes = b"") -> bytes:
    """Pickle an outcome after a prefix; unlike a task it does not travel by value."""
    if _is_plain(value):
        return prefix + dumps(value)
    return _plain_dumps(value, prefix)


def failure(exc: BaseException) -> ExceptionInfo:
    """What to send for ``exc``, which is being handled.

    One that would arrive broken (its class cannot be rebuilt from its arguments, or cannot be
    imported) is replaced by a :class:`MaybeEncodingError`; the traceback's text always arrives.
    """
    info = ExceptionInfo()
    if type(exc).__module__ != "builtins" or not all(map(_is_plain, exc.args)):
        try:
            loads(encode_value((info.type, info.exception)))
        except Exception as broken:
            return _replaced(info, MaybeEncodingError(broken, exc))
    return info


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


# ---- the ends of a worker's channel ----


class TaskPipe(_SimpleQueue):
    """Tasks on their way to one worker. In the worker this is ``Worker.inq``.

    ``permits`` counts the tasks that it may run: see :mod:`billiard._pool.exchange`.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(wnonblock=True)
        self.permits = context.Semaphore(0)

    def __getstate__(self) -> tuple[Any, ...]:
        return (*super().__getstate__(), self.permits)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *rest, self.permits = state
        super().__setstate__(tuple(rest))

    @staticmethod
    def encode(job: int, i: int | None, call: tuple[Any, Any, Any]) -> list[bytes | memoryview]:
        """A task as a frame, in pieces to be written one after the other."""
        body = encode_call(call)
        size = _TASK_HEAD.size + len(body)
        if size < 1 << 31:
            head = _FRAMED_HEAD.pack(size, job, -1 if i is None else i)
        else:
            head = b"\xff\xff\xff\xff" + size.to_bytes(8, "big")
            head += _TASK_HEAD.pack(job, -1 if i is None else i)
        return [head + body] if len(body) < _SHORT else [head, body]

    def decode(self, payload: Buffer) -> Any:
        """What :meth:`get_payload` gave, as a message; None for goodbye.

        For a task that has been taken back the message is what to tell the pool.
        """
        view = memoryview(payload)
        if not view:
            return None
        if not self.permits.acquire(False):
            return DROPPED, ()
        job, i = _TASK_HEAD.unpack_from(view)
        try:
            func, args, kwargs = loads(view[_TASK_HEAD.size :])
        except Exception as exc:
            func, args, kwargs = Unreadable(exc), (), {}
        return TASK, (job, None if i < 0 else i, func, args, kwargs)

    def get(self) -> Any:
        """Wait for the next message."""
        return self.decode(self.get_payload())


class ResultPipe(_SimpleQueue):
    """Results on their way from one worker. In the worker this is ``Worker.outq``."""

    #: What is written stays readable when the writer has died: it need not wait for its reader.
    outlives_writer = True
    #: The pool wants to know when the worker is ready, and why it could not become so.
    announces = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lifeline = _core.lifeline()

    def __getstate__(self) -> tuple[Any, ...]:
        return (*super().__getstate__(), DupFd(self._lifeline))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *ends, lifeline = state
        super().__setstate__(tuple(ends))
        self._lifeline = lifeline.detach()

    def hold_lifeline(self) -> None:
        """In the worker: die when the pool's process is gone, whatever a task is doing."""
        _core.hold_lifeline(self._lifeline)
        os.close(self._lifeline)

    def put(self, message: Any) -> None:
        """Send a message of a worker.

        :raises Exception: its outcome cannot be pickled; nothing has been sent.
        """
        kind, args = message
        if kind == READY:
            job, i, (success, value), _ = args
            head = _READY_HEAD.pack(b"R", job, -1 if i is None else i, success, monotonic())
            self.send_payload(encode_value(value, head))
        elif kind == ACK:
            job, i, accepted_at, _, _ = args
            self.send_payload(_ACK.pack(b"A", job, -1 if i is None else i, accepted_at))
        else:
            self.send_payload(encode_value(message, _KIND_OTHER))

    @staticmethod
    def decode(payload: memoryview, pid: int | None) -> Any:
        """A frame of the worker ``pid`` as a message.

        An outcome that cannot be decoded is a failure of its task. Anything else is a frame that
        no worker of ours sends.
        """
        kind = payload[0]
        if kind == _KIND_READY:
            _, job, i, success, _ = _READY_HEAD.unpack_from(payload)
            outcome = _outcome(success, payload[_READY_HEAD.size :])
            return READY, (job, None if i < 0 else i, outcome, None)
        if kind == _KIND_ACK:
            _, job, i, accepted_at = _ACK.unpack(payload)
            return ACK, (job, None if i < 0 else i, accepted_at, pid, None)
        return loads(payload[1:])

    @staticmethod
    def finished_at(payload: memoryview) -> float:
        """When the worker sent this READY, monotonic seconds."""
        return _READY_HEAD.unpack_from(payload)[4]  # type: ignore[no-any-return]


def _outcome(success: bool, pickled: memoryview) -> Outcome:
    try:
        return success, loads(pickled)
    except BaseException as exc:  # whatever the object's own code raises
        error = MaybeEncodingError(exc, _Unknown(len(pickled)))
        return False, ExceptionInfo((MaybeEncodingError, error, exc.__traceback__))


class _Unknown:
    """In the place of a value that only its sender knows."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __repr__(self) -> str:
        return f"<pickle of {self.size} bytes>"
