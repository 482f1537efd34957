"""Queues between processes.

```
 put() ──pickle──► ring in shared memory ──► get() ──unpickle──►
         └── no room? ──► the process's own memory ──a thread of the core──► ring
```
`Queue` and `JoinableQueue` are `_core.Queue` with the interface of multiprocessing around it
(`src/py/queues`): `put` pickles at once, so that order and content are those of the call, and never
waits for room. There is no feeder thread of Python's. `SimpleQueue` is a pipe and its two locks.
"""

from __future__ import annotations

import os
import weakref
from _pickle import Pickler
from queue import Empty as Empty
from queue import Full as Full

from . import _core, connection, context, heap
from .compat import get_errno as get_errno
from .reduction import _REFUSALS, ForkingPickler, dump_into, dumps_by_value
from .util import Finalize, debug, register_after_fork
from .util import error as error
from .util import info as info

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from typing import Any

    from typing_extensions import Buffer

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

#: bytes; buffers of objects from this size on are copied by themselves instead of into the pickle
_OUT_OF_BAND = 1 << 16


def _context_of(kwargs: dict[str, Any]) -> Any:
    try:
        return kwargs["ctx"]
    except KeyError:
        raise TypeError("missing 1 required keyword-only argument: ctx") from None


# ---- pickling, for the core ----


def _dumps(obj: object) -> Buffer | tuple[Buffer, list[memoryview]]:
    """A pickle, or a pickle and the buffers that are not in it."""
    import io

    buffers: list[memoryview] = []

    def in_band(buffer: Any) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # neither in C's nor in Fortran's order
            return True
        if raw.nbytes < _OUT_OF_BAND:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO()
    pickler = Pickler(file, 5, buffer_callback=in_band)
    pickler.dispatch_table = ForkingPickler._dispatch_table()
    try:
        dump_into(pickler, obj)
    except _REFUSALS as refusal:
        return dumps_by_value(ForkingPickler, obj, None, refusal)
    return (file.getvalue(), buffers) if buffers else file.getvalue()


def _loads(message: Buffer, buffers: list[Buffer] | None) -> Any:
    return ForkingPickler.loads(message, buffers=buffers)


_core.Queue._pickle_with(_dumps, _loads)


# ---- what multiprocessing's queues are made of, for those who look inside ----


class _End:
    """The look of a connection for an end of a queue, which is no pipe."""

    def __init__(self, queue: Queue) -> None:
        self._queue = weakref.ref(queue)
        self._is_closed = False

    def _open_queue(self) -> Queue:
        queue = self._queue()
        if queue is None or self._is_closed:
            import errno

            raise OSError(errno.EBADF, "handle is closed")
        return queue

    @property
    def closed(self) -> bool:
        """Whether this process has closed it."""
        return self._is_closed

    @property
    def readable(self) -> bool:
        """Whether messages can be received."""
        return isinstance(self, _Reader)

    @property
    def writable(self) -> bool:
        """Whether messages can be sent."""
        return isinstance(self, _Writer)

    def close(self) -> None:
        """Close this end in this process."""
        self._is_closed = True

    def __enter__(self) -> _End:
        return self

    def __exit__(self, exc_type: object, exc_value: object, exc_tb: object) -> None:
        self.close()


class _Reader(_End):
    """The end that `get` takes from."""

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to get."""
        return self._open_queue()._watch()

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something to get within `timeout` seconds (None: no limit)."""
        return self._open_queue()._wait(timeout)

    _poll = poll

    def recv(self) -> Any:
        """Wait for an object and take it out."""
        return _core.Queue.get(self._open_queue())

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Wait for an object and take it out as a pickle."""
        return bytes(ForkingPickler.dumps(self.recv()))

    def close(self) -> None:
        """Close this end in this process."""
        queue = self._queue()
        if queue is not None and not self._is_closed:
            queue._close_reader()
        super().close()


class _Writer(_End):
    """The end that `put` puts into."""

    def fileno(self) -> int:
        """A descriptor that can always be written to, as the queue can."""
        return self._open_queue()._writer_fd()

    def send(self, obj: Any) -> None:
        """Put an object in."""
        _core.Queue.put(self._open_queue(), obj)

    def send_bytes(self, buf: Buffer) -> None:
        """Put the object in that `buf` is a pickle of."""
        self.send(ForkingPickler.loads(buf))


class _Counter:
    """How many more objects a queue takes: it has the look of a semaphore."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    @property
    def _semlock(self) -> _Counter:
        return self

    def _get_value(self) -> int:
        return self._queue._maxsize - self._queue.qsize()

    get_value = _get_value

    def _is_zero(self) -> bool:
        return self._queue.full()

    locked = _is_zero


class _Unfinished(_Counter):
    """How many tasks have not been reported done."""

    def _get_value(self) -> int:
        return self._queue._unfinished()

    get_value = _get_value

    def _is_zero(self) -> bool:
        return self._get_value() == 0


class _Buffer:
    """What this process has put and the ring has no room for yet: empty or not, no more is told."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __bool__(self) -> bool:
        return self._queue._is_moving()

    def __len__(self) -> int:
        return int(self._queue._is_moving())

    def __iter__(self) -> Iterator[Any]:
        return iter(())


# ---- the queues ----


class Queue(_core.Queue):
    """A first-in first-out queue of objects that can be pickled, for many processes.

    `maxsize` limits how many objects the queue holds; zero or less: no limit. From multiprocessing.
    """

    def __init__(self, maxsize: int = 0, *args: Any, **kwargs: Any) -> None:
        from .synchronize import SEM_VALUE_MAX

        _context_of(kwargs)
        limit = max(maxsize, 0)
        self._set_up(limit)
        self._maxsize = limit or SEM_VALUE_MAX
        self._opid = os.getpid()
        #: for executors; has no effect here
        self._ignore_epipe = False
        self._after_fork()
        register_after_fork(self, Queue._after_fork)

    def __getstate__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        from .reduction import DupFd

        reader, writer = self._fds()
        ends = (DupFd(reader), DupFd(writer))
        return (self._ignore_epipe, self._maxsize, heap.lend(self._block), *ends, self._opid)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._ignore_epipe, self._maxsize, lent, reader, writer, self._opid = state
        self._adopt(heap.borrow(lent), reader.detach(), writer.detach())
        self._after_fork()
        register_after_fork(self, Queue._after_fork)

    def _after_fork(self) -> None:
        # What the parent still had to move is the parent's business.
        self._reader = _Reader(self)
        self._writer = _Writer(self)
        self._poll = self._reader.poll
        self._recv = self._reader.recv
        self._recv_bytes = self._reader.recv_bytes
        self._send_bytes = self._writer.send_bytes
        self._thread: _core.QueueMover | None = None
        self._jointhread: Finalize | None = None
        self._close: Finalize | None = None
        self._joincancelled = False
        self._closed = False

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(False)

    def put_nowait(self, obj: Any) -> None:
        """`put` without waiting."""
        return self.put(obj, False)

    def empty(self) -> bool:
        """Whether `get` would have to wait. `OSError` on a closed queue."""
        self._reader._open_queue()
        return self._is_empty()

    def close(self) -> None:
        """This process neither puts nor gets any more; what it has put is still sent."""
        self._closed = True
        self._reader.close()
        self._writer.close()
        self._close_ends()
        close, self._close = self._close, None
        if close is not None:
            close()

    def join_thread(self) -> None:
        """Wait until what this process has put is where others can get it. Only after `close`."""
        debug("Queue.join_thread()")
        if not self._closed:
            raise ValueError(f"Queue {self!r} not closed")
        if not self._joincancelled:
            self._mover().join()

    def cancel_join_thread(self) -> None:
        """Do not wait at exit until what this process has put is sent: it may be lost."""
        debug("Queue.cancel_join_thread()")
        self._joincancelled = True
        if self._jointhread is not None:
            self._jointhread.cancel()

    def _on_queue_feeder_error(self, e: BaseException, obj: Any) -> None:
        """Called when `obj` cannot be sent, with the exception; for subclasses to override.

        Prints the traceback. From multiprocessing.
        """
        import traceback

        traceback.print_exception(e)

    def _start_thread(self) -> None:
        # The core calls this when it starts to move messages, once in a process.
        debug("Queue._start_thread()")
        self._thread = mover = self._mover()
        # All who use a queue are descendants of the process that made it. When that one ends they
        # have ended, and there is nobody to send anything to.
        if not self._joincancelled and self._opid != os.getpid():
            self._jointhread = Finalize(None, mover.finish, exitpriority=-5)
        self._close = Finalize(self, debug, ["closing a queue"], exitpriority=10)

    # Where multiprocessing has these, for those who look.

    @property
    def _rlock(self) -> Any:
        """While it is held, nobody takes anything out."""
        return self._lock(0)

    @property
    def _wlock(self) -> Any:
        """While it is held, nothing goes into the ring."""
        return self._lock(1)

    def _lock(self, line: int) -> Any:
        from .synchronize import InternalLock

        block = self._block
        lock = InternalLock.__new__(InternalLock)
        lock._adopt(block.segment.block(block.offset + line * 64, 64), 2, 1)
        return lock

    @property
    def _sem(self) -> _Counter:
        return _Counter(self)

    @property
    def _buffer(self) -> _Buffer:
        return _Buffer(self)

    @property
    def _notempty(self) -> threading.Condition:
        """A condition that nobody waits for."""
        import threading

        condition: threading.Condition = vars(self).setdefault(
            "_condition", threading.Condition(threading.Lock())
        )
        return condition


class JoinableQueue(Queue):
    """A queue that can be waited for until every object put into it has been dealt with.

    From multiprocessing.
    """

    def task_done(self) -> None:
        """Say that an object taken out has been dealt with; `ValueError` if all had been."""
        if not self._task_done():
            raise ValueError("task_done() called too many times")

    def join(self) -> None:
        """Wait until every object put into the queue has been dealt with."""
        self._join()

    @property
    def _unfinished_tasks(self) -> _Unfinished:
        return _Unfinished(self)

    @property
    def _cond(self) -> Any:
        """A condition that nobody waits for."""
        from .synchronize import Condition

        return vars(self).setdefault("_tasks_condition", Condition())


class _SimpleQueue:
    """A pipe for objects, for one process at each end.

    `rnonblock` and `wnonblock` make an end non-blocking. From billiard: Celery's pool is made of
    these.
    """

    _rlock: Any
    _wlock: Any

    def __init__(self, rnonblock: bool = False, wnonblock: bool = False, ctx: Any = None) -> None:
        self._reader, self._writer = connection.Pipe(
            duplex=False, rnonblock=rnonblock, wnonblock=wnonblock
        )
        self._rlock = self._wlock = None

    def __getstate__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        return (self._reader, self._writer, self._rlock, self._wlock)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._reader, self._writer, self._rlock, self._wlock = state

    def empty(self) -> bool:
        """Whether `get` would have to wait."""
        return not self._poll()

    def _poll(self, timeout: float | None = 0.0) -> bool:
        return self._reader.poll(timeout)

    def get_payload(self) -> bytes:
        """Take a message out as it was sent."""
        return self._reader.recv_bytes()

    def send_payload(self, value: Buffer) -> None:
        """Put a message in as it is: a pickle, for `get` to understand it."""
        self._writer.send_bytes(value)

    def get(self) -> Any:
        """Wait for an object and take it out."""
        return ForkingPickler.loads(self.get_payload())

    def put(self, obj: Any) -> None:
        """Put an object in. Waits while the pipe is full."""
        self.send_payload(ForkingPickler.dumps(obj))

    def close(self) -> None:
        """Close both ends in this process; whoever uses them afterwards gets an `OSError`."""
        try:
            self._reader.close()
        finally:
            self._writer.close()


class SimpleQueue(_SimpleQueue):
    """A pipe for objects, with a lock at each end: for many processes. From multiprocessing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from .synchronize import InternalLock

        super().__init__(ctx=_context_of(kwargs))
        self._rlock = InternalLock()
        self._wlock = InternalLock()

    def get_payload(self) -> bytes:
        """Take a message out as it was sent."""
        with self._rlock:
            return self._reader.recv_bytes()

    def get(self) -> Any:
        """Wait for an object and take it out."""
        with self._rlock:
            message = self._reader._recv_pickle()
        return ForkingPickler.loads(message)

    def send_payload(self, value: Buffer) -> None:
        """Put a message in as it is: a pickle, for `get` to understand it."""
        with self._wlock:
            self._writer.send_bytes(value)
