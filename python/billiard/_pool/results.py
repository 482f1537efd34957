"""Jobs: what callers of a pool hold until the results are there.

State of a job, in the words of its attributes:

```
 waiting ──ack──► accepted ──ready──► done           in the pool's cache until accepted and done
    └──────────ready (result before ack)──► done
```

``_set`` takes the first outcome and ignores every later one: a result, a time limit and a lost
worker may meet. A job is process-local. Callbacks run in whichever thread sets the outcome, after
waiting callers have been let go, and with no lock held.
"""

from __future__ import annotations

import sys
import threading
from _queue import Empty, SimpleQueue
from abc import ABCMeta
from collections import deque
from functools import partial
from weakref import ref

from .. import exceptions
from .._core import PoolResult, PoolSequence
from ..einfo import ExceptionInfo
from ..exceptions import Terminated
from . import checks
from .constants import ACK, LOST_WORKER_TIMEOUT, NACK, job_counter
from .failures import captured, task_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    #: (True, value) or (False, ExceptionInfo)
    Outcome = tuple[bool, Any]
    Cache = dict[int, Any]


def _new_lock() -> Any:
    """A lock of the kind that ``billiard.pool.Lock`` names: Celery puts a dummy there."""
    module = sys.modules.get("billiard.pool")
    return getattr(module, "Lock", threading.Lock)()


def _check_waiter(pool: Any, timeout: float | None) -> None:
    """Whoever would wait for ever had better know at once."""
    if pool is None:
        return  # it is done, or an event loop's
    pool._check_owner()
    if timeout is None and threading.current_thread() is pool._result_handler:
        raise RuntimeError("its result is brought by the thread that runs this callback")


class Flag:
    """An event that is set once. Process-local.

    Unlike :class:`threading.Event` it holds no lock that a signal handler could interrupt while
    it is held, and it is one lock and one word big.
    """

    __slots__ = ("_done", "_gate")

    def __init__(self) -> None:
        self._done = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def is_set(self) -> bool:
        return self._done

    def set(self) -> None:
        # The gate is opened once; who passes it opens it again for the next.
        if not self._done:
            self._done = True
            self._gate.release()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._done:
            seconds = checks.patience(timeout)
            if self._gate.acquire(timeout=-1 if seconds is None else seconds):
                self._gate.release()
        return self._done


class ApplyResult(metaclass=ABCMeta):
    """The result of :meth:`Pool.apply_async`. Made by the pool. Origin: billiard."""

    __module__ = "billiard.pool"

    _worker_lost: tuple[float, int | None] | None = None
    _write_to: Any = None
    _scheduled_for: Any = None
    #: keeps a pool alive while somebody waits for it
    _pool: Any = None
    #: the outcome instead of any that comes: it has been cancelled
    _verdict: ExceptionInfo | None = None
    # A job that is not done is not a success yet; these exist from the start.
    _success: bool
    _value: Any
    _accepted: Any
    _worker_pid: Any
    _time_accepted: Any

    def __init__(
        self,
        cache: Cache,
        callback: Callable[[Any], object] | None,
        accept_callback: Callable[[int, float], object] | None = None,
        timeout_callback: Callable[..., object] | None = None,
        error_callback: Callable[[Any], object] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        lost_worker_timeout: float = LOST_WORKER_TIMEOUT,
        on_timeout_set: Callable[..., object] | None = None,
        on_timeout_cancel: Callable[..., object] | None = None,
        callbacks_propagate: tuple[type[BaseException], ...] = (),
        send_ack: Callable[..., object] | None = None,
        correlation_id: Any = None,
    ) -> None:
        self.correlation_id = correlation_id
        self._mutex = _new_lock()
        self._event = Flag()
        self._job = next(job_counter)
        self._cache = cache
        self._callback = callback
        self._accept_callback = accept_callback
        self._error_callback = error_callback
        self._timeout_callback = timeout_callback
        self._timeout = timeout
        self._soft_timeout = soft_timeout
        self._lost_worker_timeout = lost_worker_timeout
        self._on_timeout_set = on_timeout_set
        self._on_timeout_cancel = on_timeout_cancel
        self._callbacks_propagate = callbacks_propagate or ()
        self._send_ack = send_ack
        self._accepted = False
        self._cancelled = False
        self._worker_pid = None
        self._time_accepted = None
        self._terminated: int | None = None
        cache[self._job] = self

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._job} ack:{self._accepted} ready:{self.ready()}>"

    def ready(self) -> bool:
        """Whether there is an outcome."""
        return self._event.is_set()

    def accepted(self) -> bool:
        """Whether a worker has begun with it."""
        return bool(self._accepted)

    def successful(self) -> bool:
        """Whether the outcome is a value.

        :raises ValueError: there is no outcome yet.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the outcome, at most ``timeout`` seconds."""
        _check_waiter(self._pool, timeout)
        self._event.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the outcome: return the value or raise the task's exception.

        :param timeout: seconds to wait at most.
        :raises TimeoutError: still no outcome.
        """
        self.wait(timeout)
        if not self.ready():
            raise exceptions.TimeoutError
        if self._success:
            return self._value
        try:
            raise task_error(self._value)
        finally:
            # The exception knows this frame, and this frame the exception.
            del self

    def cancel(self) -> bool:
        """End the job: tasks that no worker has begun will not begin; workers that have are ended.

        :returns: false if it was too late, or if the pool cannot do that (threads,
            ``threads=False``). Otherwise the outcome is Terminated.

        Ours.
        """
        pool = self._pool
        return pool is not None and pool._drive.cancel(self)

    def discard(self) -> None:
        """Forget the job: whatever its outcome, nobody is told."""
        self._cache.pop(self._job, None)
        self._pool = None

    def terminate(self, signum: int) -> None:
        """Note that the worker was told to stop, by which signal."""
        self._terminated = signum

    def worker_pids(self) -> list[int]:
        """The pids of the workers that have accepted it."""
        return [self._worker_pid] if self._worker_pid else []

    def safe_apply_callback(
        self, fun: Callable[..., object] | None, *args: Any, **kwargs: Any
    ) -> None:
        """Call a callback; log what it raises, except what the caller asked to have raised."""
        if fun:
            try:
                fun(*args, **kwargs)
            except MemoryError:
                raise
            except self._callbacks_propagate:
                raise
            except Exception as exc:
                from . import log

                log.error("Pool callback raised exception: %r", exc, exc_info=True)

    def handle_timeout(self, soft: bool = False) -> None:
        """Tell the timeout callback that a limit has passed."""
        if self._timeout_callback is not None:
            limit = self._soft_timeout if soft else self._timeout
            self.safe_apply_callback(self._timeout_callback, soft=soft, timeout=limit)

    def _cancel(self) -> None:
        """Refuse it when a worker asks for leave to run it (pools with ``synack``)."""
        self._cancelled = True

    def _is_decided(self) -> bool:
        """Whether no other outcome can come."""
        return self._event.is_set()

    def _overrule(self, info: ExceptionInfo) -> bool:
        """Have a failure in place of whatever comes; false if that has come already."""
        with self._mutex:
            if self._is_decided() or self._verdict is not None:
                return False
            self._verdict = info
            return True

    def _set_terminated(self, signum: int | None = None) -> None:
        self._set(None, (False, captured(Terminated(-(signum or 0)))))

    def _abandon(self, info: ExceptionInfo) -> None:
        """Let waiting callers go with an error, and tell no callback: the pool is no more."""
        with self._mutex:
            if self._event.is_set():
                return
            self._success, self._value = False, info
            self._event.set()
        self.discard()

    def _judged(self, outcome: Outcome) -> Outcome:
        return outcome if self._verdict is None else (False, self._verdict)

    def _set(self, i: int | None, obj: Outcome) -> None:
        with self._mutex:
            if self._event.is_set():
                return
            self._success, self._value = self._judged(obj)
            self._event.set()
            if self._accepted or self._pool is not None:
                # Without threads the result may overtake the ack, which has to be answered
                # (``synack``) and removes the entry.
                self._cache.pop(self._job, None)
            self._pool = None
        if self._on_timeout_cancel:
            self._on_timeout_cancel(self)
        if self._success:
            self.safe_apply_callback(self._callback, self._value)
        elif self._value is not None:
            self.safe_apply_callback(self._error_callback, self._value)

    def _ack(self, i: int | None, time_accepted: float, pid: int, synqW_fd: int | None) -> None:
        with self._mutex:
            cancelled = self._cancelled and self._send_ack
            self._accepted = True
            if not cancelled:
                self._time_accepted = time_accepted
                self._worker_pid = pid
                if self._event.is_set():
                    self._cache.pop(self._job, None)
        response = ACK
        if cancelled:
            response = NACK
        else:
            if self._on_timeout_set:
                self._on_timeout_set(self, self._soft_timeout, self._timeout)
            if self._accept_callback:
                try:
                    self._accept_callback(pid, time_accepted)
                except self._callbacks_propagate:
                    raise
                except Exception:
                    # A job that its owner does not want to see begun.
                    response = NACK
        if self._send_ack and synqW_fd:
            self._send_ack(response, pid, self._job, synqW_fd)


class MapResult(ApplyResult):
    """The result of :meth:`Pool.map_async`: a list, or the first failure. Origin: billiard."""

    __module__ = "billiard.pool"

    def __init__(
        self,
        cache: Cache,
        chunksize: int,
        length: int,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[Any], object] | None,
    ) -> None:
        super().__init__(cache, callback, error_callback=error_callback)
        self._success = True
        self._length = length
        self._value = [None] * length
        self._accepted = [False] * length
        self._worker_pid = [None] * length
        self._time_accepted = [None] * length
        self._chunksize = chunksize
        if chunksize <= 0:
            self._number_left = 0
            self._event.set()
            del cache[self._job]
        else:
            self._number_left = -(-length // chunksize)

    def _set(self, i: int | None, success_result: Outcome) -> None:
        with self._mutex:
            if self._is_decided():
                return
            success, result = self._judged(success_result)
            if success:
                assert i is not None
                self._value[i * self._chunksize : (i + 1) * self._chunksize] = result
                self._number_left -= 1
                if self._number_left:
                    return
            else:
                self._success = False
                self._value = result
                self._number_left = 0
            self._cache.pop(self._job, None)
        try:
            # Before the waiting callers, as it always was for maps.
            callback = self._callback if success else self._error_callback
            self.safe_apply_callback(callback, self._value)
        finally:
            self._event.set()
            self._pool = None

    def _ack(self, i: int | None, time_accepted: float, pid: int, *args: Any) -> None:
        assert i is not None
        start = i * self._chunksize
        stop = min(start + self._chunksize, self._length)
        self._accepted[start:stop] = [True] * (stop - start)
        self._worker_pid[start:stop] = [pid] * (stop - start)
        self._time_accepted[start:stop] = [time_accepted] * (stop - start)
        if self.ready():
            self._cache.pop(self._job, None)

    def _is_decided(self) -> bool:
        # Its callbacks are called before the event is set.
        return not self._number_left

    def accepted(self) -> bool:
        """Whether all of it has been begun."""
        return all(self._accepted)

    def worker_pids(self) -> list[int]:
        return [pid for pid in self._worker_pid if pid]


class _End:
    """Follows the last item of an iterator."""


class IMapIterator(metaclass=ABCMeta):  # noqa: B024  (for the iterators of the engine)
    """The results of :meth:`Pool.imap`, in the order of the tasks. Origin: billiard."""

    __module__ = "billiard.pool"

    _worker_lost: tuple[float, int | None] | None = None
    _write_to: Any = None
    _scheduled_for: Any = None
    _pool: Any = None
    #: limits of each task, in seconds
    _timeout: float | None = None
    _soft_timeout: float | None = None
    #: to what submits another task when a result has been taken: a weak reference, or None
    _refill: Any = None
    #: to what the caller has of it, if that is something else: a weak reference, or None
    _held_as: Any = None

    def __init__(self, cache: Cache, lost_worker_timeout: float = LOST_WORKER_TIMEOUT) -> None:
        self._job = next(job_counter)
        self._cache = cache
        # Safe to use in signal handlers: no lock that could be held there.
        self._items: deque[Any] = deque()
        #: one for each item
        self._there: SimpleQueue[None] = SimpleQueue()
        self._mutex = threading.Lock()
        self._index = 0
        self._length: int | None = None
        self._ready = False
        self._unsorted: dict[int, Outcome] = {}
        self._worker_pids: list[int] = []
        self._lost_worker_timeout = lost_worker_timeout
        cache[self._job] = self

    def __iter__(self) -> Iterator[Any]:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """Wait for the next result: return the value or raise the task's exception.

        :param timeout: seconds to wait at most.
        :raises TimeoutError: it is not there yet.
        :raises StopIteration: there are no more.
        """
        if self._there.empty():
            _check_waiter(self._pool, timeout)
        try:
            self._there.get(timeout=checks.patience(timeout))
        except Empty:
            raise exceptions.TimeoutError from None
        item = self._items.popleft()
        if item is _End:
            self._give_back(item)  # for the next to ask
            raise StopIteration
        if (refill := self._refill) is not None and (ahead := refill()) is not None:
            try:
                ahead.submit_one()
            except BaseException:
                self._give_back(item)
                raise
            finally:
                del ahead
        success, value = item
        if success:
            return value
        try:
            raise task_error(value)
        finally:
            del self, item, value

    __next__ = next

    def _give(self, item: Any) -> None:
        self._items.append(item)
        self._there.put(None)

    def _give_back(self, item: Any) -> None:
        self._items.appendleft(item)
        self._there.put(None)

    def ready(self) -> bool:
        """Whether all results have arrived."""
        return self._ready

    def worker_pids(self) -> list[int]:
        """The pids of the workers that have accepted a task of it."""
        return self._worker_pids

    def discard(self) -> None:
        """Forget the job."""
        self._cache.pop(self._job, None)
        self._pool = None

    def _is_decided(self) -> bool:
        return self._ready

    def _overrule(self, info: ExceptionInfo) -> bool:
        """Have a failure in place of all that is still to come; false if nothing is."""
        if self._ready:
            return False
        self._abandon(info)
        return True

    def _abandon(self, info: ExceptionInfo) -> None:
        """Let waiting callers go: an error, then the end."""
        with self._mutex:
            if self._ready:
                return
            self._give((False, info))
            self._finish()

    def _finish(self) -> None:
        self._ready = True
        self._give(_End)
        self._cache.pop(self._job, None)
        self._pool = None

    def _arrived(self, i: int | None, obj: Outcome) -> None:
        """Pass on what is due, in order."""
        self._unsorted[self._index if i is None else i] = obj
        while self._index in self._unsorted:
            self._give(self._unsorted.pop(self._index))
            self._index += 1

    def _set(self, i: int | None, obj: Outcome) -> None:
        with self._mutex:
            if self._ready:
                return
            self._arrived(i, obj)
            if self._index == self._length:
                self._finish()

    def _set_length(self, length: int) -> None:
        with self._mutex:
            self._length = length
            if self._index == length and not self._ready:
                self._finish()

    def _ack(self, i: int | None, time_accepted: float, pid: int, *args: Any) -> None:
        self._worker_pids.append(pid)


class IMapUnorderedIterator(IMapIterator):
    """The results of :meth:`Pool.imap_unordered`, as they arrive. Origin: billiard."""

    __module__ = "billiard.pool"

    def _arrived(self, i: int | None, obj: Outcome) -> None:
        self._give(obj)
        self._index += 1


class BufferedIterator:
    """What the caller has of a job that goes on as its results are taken.

    Nobody takes any more once that is gone: the tasks ahead go with it, and the job is forgotten.
    """

    __module__ = "billiard.pool"

    def __init__(self, job: IMapIterator, ahead: Any) -> None:
        self._of = job
        self._ahead = ahead
        # A method in C: what a signal's handler raises cannot interrupt it.
        job._refill = ref(ahead, partial(job._cache.pop, job._job))
        job._held_as = ref(self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """See :meth:`IMapIterator.next`."""
        try:
            return self._of.next(timeout)
        except StopIteration:
            self._ahead = None
            raise
        finally:
            del self  # an exception that is kept keeps nothing else

    __next__ = next

    @property
    def _job(self) -> int:
        return self._of._job

    def ready(self) -> bool:
        """Whether all results have arrived."""
        return self._of.ready()

    def worker_pids(self) -> list[int]:
        """The pids of the workers that have accepted a task of it."""
        return self._of.worker_pids()

    def discard(self) -> None:
        """Forget the job."""
        self._of.discard()


def as_held(job: Any) -> Any:
    """A job as its caller has it."""
    held_as = getattr(job, "_held_as", None)
    return job if held_as is None else held_as() or job


# What the native drive's engine makes of calls that need no book.
ApplyResult.register(PoolResult)
IMapUnorderedIterator.register(PoolSequence)
IMapUnorderedIterator.register(BufferedIterator)
