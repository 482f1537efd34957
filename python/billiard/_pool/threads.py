"""The threads drive: ``threads=True``, the handlers as threads over an exchange.

```
 any thread ──submit──► Exchange ◄──► workers            TimeoutHandler: Limits.run
     │ sequences           ▲  │ messages                     ▲ task accepted
     ▼                     │  ▼                              │
 TaskHandler ──────────────┘ ResultHandler ──────────────────┘
                                │ OVER, UP, UNFIT
                                ▼
                             Supervisor: reaps, replaces, ends the pool
```

The end of a pool, the same for both ways: the supervisor sees that no worker is left and none is
wanted, lets those go who still wait, stops the other threads, and ends. ``close`` leads there when
all tasks are done (``Exchange.drained``), ``terminate`` by ending the workers.

The threads keep this alive, and this keeps no pool alive.
"""

from __future__ import annotations

import threading
from _queue import Empty, SimpleQueue
from time import monotonic
from weakref import ref

from .. import util
from ..common import human_status
from ..einfo import ExceptionInfo
from ..exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from ..process import start_all
from .channel import Channel, Task
from .constants import EX_OK, EX_RECYCLE, SIG_SOFT_TIMEOUT, SIGCONT, SIGKILL, SIGTERM, UNFIT, UP
from .drive import Drive
from .exchange import OVER, Exchange
from .handlers import KILL_AFTER, Refused, end_worker, kill_if_there
from .log import debug, error
from .results import captured
from .submissions import Submissions
from .wire import ResultPipe, TaskPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

#: seconds between SIGTERM and SIGKILL when the pool is terminated: tasks may have to clean up
TERMINATE_GRACE = 10.0
#: Seconds that ``terminate`` waits for a thread. Only one that is held up by what a signal handler
#: has interrupted, or by an iterable of the user's, takes longer than an instant.
THREAD_GRACE = 5.0
#: how many workers in a row may fail to become ready, once one has
STILLBORN_LIMIT = 3
#: How many in a row somebody else may kill before they are ready, when none has ever been: perhaps
#: it is the initializer after all, by way of the system's memory.
SLAIN_LIMIT = 100
#: seconds until the system is asked again for what it had not
RETRY_AFTER = 0.2


class Side:
    """One side of the exchange, under the names of the queue that other drives have there.

    ``Pool._inqueue`` and ``Pool._outqueue``.
    """

    _reader = _writer = _rlock = _wlock = None

    def __init__(self, put: Callable[[Any], object], empty: Callable[[], bool]) -> None:
        self.put = put
        self.empty = empty

    def close(self) -> None:
        """Nothing to close: the exchange closes its channels."""


class Limits:
    """Enforces the limits of the tasks that workers have. Process-local; one thread runs it.

    ``_next`` is when the thread will look again. It is infinite while the thread looks, so that
    whoever sets a limit meanwhile pokes it: nothing is overlooked.
    """

    def __init__(
        self, exchange: Exchange, cache: dict[int, Any], putlock: Any, handler: Any
    ) -> None:
        self.exchange = exchange
        self.cache = cache
        self.putlock = putlock
        self.handler = handler
        self._next = float("inf")
        self._pokes: SimpleQueue[bool] = SimpleQueue()

    def begun(self, task: Task) -> None:
        """A task with a limit has been accepted."""
        assert task.accepted is not None
        due = task.accepted + min(filter(None, (task.soft, task.hard)))
        if not self.handler._was_started:
            if not self.exchange.terminated:
                self.handler.start()
        elif due < self._next:
            self._pokes.put(True)

    def stop(self) -> None:
        """End the thread."""
        self._pokes.put(False)

    def run(self) -> None:
        """The thread."""
        while True:
            self._next = float("inf")
            self._next = due = self._enforce(monotonic())
            try:
                wait = None if due == float("inf") else max(0.0, due - monotonic())
                if not self._pokes.get(timeout=wait):
                    return
            except Empty:
                pass

    def _enforce(self, now: float) -> float:
        """Enforce what is due; returns when the next is."""
        due = float("inf")
        for channel in list(self.exchange.channels.values()):
            due = min(due, self._enforce_on(channel, now))
        return due

    def _enforce_on(self, channel: Channel, now: float) -> float:
        task = channel.limited
        if task is None or task.accepted is None or task.condemned:
            return float("inf")
        if task.hard and now >= task.accepted + task.hard:
            return self._end(channel, task, now)
        if task.soft and not task.warned:
            if now < task.accepted + task.soft:
                return task.accepted + task.soft
            self._warn(channel, task)
        return task.accepted + task.hard if task.hard else float("inf")

    def _warn(self, channel: Channel, task: Task) -> None:
        debug("soft time limit exceeded for task %s of job %s", task.i, task.job)
        task.warned = True
        tell = getattr(self.cache.get(task.job), "handle_timeout", None)
        if tell is not None:
            tell(soft=True)
        # With the lock the worker has this task and no other, even if it is done with it.
        with channel.lock:
            if channel.limited is task:
                assert SIG_SOFT_TIMEOUT is not None
                kill_if_there(channel.pid, SIG_SOFT_TIMEOUT)

    def _end(self, channel: Channel, task: Task, now: float) -> float:
        debug("hard time limit exceeded for task %s of job %s", task.i, task.job)
        with channel.lock:
            if channel.limited is not task:
                return float("inf")
            task.condemned = channel.retired = True
        job = self.cache.get(task.job)
        if job is not None and not job.ready():
            if self.putlock is not None:
                self.putlock.release()
            job._set(task.i, (False, captured(TimeLimitExceeded(task.hard))))
            if hasattr(job, "handle_timeout"):
                job.handle_timeout(soft=False)
        end_worker(channel.worker, SIGTERM)
        channel.kill_at = now + KILL_AFTER
        self.exchange.on_change()
        return float("inf")


class ThreadsDrive(Drive):
    """See the top of this file."""

    def __init__(self, pool: Any) -> None:
        self._pool = ref(pool)
        self._context = pool._ctx
        self.workers: list[Any] = pool._pool
        self.cache: dict[int, Any] = pool._cache
        self._default_limits = (pool.soft_timeout or 0, pool.timeout or 0)
        self._lifetime: int = pool._maxtasksperchild or 0
        self._changes: SimpleQueue[None] = SimpleQueue()
        self.maintenance = threading.RLock()
        #: workers that ended before they were ready, since the last that was
        self._stillborn = 0
        #: as many were killed, by whom we do not know
        self._slain = 0
        self._why_stillborn: ExceptionInfo | None = None
        self._ever_up = False
        #: workers from before there were threads; None since then
        self._early: list[Any] | None = []
        #: when to kill all workers that are left, monotonic seconds
        self._kill_all_at: float | None = None
        #: when to try again what the system would not do
        self._retry_at: float | None = None

    # ---- the pool's life ----

    def open(self) -> None:
        pool = self._pool()
        assert pool is not None
        exchange = self.exchange = Exchange(self._limits_of)
        util.register_after_fork(exchange, Exchange.abandon)
        exchange.on_change = self.change
        self.submissions = pool._taskqueue = Submissions()
        pool._inqueue = Side(exchange.put, lambda: not exchange.waiting)
        pool._outqueue = Side(self._no_more_tasks, lambda: not exchange.inbox)
        pool._quick_put = self._feed
        pool._quick_get = exchange.inbox.popleft
        pool._poll_result = exchange.poll

    def start(self) -> None:
        pool = self._pool()
        assert pool is not None
        tasks, supervisor = pool._task_handler, pool._worker_handler
        timeouts, results = pool._timeout_handler, pool._result_handler
        self.handlers = (tasks, supervisor, timeouts, results)
        limits = Limits(self.exchange, self.cache, pool._putlock, timeouts)
        timeouts.watch, timeouts.poke = limits.run, limits.stop
        self.exchange.on_limit = limits.begun
        results.patience, results.on_end = None, self._end
        results.state_handlers.update({UP: self._on_up, UNFIT: self._on_unfit, OVER: self._on_over})
        early, self._early = self._early or [], None
        for worker in early:
            self.exchange.attach(Channel(worker, self._lifetime))
        for handler in self.handlers:
            handler.on_crash = self._crashed
        for handler in (results, supervisor, tasks):
            handler.start()

    def _crashed(self, exc: Exception) -> None:
        """A thread of ours has failed: that must not happen, and nobody shall wait for it."""
        info = ExceptionInfo((type(exc), exc, exc.__traceback__), internal=True)
        self.exchange.terminated = True
        self.exchange.break_down(info)
        self._end_workers()
        for job in list(self.cache.values()):
            job._abandon(info)

    def _no_more_tasks(self, sentinel: None) -> None:
        self.exchange.closed = True
        self.exchange.wake()
        self.change()

    def close(self) -> None:
        self.submissions.put(None)

    def join(self) -> None:
        if threading.current_thread() in self.handlers:
            raise RuntimeError("a pool cannot be joined by one of its own threads")
        for handler in self.handlers:
            if handler._was_started:
                handler.stop()

    def finalizer(self) -> Callable[..., object]:
        return self._terminate

    def _terminate(self) -> None:
        """End everything at once. Once, in any thread, perhaps in a signal handler."""
        debug("terminating pool")
        exchange = self.exchange
        tasks, supervisor, _, _ = self.handlers
        exchange.terminated = True
        tasks.terminate()
        supervisor.terminate()
        exchange.waiting.clear()
        exchange.release_feeder()
        self.submissions.put(None)
        self._kill_all_at = monotonic() + TERMINATE_GRACE
        self._end_workers()
        self.change()
        if threading.current_thread() not in self.handlers:
            # The supervisor ends with the last worker, the others then.
            supervisor.stop(TERMINATE_GRACE + THREAD_GRACE)
            for handler in self.handlers:
                if handler._was_started:
                    handler.stop(THREAD_GRACE)

    def _end_workers(self) -> None:
        for channel in list(self.exchange.channels.values()):
            channel.retired = True
            if not (channel.dismissed or channel.over):
                channel.dismissed = True
                channel.worker.terminate_controlled()
                # One that has been stopped would see the end no sooner than SIGKILL.
                channel.worker._popen._send_signal(SIGCONT)

    def _end(self) -> None:
        """The last of the result handler."""
        info = captured(Terminated("the pool has been terminated"))
        for job in list(self.cache.values()):
            job._abandon(info)
        self.exchange.close()

    # ---- tasks ----

    def _limits_of(self, number: int) -> tuple[float, float]:
        job = self.cache.get(number)
        soft, hard = self._default_limits
        return getattr(job, "_soft_timeout", None) or soft, getattr(job, "_timeout", None) or hard

    def submit_one(self, task: Any) -> None:
        if self.submissions.busy():
            self.submissions.put(((task,), None))
        else:
            self.exchange.put(task)

    def _feed(self, task: Any) -> None:
        """What the task handler does with each task of a sequence."""
        if task is not None:
            self.exchange.pause_feeder()
            if self.exchange.broken is not None:
                # One answer is enough, and a sequence may be endless.
                raise Refused(self.exchange.broken)
            self.exchange.put(task)

    # ---- workers ----

    def queues(self) -> tuple[Any, Any, Any]:
        return TaskPipe(self._context), ResultPipe(rnonblock=True), None

    def launch(self, worker: Any) -> None:
        pipes = worker.inq, worker.outq
        self.exchange.lend(*pipes)
        try:
            worker.start()
        except BaseException:
            self.workers.remove(worker)
            self.exchange.drop(*pipes)
            raise
        self.exchange.take_over(*pipes)
        if self._early is None:
            self.exchange.attach(Channel(worker, self._lifetime))
        else:
            self._early.append(worker)

    @property
    def launches_together(self) -> bool:  # type: ignore[override]
        # A forked worker would have the pipes of those that are made but not started yet; and a
        # drive that launches in its own way launches each.
        together: bool = self._context.get_start_method() == "forkserver"
        return together and type(self).launch is ThreadsDrive.launch

    def launch_all(self, workers: Sequence[Any]) -> None:
        exchange = self.exchange
        for worker in workers:
            exchange.lend(worker.inq, worker.outq)
        try:
            start_all(workers)
        finally:
            for worker in workers:
                if worker._popen is None:
                    self.workers.remove(worker)
                    exchange.drop(worker.inq, worker.outq)
                    continue
                exchange.take_over(worker.inq, worker.outq)
                if self._early is None:
                    exchange.attach(Channel(worker, self._lifetime))
                else:
                    self._early.append(worker)

    def abort(self) -> None:
        self.exchange.abandon()

    def wants_workers(self) -> bool:
        exchange = self.exchange
        if exchange.terminated or exchange.drained or exchange.broken is not None:
            return False
        if exchange.closed and not exchange.waiting:
            return False
        if self._ever_up:
            return self._stillborn <= STILLBORN_LIMIT
        return not self._stillborn and self._slain <= SLAIN_LIMIT

    def _channel(self, worker: Any) -> Channel | None:
        return self.exchange.channels.get(worker.pid)

    def is_busy(self, worker: Any) -> bool:
        channel = self._channel(worker)
        return channel is not None and bool(channel.tasks)

    def retire(self, worker: Any) -> bool:
        channel = self._channel(worker)
        if channel is None or channel.retired:
            return False
        if channel.up:
            try:
                self.exchange.idle.remove(channel)
            except ValueError:
                return False
        channel.retired = True
        return True

    def recall(self) -> None:
        for channel in list(self.exchange.channels.values()):
            if self.retire(channel.worker) and channel.up:
                self.exchange.dismiss(channel)
            channel.retired = True

    def _on_up(self, pid: int) -> None:
        channel = self.exchange.channels.get(pid)
        if channel is not None:
            self._ever_up = channel.up = True
            self._stillborn = self._slain = 0
            if channel.retired or self.exchange.drained:
                self.exchange.dismiss(channel)
            else:
                self.exchange.make_available(channel)

    def _on_unfit(self, pid: int, info: ExceptionInfo) -> None:
        channel = self.exchange.channels.get(pid)
        if channel is not None:
            channel.unfit = info

    def _on_over(self, channel: Channel) -> None:
        channel.over = True
        self.change()

    # ---- the supervisor's part ----

    def change(self) -> None:
        """There is something for the supervisor to do."""
        self._changes.put(None)

    def later(self) -> None:
        """The system would not start a worker now."""
        self._retry_at = monotonic() + RETRY_AFTER

    def wait_for_change(self) -> bool:
        """Wait until there is something to do; false when there will never be."""
        if not self.workers and (self.exchange.terminated or self.exchange.drained):
            self.handlers[2].terminate()
            self.exchange.deliver(None)
            return False
        try:
            self._changes.get(timeout=self._patience())
            while not self._changes.empty():
                self._changes.get()
        except Empty:
            self._retry_at = None
        self._kill_the_late()
        return True

    def _patience(self) -> float | None:
        """Seconds until there is something to do by itself."""
        times = [self._kill_all_at, self._retry_at]
        times += [c.kill_at for c in list(self.exchange.channels.values()) if not c.over]
        due = [at for at in times if at is not None]
        return max(0.0, min(due) - monotonic()) if due else None

    def _kill_the_late(self) -> None:
        now = monotonic()
        everybody = self._kill_all_at is not None and now >= self._kill_all_at
        if everybody:
            self._kill_all_at = None
        for channel in list(self.exchange.channels.values()):
            late = channel.kill_at is not None and now >= channel.kill_at
            if (late or everybody) and not channel.over:
                channel.kill_at = None
                end_worker(channel.worker, SIGKILL)

    def reap(self, shutdown: bool = False) -> list[int | None]:
        exchange = self.exchange
        exitcodes: list[int | None] = []
        with self.maintenance:
            for channel in list(exchange.channels.values()):
                if channel.over and (exchange.terminated or not channel.giving):
                    exitcodes.append(self._reap(channel))
            if exchange.terminated:
                # One may have been on its way when the others were told.
                self._end_workers()
            elif not self.workers:
                self._without_workers()
        return exitcodes

    def _reap(self, channel: Channel) -> int | None:
        worker, pool = channel.worker, self._pool()
        worker.join()
        exitcode: int | None = worker.exitcode
        self.workers.remove(worker)
        expected = worker._controlled_termination or self.exchange.terminated
        died = not expected and exitcode not in (EX_OK, EX_RECYCLE)
        task = self.exchange.inherit(channel, died)
        self.exchange.detach(channel)
        if pool is not None:
            pool._forget_worker(worker)
        if died:
            status = human_status(exitcode)
            error("Process %r pid:%r exited with %r", worker.name, channel.pid, status)
        if not (channel.up or channel.dismissed or expected):
            if channel.unfit is None and exitcode in (-SIGKILL, -SIGTERM):
                # That says nothing of the next one.
                self._slain += 1
            else:
                self._stillborn += 1
            self._why_stillborn = channel.unfit or captured(
                WorkerLostError(f"Worker exited before it was ready: {human_status(exitcode)}")
            )
        job = self.cache.get(task.job) if task is not None and not task.condemned else None
        if task is not None and job is not None and not job.ready():
            if task.accepted is None:
                job._ack(task.i, monotonic(), channel.pid, None)
            if pool is not None:
                pool._task_lost(job, task.i, worker, exitcode)
            else:
                job._abandon(captured(WorkerLostError(human_status(exitcode))))
        if pool is not None and pool.on_process_down:
            pool.on_process_down(worker)
        return exitcode

    def _without_workers(self) -> None:
        """Nothing can be done: if that will not change, say so to those who wait."""
        pool, exchange = self._pool(), self.exchange
        if exchange.broken is not None or exchange.drained:
            return
        if (self._stillborn or self._slain) and not self.wants_workers():
            assert self._why_stillborn is not None
            self.fail(self._why_stillborn)
        elif exchange.closed and exchange.waiting and pool is not None and not pool._processes:
            self.fail(captured(WorkerLostError("The pool was closed without workers")))

    def fail(self, info: ExceptionInfo) -> None:
        """Let every task that waits, and any later, fail."""
        self.exchange.break_down(info)
