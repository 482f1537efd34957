"""The pool: workers, their replacement, the handlers, the end. Jobs are taken in ``submit.py``."""

from __future__ import annotations

import errno
import os
from _queue import SimpleQueue
from _warnings import warn
from time import monotonic
from weakref import WeakMethod

from .. import cpu_count, get_context
from .._cpus import usable_cpus
from ..common import TERM_NUMBER, human_status, restart_state
from ..exceptions import (
    RestartFreqExceeded,
    SoftTimeLimitExceeded,
    Terminated,
    WorkerLostError,
)
from ..util import Finalize
from . import checks, handlers
from . import worker as worker_side
from .causes import Causes
from .constants import (
    CLOSE,
    EX_OK,
    EX_RECYCLE,
    LOST_WORKER_TIMEOUT,
    RUN,
    SIGKILL,
    TERMINATE,
)
from .drive import Drive, PassiveDrive
from .failures import captured
from .hooks import Hooks
from .log import debug
from .semaphore import LaxBoundedSemaphore
from .submit import Submitting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, NoReturn


#: Seconds for workers to end after SIGTERM, if their pool cannot be made.
ABORT_GRACE = 1.0


class _Weakly:
    """Calls a method as long as its object lives: for threads that must not keep it alive."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = WeakMethod(method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        method = self._method()
        return method(*args, **kwargs) if method is not None else None


class Pool(Hooks, Submitting):
    """A pool of worker processes.

    :param processes: number of workers; 0 for none yet. By default that of the CPUs which this
        process may really use: those of the machine, as far as its CPU affinity and the quotas of
        its control groups (version 1 or 2) allow.
    :param initializer: called with ``initargs`` in every worker before its first task. If no
        worker comes through it, its exception is that of every job.
    :param maxtasksperchild: tasks after which a worker is replaced.
    :param timeout: seconds that a task may take; then its worker is ended.
    :param soft_timeout: seconds after which SoftTimeLimitExceeded is raised in a task.
    :param lost_worker_timeout: see :meth:`apply_async`.
    :param max_restarts: workers that may fail within ``max_restart_freq`` seconds without having
        begun a task; then the pool closes and the program is sent the terminating signal.
    :param on_process_up: called with a worker (its process object) that has been started.
    :param on_process_down: called with a worker that has ended.
    :param on_timeout_set: called with a job and its limits when it begins.
    :param on_timeout_cancel: called with a job when it is done.
    :param threads: whether the pool works by itself. False is for event loops that call
        ``handle_result_event`` and :meth:`maintain_pool`: see Celery's ``AsynPool``.
    :param semaphore: bounds the jobs under way, for callers that wait for a slot.
    :param putlocks: whether callers of :meth:`apply_async` wait for a slot.
    :param allow_restart: whether :meth:`restart` can be used.
    :param synack: whether workers ask for leave before each task (subclasses' event loops).
    :param on_process_exit: called in a worker that exits, with its pid and exit status.
    :param context: a start method's context, by default the program's.
    :param max_memory_per_child: KiB of memory above which a worker is replaced after a task.
    :param enable_timeouts: make the timeout handler, whether or not there are limits.

    A pool is closed (:meth:`close`, then :meth:`join`) or terminated; leaving a ``with`` block
    terminates it. It belongs to the process that made it. Origin: multiprocessing and billiard.
    """

    __module__ = "billiard.pool"

    _wrap_exception = True
    Worker = worker_side.Worker
    Supervisor = handlers.Supervisor
    TaskHandler = handlers.TaskHandler
    TimeoutHandler = handlers.TimeoutHandler
    ResultHandler = handlers.ResultHandler
    SoftTimeLimitExceeded = SoftTimeLimitExceeded

    _state = TERMINATE  # until there is something to terminate
    #: ends the spare interpreters of a pool that has replaced workers
    _give_up_spares: Callable[[], object] | None = None
    # The drive's, or a subclass's: see _setup_queues.
    _inqueue: Any
    _outqueue: Any
    _quick_get: Any
    _quick_put: Any
    _poll_result: Any

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        maxtasksperchild: int | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        max_restarts: int | None = None,
        max_restart_freq: float | None = 1,
        on_process_up: Callable[[Any], object] | None = None,
        on_process_down: Callable[[Any], object] | None = None,
        on_timeout_set: Callable[..., object] | None = None,
        on_timeout_cancel: Callable[..., object] | None = None,
        threads: bool = True,
        semaphore: Any = None,
        putlocks: bool = False,
        allow_restart: bool = False,
        synack: bool = False,
        on_process_exit: Callable[[int, int], object] | None = None,
        context: Any = None,
        max_memory_per_child: float | None = None,
        enable_timeouts: bool = False,
        **kwargs: Any,
    ) -> None:
        processes = checks.count("processes", processes)
        self._maxtasksperchild = checks.maxtasks(maxtasksperchild)
        self.timeout = checks.amount("timeout", timeout)
        self.soft_timeout = checks.amount("soft_timeout", soft_timeout)
        self.lost_worker_timeout = (
            checks.amount("lost_worker_timeout", lost_worker_timeout) or LOST_WORKER_TIMEOUT
        )
        self._max_memory_per_child = checks.amount("max_memory_per_child", max_memory_per_child)
        max_restarts = checks.count("max_restarts", max_restarts)
        freq = checks.amount("max_restart_freq", max_restart_freq) or 1
        self._initializer = checks.function("initializer", initializer)
        self._initargs = tuple(initargs)
        self._on_process_exit = checks.function("on_process_exit", on_process_exit)

        self._ctx = context or get_context()
        self._Process = self._ctx.Process
        self._owner = os.getpid()
        self._processes = self.cpu_count() if processes is None else processes
        self.max_restarts = max_restarts or round(self._processes * 100)
        self.restart_state = restart_state(max_restarts, freq)
        self.on_process_up = on_process_up
        self.on_process_down = on_process_down
        self.on_timeout_set = on_timeout_set
        self.on_timeout_cancel = on_timeout_cancel
        self.threads = threads
        self.putlocks = putlocks
        self.allow_restart = allow_restart
        self.synack = synack
        self.readers: dict[Any, Any] = {}
        self.enable_timeouts = bool(
            enable_timeouts or self.timeout is not None or self.soft_timeout is not None
        )
        self.check_timeouts: Callable[..., object] | None = None

        self._cache: dict[int, Any] = {}
        self._pool: list[Any] = []
        self._poolctrl: dict[int | None, Any] = {}
        self._on_ready_counters: dict[int | None, Any] = {}
        self._putlock = semaphore or LaxBoundedSemaphore(self._processes)
        self._taskqueue: Any = SimpleQueue()
        self._causes = Causes()
        self._drive = self._make_drive()
        self._setup_queues()
        self._direct = self._can_be_direct()
        self._state = RUN
        try:
            # Before the forks: after one, what is touched has to be copied first.
            self._make_handlers()
            self._create_worker_processes(range(self._processes))
            self._drive.start()
        except BaseException:
            self._abort()
            raise
        self._terminate = Finalize(self, self._drive.finalizer(), exitpriority=15)

    def _make_drive(self) -> Drive:
        if not self.threads:
            return PassiveDrive(self)
        from .native import NativeDrive

        return NativeDrive(self)

    def _can_be_direct(self) -> bool:
        """Whether jobs without callbacks and limits may pass by the book: no hook sees them."""
        return (
            self._drive.is_native
            and not self.putlocks
            and type(self).on_job_ready is Pool.on_job_ready
            and self.on_timeout_set is None
            and self.on_timeout_cancel is None
            and not self.timeout
            and not self.soft_timeout
        )

    def _make_handlers(self) -> None:
        self._worker_handler = self.Supervisor(self)
        self._task_handler = self.TaskHandler(
            self._taskqueue, self._quick_put, self._outqueue, self._pool, self._cache
        )
        self._timeout_handler = None
        if self.threads or self.enable_timeouts:
            self._timeout_handler = self.TimeoutHandler(
                self._pool, self._cache, self.soft_timeout, self.timeout
            )
            if not self.threads:
                # Shutting down waits for jobs, which may be over their limits.
                self.check_timeouts = self._timeout_handler.handle_event
        self._result_handler = self.create_result_handler()
        self.handle_result_event = self._result_handler.handle_event  # type: ignore[method-assign]

    def _abort(self) -> None:
        """The pool could not be made: leave no worker behind."""
        self._state = TERMINATE
        with self._drive.maintenance:
            started = [w for w in self._pool if getattr(w, "_popen", w) is not None]
            for worker in started:
                worker.terminate()
            for worker in started:
                if hasattr(worker, "_popen"):
                    worker.join(ABORT_GRACE)
                    worker._popen._send_signal(SIGKILL)  # nothing, if it has ended
                worker.join()
            self._drive.abort()

    def create_result_handler(self, **extra_kwargs: Any) -> handlers.ResultHandler:
        """Make the result handler; subclasses add arguments of their own."""
        join_exited_workers: Any = self._join_exited_workers
        notify: Any = self.on_job_ready
        if self.threads:
            overridden = type(self).on_job_ready is not Pool.on_job_ready
            notify = _Weakly(notify) if overridden else None
            join_exited_workers = _Weakly(join_exited_workers)
        return self.ResultHandler(
            self._outqueue,
            self._quick_get,
            self._cache,
            self._poll_result,
            join_exited_workers,
            self._putlock,
            self.restart_state,
            self.check_timeouts,
            notify,
            on_ready_counters=self._on_ready_counters,
            **extra_kwargs,
        )

    def __repr__(self) -> str:
        state = ("RUN", "CLOSE", "TERMINATE")[self._state]
        return f"<{type(self).__name__} state={state} pool_size={len(self._pool)}>"

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.terminate()

    def __del__(
        self, _warn: Callable[..., None] = warn, _getpid: Callable[[], int] = os.getpid
    ) -> None:
        # Bound early: at interpreter exit modules may be gone.
        if self._state == RUN and self._owner == _getpid():
            _warn(f"unclosed running billiard pool {self!r}", ResourceWarning, source=self)

    def _check_running(self) -> None:
        super()._check_running()
        self._check_owner()

    def _check_owner(self) -> None:
        if self._owner != os.getpid() and self.threads:
            raise RuntimeError("a pool can only be used by the process that made it")

    # ---- what it is made of; subclasses have their own (see hooks.py as well) ----

    def Process(self, *args: Any, **kwds: Any) -> Any:
        """Make a process object."""
        return self._Process(*args, **kwds)

    def WorkerProcess(self, worker: worker_side.Worker) -> Any:
        """Make the process object of a worker."""
        return worker.contribute_to_object(self.Process(target=worker))

    def cpu_count(self) -> int:
        """How many workers there are by default: one for each CPU that this process may use."""
        try:
            return usable_cpus(cpu_count())
        except NotImplementedError:
            return 1

    def _setup_queues(self) -> None:
        self._drive.open()

    def get_process_queues(self) -> tuple[Any, Any, Any]:
        """``(inq, outq, synq)`` of the next worker."""
        return self._drive.queues()

    def handle_result_event(self, *args: Any) -> None:
        """A result can be read (passive drive). Each pool has its handler's method here."""
        self._result_handler.handle_event(*args)

    # ---- workers ----

    def _process_by_pid(self, pid: int) -> tuple[Any, int | None]:
        for i, worker in enumerate(self._pool):
            if worker.pid == pid:
                return worker, i
        return None, None

    @property
    def process_sentinels(self) -> list[int]:
        """Descriptors that become readable when workers exit."""
        return [worker._popen.sentinel for worker in self._pool]

    def _create_worker_processes(self, indices: Iterable[int]) -> None:
        overridden = type(self)._create_worker_process is not Pool._create_worker_process
        if overridden or not self._drive.launches_together:
            for i in indices:
                self._create_worker_process(i)
            return
        made: list[tuple[Any, Any, Any]] = []
        try:
            for i in indices:
                made.append(self._make_worker(i))
        finally:
            # If there is nothing to make the next one of, these are started all the same.
            try:
                if made:
                    self._drive.launch_all([worker for worker, *_ in made])
            finally:
                for worker in made:
                    if worker[0] in self._pool:
                        self._worker_is_up(*worker)

    def _create_worker_process(self, i: int) -> Any:
        worker, sentinel, on_ready_counter = self._make_worker(i)
        self._drive.launch(worker)
        self._worker_is_up(worker, sentinel, on_ready_counter)
        return worker

    def _make_worker(self, i: int) -> tuple[Any, Any, Any]:
        """Make the process object of a worker, its sentinel and its counter; it is not started."""
        sentinel = self._ctx.Event() if self.allow_restart else None
        inq, outq, synq = self.get_process_queues()
        on_ready_counter = self._drive.ready_counter(self._ctx, inq)
        worker = self.WorkerProcess(
            self.Worker(
                inq,
                outq,
                synq,
                self._initializer,
                self._initargs,
                self._maxtasksperchild,
                sentinel,
                self._on_process_exit,
                # A worker that waits for locks which others share must let them go in any case.
                sigprotection=self.threads,
                wrap_exception=self._wrap_exception,
                max_memory_per_child=self._max_memory_per_child,
                on_ready_counter=on_ready_counter,
            )
        )
        self._pool.append(worker)
        self._process_register_queues(worker, (inq, outq, synq))
        worker.name = worker.name.replace("Process", "PoolWorker")
        worker.daemon = True
        worker.index = i
        return worker, sentinel, on_ready_counter

    def _worker_is_up(self, worker: Any, sentinel: Any, on_ready_counter: Any) -> None:
        pid = getattr(worker, "pid", None)
        self._poolctrl[pid] = sentinel
        self._on_ready_counters[pid] = on_ready_counter
        if self.on_process_up:
            self.on_process_up(worker)

    def _forget_worker(self, worker: Any) -> None:
        """A worker has been reaped."""
        self._poolctrl.pop(worker.pid, None)
        self._on_ready_counters.pop(worker.pid, None)
        self._result_handler.on_worker_exit(worker.pid)

    def _join_exited_workers(self, shutdown: bool = False) -> list[int | None]:
        """Reap workers that have exited, see to their jobs; returns their exit statuses."""
        return self._drive.reap(shutdown)

    def _task_lost(self, job: Any, i: int | None, worker: Any, exitcode: int | None) -> None:
        """A worker has died in the middle of a task (drives that know which)."""
        self.on_job_process_down(job, worker.pid)
        if job.ready():
            return
        if self._putlock is not None:
            self._putlock.release()
        if getattr(worker, "_job_terminated", False):
            job._set(i, (False, captured(Terminated(-(exitcode or 0)))))
        else:
            self.mark_as_worker_lost(job, exitcode, i, worker)

    def mark_as_worker_lost(
        self, job: Any, exitcode: int | None, i: int | None = None, worker: Any = None
    ) -> None:
        """Fail a job (its task ``i``) with WorkerLostError."""
        message = f"Worker exited prematurely: {human_status(exitcode)} Job: {job._job}."
        if worker is not None:
            message = f"{message} pid {worker.pid}: {self._causes.explain(exitcode)}."
        job._set(i, (False, captured(WorkerLostError(message))))

    def _iterinactive(self) -> Iterator[Any]:
        for worker in self._pool:
            if not self._worker_active(worker):
                yield worker

    def _worker_active(self, worker: Any) -> bool:
        return self._drive.is_busy(worker)

    def _avail_index(self) -> int:
        free = next(self._avail_indices(), None)
        assert free is not None
        return free

    def _avail_indices(self) -> Iterator[int]:
        taken = {worker.index for worker in self._staying()}
        return (i for i in range(self._processes) if i not in taken)

    def _staying(self) -> list[Any]:
        """The workers that are not about to exit."""
        return [worker for worker in self._pool if not self._drive.is_leaving(worker)]

    def _repopulate_pool(self, exitcodes: Sequence[int | None] = ()) -> None:
        """Start workers until there are as many as there should be."""
        # Whoever calls it, the supervisor may be at the same.
        with self._drive.maintenance:
            self._fill_up(exitcodes)

    def _fill_up(self, exitcodes: Sequence[int | None]) -> None:
        if self._maxtasksperchild and EX_RECYCLE in exitcodes:
            self._keep_spares()
        free, wanted = self._avail_indices(), []
        try:
            for i in range(self._processes - len(self._staying())):
                if not self._drive.wants_workers():
                    break
                if i < len(exitcodes) and exitcodes[i] not in (EX_OK, EX_RECYCLE):
                    self.restart_state.step()
                wanted.append(next(free))
        finally:
            # Together: forks that follow each other at once have less to copy.
            if wanted:
                self._create_worker_processes(wanted)
                debug("added %d workers", len(wanted))

    def _keep_spares(self) -> None:
        """Workers are being replaced: have interpreters ready for the next ones."""
        if self._give_up_spares is None and self._ctx.get_start_method() == "spawn":
            from .._spares import keep_for

            count = min(self._processes, self.cpu_count())
            self._give_up_spares = keep_for(self, count)
            if self._state == TERMINATE:
                self._give_up_spares()

    def _maintain_pool(self) -> None:
        """Replace the workers that have exited."""
        with self._drive.maintenance:
            joined = self._join_exited_workers()
            self._repopulate_pool(joined)
        if not self.threads and self._putlock is not None:
            for _ in joined:
                self._putlock.release()

    def maintain_pool(self) -> None:
        """Replace the workers that have exited (pools with threads do it themselves).

        :raises RestartFreqExceeded: there were too many; the pool is closed.
        :raises MemoryError: there is no memory for a new process.
        """
        if self._worker_handler._state == RUN and self._state == RUN:
            try:
                self._maintain_pool()
            except RestartFreqExceeded as exc:
                self._drive.fail(captured(exc))
                self.close()
                self.join()
                raise
            except OSError as exc:
                if exc.errno == errno.ENOMEM:
                    raise MemoryError from exc
                raise

    def did_start_ok(self) -> bool:
        """Whether no worker has exited since the last look."""
        return not self._join_exited_workers()

    def grow(self, n: int = 1) -> None:
        """Have ``n`` workers more."""
        n = checks.count("n", n)
        self._processes += n
        for _ in range(n):
            if self._putlock:
                self._putlock.grow()
        self.on_grow(n)
        self._drive.change()

    def shrink(self, n: int = 1) -> None:
        """Have ``n`` workers less: idle ones are ended.

        :raises ValueError: there are not so many that are idle; those that were are ended.
        """
        n = checks.count("n", n)
        # The supervisor must not count the workers while there are to be less of them.
        with self._drive.maintenance:
            for worker in list(self._iterinactive()) if n else ():
                if not self._drive.retire(worker):
                    continue
                self._processes -= 1
                if self._putlock:
                    self._putlock.shrink()
                worker.terminate_controlled()
                self.on_shrink(1)
                n -= 1
                if not n:
                    return
        if n:
            raise ValueError("Can't shrink pool. All processes busy!")

    def restart(self) -> None:
        """Replace all workers, each when it is done with its task.

        :raises ValueError: the pool was made without ``allow_restart``.
        """
        if not self.allow_restart:
            raise ValueError("restart() needs a pool made with allow_restart=True")
        for sentinel in list(self._poolctrl.values()):
            sentinel.set()
        self._drive.recall()

    def terminate_job(self, pid: int, sig: int | None = None) -> None:
        """Send the worker ``pid`` a signal, by default the terminating one.

        If it dies of it, its job fails with Terminated.
        """
        worker, _ = self._process_by_pid(pid)
        if worker is not None:
            # Whatever the signal does, it does not do it to the next task.
            self._drive.condemn(worker)
            before = worker._controlled_termination, getattr(worker, "_job_terminated", False)
            # First: it may be reaped in an instant.
            worker._controlled_termination = worker._job_terminated = True
            try:
                handlers.send_signal(pid, sig or TERM_NUMBER)
            except OSError as exc:
                worker._controlled_termination, worker._job_terminated = before
                if exc.errno != errno.ESRCH:
                    raise

    # ---- the end ----

    def close(self) -> None:
        """Take no more jobs. Workers exit when those that there are are done."""
        debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            if self._putlock:
                self._putlock.clear()
            self._worker_handler.close()
            self._drive.close()

    def terminate(self) -> None:
        """End all workers at once. Jobs that a worker had begun fail with WorkerLostError; of the
        others only those who wait for them are told (Terminated), no callbacks."""
        debug("terminating pool")
        self._state = TERMINATE
        if self._putlock:
            self._putlock.clear()
        self._worker_handler.terminate()
        if self._give_up_spares is not None:
            self._give_up_spares()
        self._terminate()
        if not self._drive.has_told_all and isinstance(self._terminate, Finalize):
            # It works once, and the first time a signal's handler has raised.
            self._drive.finalizer()()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all workers have exited, after :meth:`close` or :meth:`terminate`.

        :param timeout: seconds to wait at most (pools with threads).
        :returns: whether they have.
        :raises ValueError: the pool has not been closed.

        Origin: multiprocessing; the timeout is ours.
        """
        if self._state == RUN:
            raise ValueError("Pool is still running")
        ended = self._drive.join(checks.patience(timeout))
        if ended and self._give_up_spares is not None:
            self._give_up_spares()
        return ended

    def drain(self, timeout: float | None = None) -> list[Any]:
        """Close the pool and wait for its jobs; then cancel those that are not done.

        Workers that have not exited when the time is over, and a moment later, are ended.

        :param timeout: seconds to wait; None: until all are done.
        :returns: the results of the jobs that did not finish. They raise Terminated.
        :raises ValueError: the pool has no threads: its event loop drains it.
        :raises RuntimeError: in a callback, whose job would have to be waited for.

        Ours.
        """
        if not self._drive.is_native:
            raise ValueError("only pools of processes with threads=True can be drained")
        timeout = checks.patience(checks.amount("timeout", timeout))
        deadline = None if timeout is None else monotonic() + timeout
        self.close()
        self._drive.wait_until_idle(timeout)
        unfinished = self._drive.cancel_all()  # type: ignore[attr-defined]
        if deadline is not None:
            # Some may be stuck without a task that could have been cancelled.
            self._drive.end_stragglers(deadline)  # type: ignore[attr-defined]
        return unfinished  # type: ignore[no-any-return]
