"""The part of the pool that takes work: apply, map, imap and their kinds."""

from __future__ import annotations

import itertools
import threading
from collections import deque

from .._core import Attempt
from ..einfo import ExceptionInfo
from . import checks
from .chunks import mapstar, starmapstar
from .constants import AT_HAND_TASKS, RUN, TASK
from .results import (
    ApplyResult,
    BufferedIterator,
    IMapIterator,
    IMapUnorderedIterator,
    MapResult,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    from .drive import Drive, Task


class Tasks:
    """The tasks of a job, made as they are asked for."""

    def __init__(self, job: int, func: Any, items: Iterable[Any]) -> None:
        self.job = job
        self.func = func
        self.items = items
        #: those that have been made already
        self.made: Iterable[Task] = ()

    def __iter__(self) -> Iterator[Task]:
        yield from self.made
        job, func = self.job, self.func
        for i, item in enumerate(self.items):
            yield TASK, (job, i, func, (item,), {})


class Ahead:
    """Tasks of a job that are submitted as its results are taken, by whoever takes them.

    Nobody who takes results waits for another who reads the user's iterable: that one goes on for
    all.
    """

    def __init__(self, pool: Submitting, result: Any, tasks: Tasks) -> None:
        #: as long as there are more
        self._pool: Any = pool
        self._result = result
        self._func = tasks.func
        self._items = iter(tasks.items)
        self._count = 0
        #: a task that has been read and not submitted
        self._left: Task | None = None
        #: held by who reads
        self._reading = threading.Lock()
        #: one for each result that has been taken and not made up for
        self._due: deque[None] = deque()
        self._lifted = False

    def begin(self, count: int) -> None:
        """Submit the first tasks, before anybody has the result.

        Not by the task handler: while that read this iterable, what takers of results submit of it
        would queue up behind it.
        """
        for _ in range(min(count, AT_HAND_TASKS)):
            with self._reading:
                if self._result.ready() or not self._submit_next():
                    return

    def rest(self) -> Tasks:
        """All that is left, to be submitted in one go."""
        self._lifted = True
        tasks = Tasks(self._result._job, None, ())
        tasks.made = self._all()
        return tasks

    def _all(self) -> Iterator[Task]:
        while True:
            with self._reading:
                # The task handler, which reads it, has others to feed, whatever is raised.
                task, self._left = self._read(BaseException), None
            if task is None:
                return
            yield task

    def _read(self, caught: type[BaseException] = Exception) -> Task | None:
        """The next task; None, and the job's length is known, if there are no more."""
        if self._left is None:
            try:
                for item in self._items:
                    self._left = TASK, (self._result._job, self._count, self._func, (item,), {})
                    self._count += 1
                    return self._left
            except caught as exc:
                info = ExceptionInfo()
                _forget_frame(exc)
                self._result._set(self._count, (False, info))
                self._count += 1
            self._items, self._pool = iter(()), None
            self._result._set_length(self._count)
        return self._left

    def submit_one(self) -> None:
        """Submit the next task: a result has been taken. If this raises, it counts as not taken."""
        self._due.append(None)
        while self._due:
            with Attempt(self._reading) as held:
                if not held:
                    return
                if self._due:
                    self._due.pop()
                    self._submit_next()

    def _submit_next(self) -> bool:
        task = self._read()
        if task is None or self._lifted:
            return False
        try:
            self._pool._drive.submit_one(task)
        except Exception as exc:
            info = ExceptionInfo()
            _forget_frame(exc)
            self._result._set(task[1][1], (False, info))
        self._left = None
        return True


def _forget_frame(exc: BaseException) -> None:
    """Let an exception that is kept keep nothing of who has caught it."""
    if exc.__traceback__ is not None:
        exc.__traceback__ = exc.__traceback__.tb_next


class Submitting:
    """Methods of ``Pool``."""

    _cache: dict[int, Any]
    #: whether jobs that only their caller wants to know of need no book
    _direct = False
    _drive: Drive
    _pool: list[Any]
    _processes: int
    _putlock: Any
    _result_handler: Any
    _state: int
    _taskqueue: Any
    lost_worker_timeout: float
    on_timeout_cancel: Callable[..., object] | None
    on_timeout_set: Callable[..., object] | None
    putlocks: bool
    send_ack: Callable[..., object]
    soft_timeout: float | None
    synack: bool
    threads: bool
    timeout: float | None

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def _keep(self, job: Any) -> None:
        """Let a job keep the pool alive until it is done."""
        if self.threads:
            job._pool = self

    # ---- one task ----

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
    ) -> Any:
        """Call ``func(*args, **kwds)`` in a worker and wait. See :meth:`apply_async`."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[Any], object] | None = None,
        accept_callback: Callable[[int, float], object] | None = None,
        timeout_callback: Callable[..., object] | None = None,
        waitforslot: bool | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        callbacks_propagate: tuple[type[BaseException], ...] = (),
        correlation_id: Any = None,
    ) -> ApplyResult:
        """Have ``func(*args, **kwds)`` called in a worker; returns at once.

        :param callback: called with the value. :param error_callback: called with an
            ``ExceptionInfo``.
        :param accept_callback: called with the worker's pid and the time (monotonic seconds) when
            a worker begins.
        :param timeout_callback: called as ``f(soft=bool, timeout=seconds)`` past a limit.
        :param waitforslot: wait here while as many jobs are under way as there are workers;
            by default what the pool's ``putlocks`` says.
        :param soft_timeout: seconds after which SoftTimeLimitExceeded is raised in the task.
        :param timeout: seconds after which the worker is ended and the job fails with
            TimeLimitExceeded. Limits count from the beginning of the task; 0 and None: the pool's.
        :param lost_worker_timeout: seconds that the result may stay out after the worker's death
            (pools with ``threads=False``; others know at once).
        :param callbacks_propagate: exceptions of callbacks to raise, not to log.
        :param correlation_id: kept as the result's attribute.
        :raises ValueError: the pool has been closed.

        What cannot be pickled fails the job, not this call. Callbacks run in a thread of the
        pool and hold up all others. Origin: multiprocessing, most parameters billiard.
        """
        self._check_running()
        if (
            self._direct
            and callback is None
            and error_callback is None
            and accept_callback is None
            and timeout_callback is None
            and not waitforslot
            and soft_timeout is None
            and timeout is None
            and lost_worker_timeout is None
            and correlation_id is None
            and (not self._taskqueue.busy() or self._is_in_callback())
        ):
            return self._drive.apply(self, func, args, kwds)  # type: ignore[attr-defined, no-any-return]
        for name, value in (
            ("callback", callback),
            ("error_callback", error_callback),
            ("accept_callback", accept_callback),
            ("timeout_callback", timeout_callback),
        ):
            if value is not None:
                checks.function(name, value)
        soft_timeout = checks.amount("soft_timeout", soft_timeout) or self.soft_timeout
        timeout = checks.amount("timeout", timeout) or self.timeout
        if (timeout or soft_timeout) and not self._drive.can_limit:
            raise ValueError("tasks of threads cannot be given time limits")
        if lost_worker_timeout is not None:
            checks.amount("lost_worker_timeout", lost_worker_timeout)
        waited = self.putlocks if waitforslot is None else waitforslot
        if waited:
            self._wait_for_slot()
        result = ApplyResult(
            self._cache,
            callback,
            accept_callback,
            timeout_callback,
            error_callback,
            soft_timeout,
            timeout,
            lost_worker_timeout or self.lost_worker_timeout,
            on_timeout_set=self.on_timeout_set,
            on_timeout_cancel=self.on_timeout_cancel,
            callbacks_propagate=callbacks_propagate,
            send_ack=self.send_ack if self.synack else None,
            correlation_id=correlation_id,
        )
        self._keep(result)
        try:
            self._drive.submit_one((TASK, (result._job, None, func, args, kwds)))
        except BaseException:
            result.discard()
            if waited:
                self._give_slot_back()
            raise
        return result

    def _is_in_callback(self) -> bool:
        """Whether this thread runs callbacks: it cannot wait for jobs of the book."""
        return threading.current_thread() is self._result_handler

    def _wait_for_slot(self) -> None:
        if self._putlock is not None:
            self._putlock.acquire()
            try:
                # Closing lets everybody go who waits.
                self._check_running()
            except BaseException:
                self._give_slot_back()
                raise

    def _give_slot_back(self) -> None:
        if self._putlock is not None:
            self._putlock.release()

    # ---- many tasks, one result ----

    def map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        soft_timeout: float | None = None,
    ) -> list[Any]:
        """``list(map(func, iterable))`` in the workers. See :meth:`map_async`."""
        limits = (soft_timeout, timeout)
        return self._map_async(func, iterable, mapstar, chunksize, limits=limits).get()  # type: ignore[no-any-return]

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        soft_timeout: float | None = None,
    ) -> list[Any]:
        """As :meth:`map`, for items that are tuples of arguments."""
        limits = (soft_timeout, timeout)
        return self._map_async(func, iterable, starmapstar, chunksize, limits=limits).get()  # type: ignore[no-any-return]

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[Any], object] | None = None,
        *,
        timeout: float | None = None,
        soft_timeout: float | None = None,
    ) -> MapResult:
        """Have ``func`` called for every item; returns at once.

        :param chunksize: items that go to a worker at once; by default what gives every worker
            about four chunks, or 1 if there are limits.
        :param callback: called with the list of values. :param error_callback: called with the
            first failure, which is the failure of the whole, as an ``ExceptionInfo``.
        :param timeout: seconds that a chunk may take: see :meth:`apply_async`.
        :param soft_timeout: the same, softly.
        :raises ValueError: the pool has been closed, or ``chunksize`` is less than 1.

        Origin: multiprocessing; the limits are ours.
        """
        limits = (soft_timeout, timeout)
        return self._map_async(func, iterable, mapstar, chunksize, callback, error_callback, limits)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[Any], object] | None = None,
        *,
        timeout: float | None = None,
        soft_timeout: float | None = None,
    ) -> MapResult:
        """As :meth:`map_async`, for items that are tuples of arguments."""
        limits = (soft_timeout, timeout)
        return self._map_async(
            func, iterable, starmapstar, chunksize, callback, error_callback, limits
        )

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Any,
        mapper: Callable[..., Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[Any], object] | None = None,
        limits: tuple[float | None, float | None] = (None, None),
    ) -> MapResult:
        self._check_running()
        checks.function("callback", callback)
        checks.function("error_callback", error_callback)
        soft, hard = Submitting._check_limits(self, *limits)
        if chunksize is not None:
            chunksize = checks.chunksize(chunksize)
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
            self._check_running()  # that may have taken its time
        length = len(iterable)
        if chunksize is None and (soft or hard):
            chunksize = 1
        if chunksize is None:
            chunksize = -(-length // (max(1, self._processes) * 4))
        result = MapResult(
            self._cache, chunksize if length else 0, length, callback, error_callback
        )
        if length:
            result._soft_timeout, result._timeout = soft, hard
            self._keep(result)
            chunks = self._get_tasks(func, iterable, chunksize)
            self._submit(result, Tasks(result._job, mapper, chunks), None)
        return result

    def _check_limits(
        self, soft_timeout: float | None, timeout: float | None
    ) -> tuple[float | None, float | None]:
        """The limits of a job's tasks: soft, hard; without the pool's own."""
        soft = checks.amount("soft_timeout", soft_timeout)
        hard = checks.amount("timeout", timeout)
        if (soft or hard) and not self._drive.can_limit:
            raise ValueError("tasks of threads cannot be given time limits")
        return soft, hard

    def _submit(
        self, result: Any, tasks: Tasks, set_length: Callable[[int], object] | None
    ) -> None:
        try:
            self._taskqueue.put((tasks, set_length))
        except BaseException:
            result.discard()
            raise
        self._drive.check_broken()

    @staticmethod
    def _get_tasks(
        func: Callable[..., Any], it: Iterable[Any], size: int
    ) -> Iterator[tuple[Callable[..., Any], Any]]:
        if type(it) is range or type(it) is list or type(it) is tuple:
            # A part of a range is a range, which is small to send, whatever its length.
            for start in range(0, len(it), size):
                yield func, it[start : start + size]
            return
        it = iter(it)
        while chunk := tuple(itertools.islice(it, size)):
            yield func, chunk

    # ---- many tasks, many results ----

    def imap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
    ) -> Any:
        """An iterator over the values of ``func`` for the items, in order, as they arrive.

        :param iterable: read as far ahead as the workers need; what it raises is raised at that
            point of the iteration.
        :param chunksize: items that go to a worker at once.
        :param buffersize: at most so many chunks are read ahead of the results that have been
            taken, as in ``Executor.map`` of Python 3.14. So many items are read at once, the others
            by whoever takes results.
        :param timeout: seconds that a chunk may take: see :meth:`apply_async`.
        :param soft_timeout: the same, softly.
        :raises ValueError: the pool has been closed, or a number is less than 1.

        With a ``chunksize`` of 1 the iterator's ``next`` has a ``timeout`` in seconds.
        Origin: multiprocessing; the keywords are ours.
        """
        options = (lost_worker_timeout, buffersize, soft_timeout, timeout)
        return Submitting._imap(self, IMapIterator, func, iterable, chunksize, options)

    def imap_unordered(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        lost_worker_timeout: float | None = None,
        *,
        buffersize: int | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
    ) -> Any:
        """As :meth:`imap`, in the order in which the values arrive."""
        options = (lost_worker_timeout, buffersize, soft_timeout, timeout)
        return Submitting._imap(self, IMapUnorderedIterator, func, iterable, chunksize, options)

    def _imap(
        self,
        kind: type[IMapIterator],
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        options: tuple[Any, Any, Any, Any],
    ) -> Any:
        self._check_running()
        lost_worker_timeout, buffersize, soft_timeout, timeout = options
        chunksize = checks.chunksize(chunksize)
        checks.amount("lost_worker_timeout", lost_worker_timeout)
        buffersize = checks.count("buffersize", buffersize, 1)
        soft, hard = Submitting._check_limits(self, soft_timeout, timeout)
        items: Iterator[Any] = iter(iterable)
        source = type(iterable)
        if chunksize > 1:
            items, func = Submitting._get_tasks(func, iterable, chunksize), mapstar
        result: Any
        if self._direct is True and not (soft or hard):
            ordered = kind is IMapIterator
            result = self._drive.imap(self, ordered, func, items, buffersize, source)  # type: ignore[attr-defined]
        else:
            result = kind(self._cache, lost_worker_timeout or self.lost_worker_timeout)
            result._soft_timeout, result._timeout = soft, hard
            Submitting._keep(self, result)
            tasks = Tasks(result._job, func, items)
            if buffersize is None:
                Submitting._submit(self, result, tasks, result._set_length)
            else:
                ahead = Ahead(self, result, tasks)
                result = BufferedIterator(result, ahead)
                try:
                    ahead.begin(buffersize)
                except BaseException:
                    result.discard()
                    raise
        if chunksize > 1:
            return (item for chunk in result for item in chunk)
        return result
