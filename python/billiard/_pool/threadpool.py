"""A pool of threads with the interface of a pool of processes.

```
 submitters, TaskHandler ──► tasks ──► worker threads ──► results ──► ResultHandler (callbacks)
```

Tasks and results are objects, nothing is pickled. Threads cannot be ended from outside: time
limits are refused, and ``terminate`` leaves running tasks to themselves.
"""

from __future__ import annotations

import os
from _queue import Empty, SimpleQueue
from time import monotonic
from weakref import ref

from ..dummy import DummyProcess
from ..einfo import ExceptionInfo
from ..exceptions import Terminated
from .book import Pool
from .constants import ACK, DEATH, READY, RUN
from .drive import Drive
from .failures import captured
from .submissions import Submissions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def _caught() -> ExceptionInfo:
    """The exception being handled, as it would be had it come from another process: unwrapped."""
    info = ExceptionInfo()
    info.exception = info.exception.exc
    return info


class ThreadPoolDrive(Drive):
    """Two queues and the threads between them. Process-local."""

    can_limit = False

    def __init__(self, pool: Any) -> None:
        self._pool = ref(pool)
        self.workers: list[Any] = pool._pool
        self.cache: dict[int, Any] = pool._cache
        self.tasks: SimpleQueue[Any] = SimpleQueue()
        self.results: SimpleQueue[Any] = SimpleQueue()
        self.busy: set[Any] = set()
        self.broken: ExceptionInfo | None = None
        self.terminated = False

    def open(self) -> None:
        pool = self._pool()
        assert pool is not None
        self.submissions = pool._taskqueue = Submissions()
        pool._inqueue, pool._outqueue = self.tasks, self.results
        pool._quick_put, pool._quick_get = self._feed, self.results.get
        pool._poll_result = self._poll

    def _poll(self, timeout: float | None) -> tuple[bool, Any]:
        try:
            return True, self.results.get(timeout=timeout)
        except Empty:
            return False, None

    def start(self) -> None:
        pool = self._pool()
        assert pool is not None
        self.task_handler, self.result_handler = pool._task_handler, pool._result_handler
        self.task_handler.outqueue = self  # is told that there are no more tasks
        results = self.result_handler
        results.patience, results.on_end = None, self._end
        results.state_handlers[DEATH] = self._on_exit
        results.start()
        self.task_handler.start()

    def put(self, sentinel: None) -> None:
        """There will be no more tasks: one end for each worker."""
        for _ in list(self.workers):
            self.tasks.put(None)
        if not self.workers:
            self.results.put(None)

    def _feed(self, task: Any) -> None:
        if task is not None:
            self.tasks.put(task)

    def submit_one(self, task: Any) -> None:
        if self.submissions.busy():
            self.submissions.put(((task,), None))
        else:
            self.tasks.put(task)

    def work(
        self, worker: Any, initializer: Callable[..., object] | None, initargs: Iterable[Any]
    ) -> None:
        """What a worker does."""
        pid, put = os.getpid(), self.results.put
        try:
            if initializer is not None:
                initializer(*initargs)
        except BaseException:
            self.broken = _caught()
        while (message := self.tasks.get()) is not None:
            _, (job, i, func, args, kwargs) = message
            del message
            if self.terminated:
                continue
            self.busy.add(worker)
            put((ACK, (job, i, monotonic(), pid, None)))
            try:
                outcome = (True, func(*args, **kwargs)) if not self.broken else (False, self.broken)
            except BaseException:
                outcome = (False, _caught())
            self.busy.discard(worker)
            put((READY, (job, i, outcome, None)))
            del func, args, kwargs, outcome
        put((DEATH, (worker,)))

    def _on_exit(self, worker: Any) -> None:
        self.workers.remove(worker)
        pool = self._pool()
        if pool is not None and pool._state == RUN:
            self.change()
        elif not self.workers:
            self.results.put(None)

    def _end(self) -> None:
        info = captured(Terminated("the pool has been terminated"))
        for job in list(self.cache.values()):
            job._abandon(info)

    def close(self) -> None:
        self.submissions.put(None)

    def join(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else monotonic() + timeout
        threads = (self.task_handler, *list(self.workers), self.result_handler)
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def finalizer(self) -> Callable[..., object]:
        return self._terminate

    def _terminate(self) -> None:
        self.terminated = True
        self.task_handler.terminate()
        self.submissions.put(None)
        self.results.put(None)

    def reap(self, shutdown: bool = False) -> list[int | None]:
        return []

    def wants_workers(self) -> bool:
        pool = self._pool()
        return pool is not None and pool._state == RUN

    def is_busy(self, worker: Any) -> bool:
        return worker in self.busy

    def retire(self, worker: Any) -> bool:
        # Whichever is the next to look for a task.
        self.tasks.put(None)
        return True

    def change(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool._repopulate_pool()


class _WorkerThread(DummyProcess):
    index: int

    def terminate_controlled(self) -> None:
        """Threads are asked by way of the queue."""


class ThreadPool(Pool):
    """A pool of threads. Origin: multiprocessing.

    :param processes: number of threads, by default that of the CPUs.
    :param initializer: called with ``initargs`` in every thread before its first task.
    """

    __module__ = "billiard.pool"

    DummyProcess = DummyProcess
    Process: Any = DummyProcess
    _drive: ThreadPoolDrive

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        super().__init__(processes, initializer, tuple(initargs))

    def _make_drive(self) -> Drive:
        return ThreadPoolDrive(self)

    def _create_worker_process(self, i: int) -> Any:
        worker = _WorkerThread(target=self._drive.work)
        worker._args = (worker, self._initializer, self._initargs)  # type: ignore[attr-defined]
        worker.name = worker.name.replace("Thread", "PoolWorker")
        worker.daemon = True
        worker.index = i
        self._pool.append(worker)
        worker._start_called = True
        super(DummyProcess, worker).start()
        return worker

    @staticmethod
    def _help_stuff_finish(inqueue: Any, task_handler: Any, pool: Any) -> None:
        """Nothing to help with."""
