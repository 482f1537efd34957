"""Queues between processes.

::

    put() ──pickle──► _buffer ──feeder thread──[_wlock]──► pipe ──[_rlock]──► get() ──unpickle──►
      ▲                                                                        │
      └───────── _sem: how many more messages the queue takes ◄────────────────┘

`put` pickles at once, so that order and content are those of the call, and never waits for the
pipe; the buffer and its feeder belong to the process, the pipe and the semaphores are shared.
`SimpleQueue` is the pipe and its two locks alone.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections import deque
from queue import Empty, Full
from time import monotonic

from . import connection, context
from .compat import get_errno
from .reduction import ForkingPickler
from .util import Finalize, debug, error, info, is_exiting, register_after_fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Buffer

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

#: bytes; what is copied rather than kept in the object that it was pickled into
_SMALL = 1 << 16
#: in a buffer: the feeder is to end
_sentinel: Any = object()


def _context_of(kwargs: dict[str, Any]) -> Any:
    try:
        return kwargs["ctx"]
    except KeyError:
        raise TypeError("missing 1 required keyword-only argument: ctx") from None


class Queue:
    """A first-in first-out queue of objects that can be pickled, for many processes.

    `maxsize` limits how many objects the queue holds; zero or less: no limit. From multiprocessing.
    """

    def __init__(self, maxsize: int = 0, *args: Any, **kwargs: Any) -> None:
        from .synchronize import SEM_VALUE_MAX, InternalLock

        ctx = _context_of(kwargs)
        if maxsize <= 0:
            maxsize = SEM_VALUE_MAX
        self._maxsize = maxsize
        self._reader, self._writer = connection.Pipe(duplex=False)
        self._rlock = InternalLock()
        self._wlock = InternalLock()
        self._sem = ctx.BoundedSemaphore(maxsize)
        self._opid = os.getpid()
        #: for executors: a feeder ends silently when nobody reads any more
        self._ignore_epipe = False
        self._after_fork()
        register_after_fork(self, Queue._after_fork)

    def __getstate__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        return (
            self._ignore_epipe,
            self._maxsize,
            self._reader,
            self._writer,
            self._rlock,
            self._wlock,
            self._sem,
            self._opid,
        )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        (
            self._ignore_epipe,
            self._maxsize,
            self._reader,
            self._writer,
            self._rlock,
            self._wlock,
            self._sem,
            self._opid,
        ) = state
        self._after_fork()

    def _after_fork(self) -> None:
        # What was in the parent's buffer is the parent's to send, and its feeder is not here.
        self._notempty = threading.Condition(threading.Lock())
        self._buffer: deque[Any] = deque()
        self._thread: threading.Thread | None = None
        self._jointhread: Finalize | None = None
        self._joincancelled = False
        self._closed = False
        self._close: Finalize | None = None
        self._recv = self._reader.recv
        self._send_bytes = self._writer.send_bytes
        self._recv_bytes = self._reader.recv_bytes
        self._poll = self._reader.poll

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object into the queue.

        If the queue is full, wait for room (at most `timeout` seconds) or, with `block` false,
        do not; without room `queue.Full` is raised. `ValueError` on a closed queue. An object that
        cannot be pickled goes to `_on_queue_feeder_error` and is dropped.
        """
        if self._closed:
            self._check_open()
        if not self._sem.acquire(block, timeout):
            raise Full
        try:
            view = ForkingPickler.dumps(obj)
            # The garbage collector would look at every view that waits, but not at bytes.
            message: Buffer = bytes(view) if len(view) < _SMALL else view
        except Exception as exc:
            self._sem.release()
            self._on_queue_feeder_error(exc, obj)
            return
        except BaseException:
            self._sem.release()
            raise
        self._enqueue(message)

    def _enqueue(self, message: Buffer) -> None:
        with self._notempty:
            if self._thread is None:
                self._start_thread()
            self._buffer.append(message)
            self._notempty.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest object out of the queue.

        If there is none, wait for one (at most `timeout` seconds) or, with `block` false, do not;
        without one `queue.Empty` is raised. `ValueError` on a closed queue.
        """
        if self._closed:
            self._check_open()
        if block and timeout is None:
            with self._rlock:
                message = self._reader._recv_pickle()
        else:
            message = self._get_pickle_within(timeout or 0.0 if block else 0.0)
        self._sem.release()
        return ForkingPickler.loads(message)

    def _get_pickle_within(self, timeout: float) -> Buffer:
        deadline = monotonic() + timeout
        if not self._rlock.acquire(timeout > 0, timeout):
            raise Empty
        try:
            if not self._poll(max(0.0, deadline - monotonic())):
                raise Empty
            return self._reader._recv_pickle()
        finally:
            self._rlock.release()

    def qsize(self) -> int:
        """How many objects are in the queue, those in the buffers of processes included."""
        size: int = self._maxsize - self._sem._semlock._get_value()
        return size

    def empty(self) -> bool:
        """Whether `get` would have to wait."""
        return not self._poll()

    def full(self) -> bool:
        """Whether `put` would have to wait."""
        full: bool = self._sem._semlock._is_zero()
        return full

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(False)

    def put_nowait(self, obj: Any) -> None:
        """`put` without waiting."""
        return self.put(obj, False)

    def close(self) -> None:
        """This process neither puts nor gets any more; what it has put is still sent."""
        self._closed = True
        try:
            self._reader.close()
        finally:
            close, self._close = self._close, None
            if close is not None:
                close()  # the feeder closes the writer when it has sent what there was
            elif self._thread is None:
                self._writer.close()

    def join_thread(self) -> None:
        """Wait until what this process has put is in the pipe. Only after `close`."""
        debug("Queue.join_thread()")
        if not self._closed:
            raise ValueError(f"Queue {self!r} not closed")
        if self._thread is not None and not self._joincancelled:
            self._thread.join()

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

    # ---- the feeder ----

    def _start_thread(self) -> None:
        debug("Queue._start_thread()")
        self._buffer.clear()
        self._thread = threading.Thread(
            target=Queue._feed,
            args=(
                self._buffer,
                self._notempty,
                self._writer._send_bytes,
                self._wlock,
                self._writer.close,
            ),
            name="QueueFeederThread",
            daemon=True,
        )
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            raise
        # All who use a queue are descendants of the process that made it. When that one ends they
        # have ended, and there is nobody to send anything to.
        if not self._joincancelled and self._opid != os.getpid():
            self._jointhread = Finalize(
                self._thread, Queue._finalize_join, [weakref.ref(self._thread)], exitpriority=-5
            )
        self._close = Finalize(
            self, Queue._finalize_close, [self._buffer, self._notempty], exitpriority=10
        )

    @staticmethod
    def _finalize_join(twr: weakref.ref[threading.Thread]) -> None:
        thread = twr()
        if thread is not None:
            debug("joining queue thread")
            thread.join()

    @staticmethod
    def _finalize_close(buffer: deque[Any], notempty: threading.Condition) -> None:
        debug("telling queue thread to quit")
        with notempty:
            buffer.append(_sentinel)
            notempty.notify()

    @staticmethod
    def _feed(
        buffer: deque[Any],
        notempty: threading.Condition,
        send_bytes: Callable[[Buffer], None],
        writelock: Any,
        close: Callable[[], None],
    ) -> None:
        debug("starting thread to feed data to pipe")
        try:
            while True:
                # The condition is for waiting alone: taking it for every message would have this
                # thread and those that put hand the interpreter to and fro.
                with notempty:
                    while not buffer:
                        notempty.wait()
                while buffer:
                    message = buffer.popleft()
                    if message is _sentinel:
                        debug("feeder thread got sentinel -- exiting")
                        close()
                        return
                    with writelock:
                        send_bytes(message)
        except Exception as exc:
            # EPIPE: this process has closed its own reader, and there is no other.
            if get_errno(exc) == errno.EPIPE or is_exiting():
                info("error in queue thread: %r", exc, exc_info=True)
                return
            error("error in queue thread: %r", exc, exc_info=True)
            import traceback

            traceback.print_exception(exc)


class JoinableQueue(Queue):
    """A queue that can be waited for until every object put into it has been dealt with.

    From multiprocessing.
    """

    def __init__(self, maxsize: int = 0, *args: Any, **kwargs: Any) -> None:
        from .synchronize import InternalLock

        ctx = _context_of(kwargs)
        super().__init__(maxsize, ctx=ctx)
        self._unfinished_tasks = ctx.Semaphore(0)
        self._cond = ctx.Condition(InternalLock())

    def __getstate__(self) -> tuple[Any, ...]:
        return (*super().__getstate__(), self._cond, self._unfinished_tasks)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        super().__setstate__(state[:-2])
        self._cond, self._unfinished_tasks = state[-2:]

    def _enqueue(self, message: Buffer) -> None:
        # Counted before anybody can get it: otherwise task_done() might come first.
        with self._cond:
            self._unfinished_tasks.release()
        super()._enqueue(message)

    def task_done(self) -> None:
        """Say that an object taken out has been dealt with; `ValueError` if all had been."""
        with self._cond:
            if not self._unfinished_tasks.acquire(False):
                raise ValueError("task_done() called too many times")
            if self._unfinished_tasks._semlock._is_zero():
                self._cond.notify_all()

    def join(self) -> None:
        """Wait until every object put into the queue has been dealt with."""
        with self._cond:
            if not self._unfinished_tasks._semlock._is_zero():
                self._cond.wait()


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
