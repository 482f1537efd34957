"""The seam between the book and a drive, and the passive drive.

The book (:class:`billiard.pool.Pool`) makes jobs and workers and decides what becomes of them. A
drive moves tasks and results, and notices deaths and deadlines. A pool has one, for life.

```
 book calls drive                                     drive calls book
 ────────────────                                     ────────────────
 open()             before the first worker           pool._result_handler.on_state_change(message)
 queues()           the ends for the next worker         (ACK, (job, i, time, pid, synq_fd))
 launch(worker), launch_all(workers)                     (READY, (job, i, (success, value), inq_fd))
                                                         other kinds that a Worker subclass sends
 start()            the handlers exist: begin         pool._maintain_pool()
 submit_one(task)                                        reaps and replaces, by way of reap()
 pool._taskqueue.put((tasks, set_length))             pool._task_lost(job, i, worker, exitcode)
                    the queue is the drive's             the task of a worker that has died
 reap()             see to the workers that exited    pool._forget_worker(worker)
 wants_workers()    are they to be replaced?          pool.on_process_down(worker), if it is set
 is_busy(worker), retire(worker), recall(), change()
 fail(info)         no worker can be had
 close(), join(), finalizer(), abort()
```

* A *task* is ``(TASK, (job, i, func, args, kwargs))``; ``job`` is the number of a job in the
  pool's cache, ``i`` the number of the task in its job or None. A sequence of tasks has the
  attribute ``job``; iterating it runs the user's iterable, which may block, be endless or raise
  (then the job fails at that place). ``set_length``, if not None, is called with the number of
  tasks in the end. Sequences keep their order, and single tasks queue up behind them.
* Every task that was submitted ends with one outcome in its job: by READY, by ``_task_lost`` or
  by ``job._set(i, (False, ExceptionInfo))``. A job ignores all outcomes but the first.
* A task or an outcome that cannot be pickled or unpickled is a failure of that task.
* The book may be called from any thread of the drive; for one worker in the order of events:
  what it sent, then its end. No lock is held during the call that a callback could need.
* ``submit_one`` and ``put`` are called by any thread of the program, and may be interrupted by a
  signal handler that calls ``terminate``: the terminating path waits for no lock that is held
  there.
* A drive whose threads run does not keep the pool alive: it refers to it weakly. Jobs that are
  not done refer to it strongly.
* In a forked child of the pool's owner the drive is foreign: ``Pool._check_running`` raises, and
  the drive has closed its descriptors there (``util.register_after_fork``).
"""

from __future__ import annotations

from time import monotonic

from ..common import human_status
from .constants import EX_OK, EX_RECYCLE, RUN
from .handlers import UNLOCKED, WorkersJoined, stop_if_not_current
from .log import debug, error
from .results import ApplyResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from ..einfo import ExceptionInfo

    Task = tuple[int, tuple[int, int | None, Callable[..., Any], Any, Any]]


#: how many workers that were reaped a passive drive remembers
REMEMBERED = 100


class Drive:
    """What a drive can do; where there is a body it is enough for one without threads."""

    #: whether `apply` and `imap` exist: jobs that need no book
    is_native = False
    #: whether tasks can be given time limits
    can_limit = True
    #: whether all know of the end who have to, once it has been told: if not, tell them again
    has_told_all = True
    #: held while workers are reaped and replaced
    maintenance: AbstractContextManager[Any] = UNLOCKED

    def __init__(self, pool: Any) -> None:
        raise NotImplementedError

    # ---- the pool's life ----

    def open(self) -> None:
        """Make what workers need: called once, before the first of them is made.

        Sets ``_taskqueue``, ``_quick_put`` and what else has a name in the pool.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Begin: the first workers have been started and the pool has its handlers."""

    def close(self) -> None:
        """No more tasks will be submitted; workers may exit when all are done."""
        raise NotImplementedError

    def join(self, timeout: float | None = None) -> bool:
        """Wait until everything has ended, after :meth:`close` or the finalizer, at most so many
        seconds (drives with threads); whether it has."""
        raise NotImplementedError

    def finalizer(self) -> Callable[..., object]:
        """What terminates the pool: called without arguments, once, when it is told to, when it
        is collected or when the program exits; perhaps within a signal handler. It must not refer
        to the pool strongly if the drive has threads."""
        raise NotImplementedError

    def abort(self) -> None:
        """The pool could not be made, its workers have been ended: leave nothing behind."""

    # ---- tasks ----

    def submit_one(self, task: Task) -> None:
        """Take one task."""
        raise NotImplementedError

    def check_broken(self) -> None:
        """Something has been submitted: perhaps to a pool that has just ceased to do anything."""

    def cancel(self, job: Any) -> bool:
        """End a job; false if that cannot be done (any more)."""
        return False

    def wait_until_idle(self, timeout: float | None) -> bool:
        """Wait until there are no jobs, at most ``timeout`` seconds; whether that is so.

        After :meth:`close`.
        """
        raise NotImplementedError

    def fail(self, info: ExceptionInfo) -> None:
        """Let every task fail that no worker has begun, and any later one."""

    # ---- workers ----

    def queues(self) -> tuple[Any, Any, Any]:
        """``(inq, outq, synq)`` for the next worker."""
        raise NotImplementedError

    def ready_counter(self, ctx: Any, inq: Any) -> Any:
        """Where the results of the worker with the queue ``inq`` are counted (its ``value``)."""
        return ctx.Value("i")

    def launch(self, worker: Any) -> None:
        """Start a worker process, the last in the pool's list."""
        worker.start()

    #: whether `launch_all` may get several: they, and their queues, are made before it is called
    launches_together = False

    def launch_all(self, workers: Sequence[Any]) -> None:
        """Start worker processes, the last in the pool's list.

        If some cannot be started, the others are, and the first error is raised.
        """
        for worker in workers:
            self.launch(worker)

    def reap(self, shutdown: bool = False) -> list[int | None]:
        """Reap the workers that have exited and see to their tasks; returns exit statuses.

        :raises WorkersJoined: ``shutdown`` is true and there are no workers (drives without
            threads).
        """
        raise NotImplementedError

    def wants_workers(self) -> bool:
        """Whether workers that have ended are to be replaced."""
        raise NotImplementedError

    def is_busy(self, worker: Any) -> bool:
        """Whether a worker has a task."""
        raise NotImplementedError

    def retire(self, worker: Any) -> bool:
        """Give a worker no more tasks; false if it has one."""
        return True

    def is_leaving(self, worker: Any) -> bool:
        """Whether a worker has said that it is about to exit: it may be replaced."""
        return False

    def condemn(self, worker: Any) -> None:
        """A worker is about to be sent a signal because of the task that it is at."""

    def recall(self) -> None:
        """Let every worker exit when it is done with its task (their sentinels are set)."""

    def change(self) -> None:
        """The number of workers that the pool wants has changed."""


class PassiveDrive(Drive):
    """``threads=False``: somebody else's event loop calls the handlers.

    One pair of queues for all workers. Celery's AsynPool overrides the hooks of ``Pool`` that lead
    here; what is here serves a plain ``Pool(threads=False)``. Process-local; a forked child that
    uses it takes part in the same queues.
    """

    def __init__(self, pool: Any) -> None:
        # A cycle, not a thread's reference: the collector can take both.
        self.pool = pool
        #: pid -> exit status of the workers reaped lately, and whether `terminate_job` ended them
        self._reaped: dict[int, tuple[int | None, bool]] = {}

    def open(self) -> None:
        pool = self.pool
        inqueue = pool._inqueue = pool._ctx.SimpleQueue()
        outqueue = pool._outqueue = pool._ctx.SimpleQueue()
        pool._quick_put = inqueue._writer.send
        get = pool._quick_get = outqueue._reader.recv

        def poll_result(timeout: float | None) -> tuple[bool, Any]:
            if outqueue._reader.poll(timeout):
                return True, get()
            return False, None

        pool._poll_result = poll_result

    def queues(self) -> tuple[Any, Any, Any]:
        return self.pool._inqueue, self.pool._outqueue, None

    def submit_one(self, task: Task) -> None:
        self.pool._quick_put(task)

    def wants_workers(self) -> bool:
        return bool(self.pool._state == RUN)

    def is_busy(self, worker: Any) -> bool:
        return any(worker.pid in job.worker_pids() for job in list(self.pool._cache.values()))

    def reap(self, shutdown: bool = False) -> list[int | None]:
        pool = self.pool
        while len(self._reaped) > REMEMBERED:
            del self._reaped[next(iter(self._reaped))]
        self._look_at_lost_jobs()
        if shutdown and not pool._pool:
            raise WorkersJoined
        gone = []
        for i in reversed(range(len(pool._pool))):
            worker = pool._pool[i]
            exitcode = worker.exitcode
            if worker._popen is not None and exitcode is None:
                continue
            debug("Supervisor: cleaning up worker %d", i)
            if worker._popen is not None:
                worker.join()
            gone.append(worker)
            self._reaped[worker.pid] = exitcode, getattr(worker, "_job_terminated", False)
            if exitcode not in (EX_OK, EX_RECYCLE) and not worker._controlled_termination:
                status = human_status(exitcode)
                error("Process %r pid:%r exited with %r", worker.name, worker.pid, status)
            pool.process_flush_queues(worker)
            del pool._pool[i]
            pool._forget_worker(worker)
        if gone:
            self._see_to_jobs()
            for worker in gone:
                if pool.on_process_down:
                    if not shutdown:
                        pool._process_cleanup_queues(worker)
                    pool.on_process_down(worker)
        return [self._reaped[worker.pid][0] for worker in gone]

    def _look_at_lost_jobs(self) -> None:
        """A dead worker's result may still be in the shared queue: for so long, and no longer.

        That it had begun a job may have been there as well, and read after it was reaped.
        """
        pool = self.pool
        there = {worker.pid for worker in pool._pool}
        for job in list(pool._cache.values()):
            if job.ready():
                continue
            if job._worker_lost:
                since, exitcode = job._worker_lost
                if monotonic() - since > job._lost_worker_timeout:
                    pool.mark_as_worker_lost(job, exitcode)
            elif type(job) is ApplyResult:  # others may have the results of all who began
                pid = job._worker_pid
                if pid in self._reaped and pid not in there:
                    self._lose(job, pid)

    def _see_to_jobs(self) -> None:
        """Workers have been reaped: fail, or watch, what they were at."""
        pool = self.pool
        there = {worker.pid for worker in pool._pool}
        for job in list(pool._cache.values()):
            if job._worker_lost:
                continue
            pid = next((pid for pid in job.worker_pids() if pid not in there), None)
            if pid is not None:
                self._lose(job, pid)
                continue
            for process in (job._write_to, job._scheduled_for):
                if process and not process._is_alive():
                    pool.on_job_process_down(job, process.pid)
                    break

    def _lose(self, job: Any, pid: int) -> None:
        """The worker of a job is gone."""
        pool = self.pool
        pool.on_job_process_down(job, pid)
        if job.ready():
            return
        exitcode, was_terminated = self._reaped.get(pid, (None, False))
        if was_terminated:
            job._set_terminated(exitcode or 0)
        else:
            pool.on_job_process_lost(job, pid, exitcode or 0)

    def close(self) -> None:
        pool = self.pool
        pool._worker_handler.close()
        pool._taskqueue.put(None)
        stop_if_not_current(pool._worker_handler)

    def join(self, timeout: float | None = None) -> bool:
        pool = self.pool
        debug("joining worker handler")
        stop_if_not_current(pool._worker_handler)
        debug("joining task handler")
        pool._stop_task_handler(pool._task_handler)
        debug("joining result handler")
        stop_if_not_current(pool._result_handler)
        debug("result handler joined")
        for worker in pool._pool:
            if worker._popen is not None:
                worker.join()
        debug("pool join complete")
        return True

    def finalizer(self) -> Callable[..., object]:
        pool = self.pool
        terminate = type(pool)._terminate_pool
        args = (
            pool._taskqueue,
            pool._inqueue,
            pool._outqueue,
            pool._pool,
            pool._worker_handler,
            pool._task_handler,
            pool._result_handler,
            pool._cache,
            pool._timeout_handler,
            pool._help_stuff_finish_args(),
        )
        return lambda: terminate(*args)


def terminate_passively(
    cls: Any,
    taskqueue: Any,
    inqueue: Any,
    outqueue: Any,
    workers: list[Any],
    worker_handler: Any,
    task_handler: Any,
    result_handler: Any,
    timeout_handler: Any,
    help_stuff_finish_args: tuple[Any, ...],
) -> None:
    """Terminate a pool whose handlers are not threads; ``cls`` has the hooks (see ``Pool``)."""
    debug("finalizing pool")
    worker_handler.terminate()
    task_handler.terminate()
    taskqueue.put(None)
    cls._help_stuff_finish(*help_stuff_finish_args)
    # The result handler is not terminated: results that are in the queue are still delivered.
    cls._set_result_sentinel(outqueue, workers)
    if timeout_handler is not None:
        timeout_handler.terminate()
    # After this no worker is added that the next loop would not see.
    stop_if_not_current(worker_handler)
    debug("terminating workers")
    for worker in workers:
        if worker._is_alive():
            worker.terminate()
    cls._stop_task_handler(task_handler)
    debug("joining result handler")
    result_handler.stop()
    if timeout_handler is not None:
        timeout_handler.stop()
    debug("joining pool workers")
    for worker in workers:
        if worker._popen is not None:
            worker.join()
    for queue in (inqueue, outqueue):
        if queue:
            queue.close()
