"""The native drive: ``threads=True``. Rust moves tasks and results; this is the rest.

```
 caller ─────────► PoolEngine (Rust) ◄──► workers             PoolEngine also has a thread of its
   ▲ takes its        ▲      │      │                        own, which needs no interpreter:
   │ outcome itself   │      │      │ events: OVER, UNFIT ...   deaths, limits, the queue
   │         TaskHandler     │      ▼
   │         feeds sequences │   Supervisor: reaps, replaces, ends the pool
   │                         │      │ LOST
   └────────── nobody else   ▼      ▼
               in between  ResultHandler: jobs with callbacks, maps
```

A call without callbacks, limits or hooks is the caller's and the engine's alone: its result
(``ApplyResult``, or the iterator of ``imap``) is an object of the engine. All others are jobs of
the book, whose thread is the result handler: callbacks may hold it up, and nothing else.

The end of a pool, the same for both ways: the supervisor sees that no worker is left and none is
wanted, lets those go who still wait, stops the other threads, and ends. ``close`` leads there when
all tasks are done (DRAINED), ``terminate`` by ending the workers.

The threads keep this alive, and this keeps no pool alive.
"""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic, sleep
from weakref import WeakSet, ref

from .. import _core, util
from .._launch import is_plain, start_all
from ..common import human_status
from ..einfo import ExceptionInfo
from ..exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from ..process import current_process
from . import wire
from .constants import (
    DEATH,
    DRAINED,
    EX_OK,
    EX_RECYCLE,
    HARD,
    IDLE,
    LOST,
    OVER,
    READY,
    SIGCONT,
    SIGKILL,
    SIGTERM,
    SOFT,
    TASK,
    UNFIT,
)
from .drive import Drive
from .failures import captured
from .handlers import Refused, end_worker
from .lane import Lane, ReadyCounter
from .log import debug, error
from .parts import (
    AT_HAND_TASKS,
    LARGE_BYTES,
    WAITING_TASKS,
    LostTask,
    Member,
    SequenceTasks,
    Side,
    wait_for_imports,
)
from .results import ApplyResult
from .submissions import Submissions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from .results import Outcome

#: Seconds between SIGTERM and SIGKILL when the pool is terminated: tasks may have to clean up, but
#: whoever terminates a pool waits for it.
TERMINATE_GRACE = 0.7
#: Seconds that ``terminate`` waits for a thread. Only one that is held up by what a signal handler
#: has interrupted, or by an iterable of the user's, takes longer than an instant.
THREAD_GRACE = 5.0
#: how many workers in a row may fail to become ready, once one has
STILLBORN_LIMIT = 3
#: Seconds after so many failures until it is tried again, as long as there are other workers: what
#: an initializer needs may come back.
RECOVER_AFTER = 1.0
#: How many in a row somebody else may kill before they are ready, when none has ever been: perhaps
#: it is the initializer after all, by way of the system's memory.
SLAIN_LIMIT = 100
#: seconds until the system is asked again for what it had not
RETRY_AFTER = 0.2


class NativeDrive(Drive):
    """See the top of this file."""

    is_native = True

    def __init__(self, pool: Any) -> None:
        self._pool = ref(pool)
        self.workers: list[Any] = pool._pool
        self.cache: dict[int, Any] = pool._cache
        self._default_limits = (pool.soft_timeout or 0, pool.timeout or 0)
        self._messages: deque[Any] = deque()
        self.maintenance = threading.RLock()
        #: how workers are started
        self.method = getattr(pool._ctx, "get_start_method", str)()
        self.members: dict[int, Member] = {}
        #: jobs that were cancelled while tasks of some job were being fed
        self._withdrawn: set[int] = set()
        #: what the engine tells the supervisor
        self._event_handlers: dict[int, Callable[..., object]] = {
            OVER: self._on_over,
            UNFIT: self._on_unfit,
            DEATH: self._on_leaving,
            DRAINED: self._on_drained,
        }
        self._sequences: WeakSet[_core.PoolSequence] = WeakSet()
        #: tasks are not wanted any more
        self.terminated = False
        #: no more will be submitted
        self.closed = False
        #: and all of them have ended
        self.drained = False
        #: why no task can be done any more
        self.broken: ExceptionInfo | None = None
        #: the outcome of all jobs that come now: there is nobody left to see to them
        self._ended: ExceptionInfo | None = None
        #: workers that ended before they were ready, since the last that was
        self._stillborn = 0
        #: when to try again after too many, monotonic seconds
        self._recover_at = 0.0
        #: as many were killed, by whom we do not know
        self._slain = 0
        self._why_stillborn: ExceptionInfo | None = None
        #: how many workers had become ready when that was last looked at
        self._ready = 0
        #: when to kill all workers that are left, monotonic seconds
        self._kill_all_at: float | None = None
        #: when to try again what the system would not do
        self._retry_at: float | None = None

    # ---- the pool's life ----

    def open(self) -> None:
        pool = self._pool()
        assert pool is not None
        engine = self.engine = _core.PoolEngine(wire)
        util.register_after_fork(self, NativeDrive._in_child)
        self.submissions = pool._taskqueue = Submissions()
        pool._inqueue = Side(self.submit_one, lambda: not engine.has_waiting())
        pool._outqueue = Side(self._no_more_tasks, lambda: True)
        pool._quick_put = self._feed
        pool._quick_get = self._messages.popleft
        pool._poll_result = engine.poll

    def start(self) -> None:
        pool = self._pool()
        assert pool is not None
        self.putlock = pool._putlock
        tasks, supervisor = pool._task_handler, pool._worker_handler
        timeouts, results = pool._timeout_handler, pool._result_handler
        self.handlers = (tasks, supervisor, timeouts, results)
        results.patience, results.on_end, results.counts = None, self._end, False
        results.state_handlers.update(
            {
                SOFT: self._on_soft,
                HARD: self._on_hard,
                LOST: self._on_lost,
                IDLE: self.engine.let_go,
            }
        )
        tasks.answer = self._answer
        for handler in self.handlers:
            handler.on_crash = self._crashed
        self.engine.start()
        for handler in (results, supervisor, tasks):
            handler.start()

    def _crashed(self, exc: BaseException) -> None:
        """A thread of ours has failed: that must not happen, and nobody shall wait for it."""
        info = ExceptionInfo((type(exc), exc, exc.__traceback__), internal=True)
        self.terminated = True
        self.break_down(info)
        self._kill_all_at = monotonic() + TERMINATE_GRACE
        self._end_workers()
        self._abandon(info)
        if self.putlock is not None:
            self.putlock.clear()
        if threading.current_thread() is self.handlers[1]:
            # It goes on in the one respect that all others depend on.
            while self.wait_for_change():
                self.reap()

    def _no_more_tasks(self, sentinel: None) -> None:
        self.closed = True
        self.engine.close()
        self.change()

    def close(self) -> None:
        # What has been given to the pool is done, whether or not somebody takes the results.
        for sequence in list(self._sequences):
            if sequence.lift():
                self.submissions.put((SequenceTasks(self, sequence), None))
        for job in list(self.cache.values()):
            ahead, job._refill = getattr(job, "_refill", None), None
            if ahead is not None:
                self.submissions.put((ahead.rest(), None))
        self.submissions.put(None)

    def join(self, timeout: float | None = None) -> bool:
        self._check_not_a_handler("joined")
        deadline = None if timeout is None else monotonic() + timeout
        for handler in self.handlers:
            if handler._was_started:
                handler.stop(None if deadline is None else max(0.0, deadline - monotonic()))
        return not any(handler.is_alive() for handler in self.handlers)

    def _check_not_a_handler(self, done: str) -> None:
        if threading.current_thread() in self.handlers:
            raise RuntimeError(f"a pool cannot be {done} by one of its own threads")

    def finalizer(self) -> Callable[..., object]:
        return self._terminate

    def _terminate(self) -> None:
        """End everything at once. Once, in any thread, perhaps in a signal handler."""
        debug("terminating pool")
        tasks, supervisor, _, _ = self.handlers
        self.terminated = True
        tasks.terminate()
        supervisor.terminate()
        self.engine.terminate(captured(Terminated("the pool has been terminated")))
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
        for member in list(self.members.values()):
            member.retired = True
            if not (member.dismissed or member.over):
                member.dismissed = True
                member.worker.terminate_controlled()
                # One that has been stopped would see the end no sooner than SIGKILL.
                member.worker._popen._send_signal(SIGCONT)

    def _end(self) -> None:
        """The last of the result handler."""
        if self.terminated:
            why: Exception = Terminated("the pool has been terminated")
        else:
            # Only sequences that are read as results are taken can still have wanted something.
            why = ValueError("Pool not running")
        # First: what is submitted from now on will not be seen here.
        self._ended = captured(why)
        self._abandon(self._ended)
        self.engine.stop()

    def _abandon(self, info: ExceptionInfo) -> None:
        """Let those go who wait, and tell no callback."""
        for job in list(self.cache.values()):
            job._abandon(info)
        self.engine.abandon_all(info)
        for sequence in list(self._sequences):
            sequence._abandon(info)

    def abort(self) -> None:
        # Threads that have been started already find nothing to do.
        self.terminated = True
        workers = list(self.workers)
        self.workers.clear()
        self.members.clear()
        for worker in workers:
            worker.inq.let_go()
        self.submissions.put(None)
        self.engine.begin()
        self.engine.post(None)
        self.change()
        self.engine.stop()

    # ---- tasks ----

    def apply(self, pool: Any, func: Any, args: Any, kwargs: Any) -> Any:
        """A call that is nobody's but the caller's."""
        result = self.engine.apply(pool, func, args, kwargs)
        self.check_broken()
        return result

    def imap(
        self,
        pool: Any,
        ordered: bool,
        func: Any,
        items: Iterable[Any],
        buffersize: int | None,
        kind: type,
    ) -> Any:
        """A sequence of calls that is nobody's but the caller's."""
        sequence = self.engine.sequence(pool, ordered)
        self._sequences.add(sequence)
        sequence.begin(func, iter(items), buffersize)
        # To read these takes no code of the user's and no time.
        at_hand = kind is range or kind is list or kind is tuple or buffersize is not None
        done = at_hand and sequence.feed(AT_HAND_TASKS, LARGE_BYTES)
        if done:
            self.engine.let_go()  # there may have been nothing in it
        if not done and buffersize is None:
            self.submissions.put((SequenceTasks(self, sequence), None))
        self.check_broken()
        return sequence

    def submit_one(self, task: Any) -> None:
        if self.submissions.busy():
            self.submissions.put(((task,), None))
            self.check_broken()
        else:
            self._put(task)

    def _put(self, task: Any) -> None:
        kind, (job, i, func, args, kwargs) = task
        assert kind == TASK
        self.engine.put(job, i, func, args, kwargs, *self._limits_of(job))
        self.check_broken()

    def _limits_of(self, number: int) -> tuple[float, float]:
        job = self.cache.get(number)
        soft, hard = self._default_limits
        return getattr(job, "_soft_timeout", None) or soft, getattr(job, "_timeout", None) or hard

    def _feed(self, task: Any) -> None:
        """What the task handler does with each task of a sequence."""
        if task is not None:
            self.engine.wait_for_room(WAITING_TASKS, LARGE_BYTES)
            number, i, *_ = task[1]
            # One answer is enough, and a sequence may be endless.
            if self.broken is not None:
                raise Refused(self.broken)
            if number in self._withdrawn:
                self._withdrawn.discard(number)
                raise Refused(wire.cancelled())
            self._put(task)
            if number in self._withdrawn:
                # Since then, and before the engine had it.
                self.engine.cancel(number, i, wire.cancelled())

    def _answer(self, number: int | None, i: int | None, outcome: Outcome) -> None:
        """An outcome that comes from no worker: the result handler's, as all others are."""
        if number is not None:
            self.engine.post((READY, (number, i, outcome, None)))

    def cancel(self, job: Any) -> bool:
        return bool(self._cancel([job], wire.cancelled()))

    def _cancel(self, jobs: list[Any], info: ExceptionInfo) -> list[Any]:
        """End jobs; those that had no outcome. First all are told: no other begins meanwhile."""
        cancelled = [job for job in jobs if job._overrule(info)]
        self._withdrawn.update(job._job for job in cancelled)
        withdrawn = self._withdrawn.copy()
        if not self.submissions.busy():
            self._withdrawn -= withdrawn  # all tasks of these have been fed
        for job in cancelled:
            if not self.engine.cancel(job._job, None, info):
                # It has still to be fed, behind what may be endless; or its outcome is on the way.
                self._answer(job._job, None, (False, info))
        return cancelled

    def wait_until_idle(self, timeout: float | None) -> bool:
        self._check_not_a_handler("drained")
        deadline = None if timeout is None else monotonic() + timeout
        for job in list(self.cache.values()):
            while not job.ready():
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return False
                self.engine.wait_idle(left)
                # The last that the engine had; the book's thread has it in an instant.
                if isinstance(job, ApplyResult):
                    job.wait(0.01)
                else:
                    sleep(0.01)
        while not self.terminated and (not self.closed or self.engine.live()):
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                return False
            if self.engine.live():
                self.engine.wait_idle(left if left is None else min(left, 0.05))
            else:
                # The task handler reads an iterable of the user's.
                sleep(0.01)
        return True

    def cancel_all(self) -> list[Any]:
        """End all jobs; those that had no outcome."""
        info = wire.cancelled()
        unfinished = self._cancel_known(info)
        # Not before: from now on others fail what they find. Some may have come meanwhile.
        self.broken = info
        unfinished += self._cancel_known(info)
        self.break_down(info)
        return unfinished

    def _cancel_known(self, info: ExceptionInfo) -> list[Any]:
        unfinished = self._cancel(list(self.cache.values()), info)
        for sequence in list(self._sequences):
            if not sequence.ready():
                sequence._abandon(info)
                unfinished.append(sequence)
        return unfinished + self.engine.cancel_all(info)

    def fail(self, info: ExceptionInfo) -> None:
        """Let every task that waits, and any later, fail."""
        self.break_down(info)

    def check_broken(self) -> None:
        if self._ended is not None:
            self._abandon(self._ended)
        elif self.broken is not None:
            self.break_down(self.broken)

    def break_down(self, info: ExceptionInfo) -> None:
        """No task is done any more: there are no workers and there will be none."""
        self.broken = info
        self.engine.withdraw(info)
        for sequence in list(self._sequences):
            sequence._abandon(info)

    # ---- limits ----

    def _on_soft(self, number: int, i: int | None) -> None:
        debug("soft time limit exceeded for task %s of job %s", i, number)
        tell = getattr(self.cache.get(number), "handle_timeout", None)
        if tell is not None:
            tell(soft=True)

    def _on_hard(self, number: int, i: int | None, limit: float) -> None:
        debug("hard time limit exceeded for task %s of job %s", i, number)
        job = self.cache.get(number)
        if job is None or job.ready():
            return
        if self.putlock is not None:
            self.putlock.release()
        job._set(i, (False, captured(TimeLimitExceeded(limit))))
        if hasattr(job, "handle_timeout"):
            job.handle_timeout(soft=False)

    # ---- workers ----

    def queues(self) -> tuple[Any, Any, Any]:
        lane = Lane(self.engine.lane())
        return lane, lane, None

    def ready_counter(self, ctx: Any, inq: Any) -> ReadyCounter:
        return ReadyCounter(inq)

    def launch(self, worker: Any) -> None:
        self.launch_all([worker])

    @property
    def launches_together(self) -> bool:  # type: ignore[override]
        # A drive that launches in its own way launches each.
        together = self.method in ("fork", "forkserver")
        return together and type(self).launch is NativeDrive.launch

    def launch_all(self, workers: Sequence[Any]) -> None:
        forks = self.method == "fork"
        if forks:
            wait_for_imports()
        try:
            if forks and all(map(is_plain, workers)):
                lanes = [worker.inq.shared for worker in workers]
                start_all(workers, lambda _: self.engine.fork_workers(lanes))
            elif self.method == "forkserver":
                start_all(workers)
            else:
                for worker in workers:
                    worker.inq.shared.admit()
                    try:
                        worker.start()
                    finally:
                        worker.inq.shared.withhold()
        finally:
            lanes = []  # the exception of a failure knows this frame
            failure: BaseException | None = None
            for worker in workers:
                try:
                    self._take_in(worker)
                except BaseException as exc:
                    failure = exc
            if failure is not None:
                raise failure

    def _take_in(self, worker: Any) -> None:
        """A worker has been started, or has not."""
        if not hasattr(worker, "_popen"):
            return  # no process of ours: it can be ended with the pool, but not watched
        lane = worker.inq.shared
        if worker._popen is None:
            self.workers.remove(worker)
            self.engine.forgo(lane)
            worker.inq.let_go()
            return
        self.members[worker.pid] = Member(worker)
        try:
            self.engine.attach(lane, worker.pid, worker._popen.sentinel)
        except BaseException:
            # One that nobody watches would be waited for to the end of the program. It may have
            # begun with a task: the supervisor sees to what it leaves.
            worker._controlled_termination = True
            worker._popen._send_signal(SIGKILL)
            worker.join()
            self.engine.bury(lane, worker.pid)
            del lane  # the exception knows this frame
            raise
        if self.terminated:
            # It was on its way when the others were told.
            self._end_workers()

    def _in_child(self) -> None:
        """A process has been forked: it needs no more than a worker needs, if it is one."""
        me = current_process()
        for worker in self.workers:
            if worker is not me:
                worker.inq.shared.close()
        if me not in self.workers:
            self.engine.abandon()

    def wants_workers(self) -> bool:
        waits = self._retry_at is not None and monotonic() < self._retry_at
        return not waits and self._may_have_workers()

    def _may_have_workers(self) -> bool:
        """Whether they would be of use, now or soon."""
        if self.terminated or self.drained or self.broken is not None:
            return False
        if self.closed and not self.engine.has_waiting():
            return False
        self._look_who_is_ready()
        if self._ready and self._stillborn > STILLBORN_LIMIT:
            if monotonic() < self._recover_at:
                self._retry_at = self._recover_at
                return False
            return bool(self.workers)
        if self._ready:
            return True
        return not self._stillborn and self._slain <= SLAIN_LIMIT

    def is_busy(self, worker: Any) -> bool:
        member = self.members.get(worker.pid)
        return member is not None and self.engine.is_busy(member.index)

    def retire(self, worker: Any) -> bool:
        member = self.members.get(worker.pid)
        if member is None or member.retired:
            return False
        if not self.engine.retire(member.index, False):
            return False
        member.retired = True
        return True

    def recall(self) -> None:
        for member in list(self.members.values()):
            member.retired = True
            self.engine.retire(member.index, True)

    def condemn(self, worker: Any) -> None:
        member = self.members.get(worker.pid)
        if member is not None and not self.engine.condemn(member.index):
            self.engine.retire(member.index, False)

    def _look_who_is_ready(self) -> None:
        ready = self.engine.ready()
        if ready != self._ready:
            self._ready, self._stillborn, self._slain = ready, 0, 0

    def _on_unfit(self, pid: int, info: ExceptionInfo) -> None:
        member = self.members.get(pid)
        if member is not None:
            member.unfit = info

    def is_leaving(self, worker: Any) -> bool:
        member = self.members.get(worker.pid)
        return member is not None and member.leaving

    def _on_leaving(self, pid: int, exitcode: int) -> None:
        member = self.members.get(pid)
        if member is not None and exitcode == EX_RECYCLE:
            # Its successor need not wait until it is gone.
            member.leaving = True

    def _on_over(self, pid: int, lost: Any) -> None:
        member = self.members.get(pid)
        if member is not None:
            member.over, member.lost = True, lost

    def _on_drained(self) -> None:
        self.drained = True

    # ---- the supervisor's part ----

    def change(self) -> None:
        """There is something for the supervisor to do."""
        self.engine.change()

    def later(self) -> None:
        """The system would not start a worker now."""
        self._retry_at = monotonic() + RETRY_AFTER

    def wait_for_change(self) -> bool:
        """Wait until there is something to do; false when there will never be."""
        if not self.workers and (self.terminated or self.drained):
            self.engine.post(None)
            return False
        event = self.engine.next_event(self._patience())
        if event is None:
            self._retry_at = None
        while event is not None:
            kind, args = event
            if kind in self._event_handlers:
                self._event_handlers[kind](*args)
            event = self.engine.next_event(0)
        if self._kill_all_at is not None and monotonic() >= self._kill_all_at:
            self._kill_all_at = None
            for member in list(self.members.values()):
                if not member.over:
                    end_worker(member.worker, SIGKILL)
        return True

    def _patience(self) -> float | None:
        """Seconds until there is something to do by itself."""
        due = [at for at in (self._kill_all_at, self._retry_at) if at is not None]
        return max(0.0, min(due) - monotonic()) if due else None

    def reap(self, shutdown: bool = False) -> list[int | None]:
        exitcodes: list[int | None] = []
        with self.maintenance:
            for member in list(self.members.values()):
                if member.over:
                    exitcodes.append(self._reap(member))
            if self.terminated:
                # One may have been on its way when the others were told.
                self._end_workers()
            elif not self.workers:
                self._without_workers()
        return exitcodes

    def _reap(self, member: Member) -> int | None:
        worker, pool = member.worker, self._pool()
        worker.join()
        exitcode: int | None = worker.exitcode
        self.workers.remove(worker)
        del self.members[member.pid]
        was_up = worker.inq.shared.is_up
        worker.inq.let_go()
        if pool is not None:
            if self.engine.take_ended():
                pool.restart_state.R = 0
            pool._forget_worker(worker)
        expected = worker._controlled_termination or self.terminated or self.drained
        if not expected and exitcode not in (EX_OK, EX_RECYCLE):
            status = human_status(exitcode)
            error("Process %r pid:%r exited with %r", worker.name, member.pid, status)
        if not (was_up or member.dismissed or expected):
            self._note_stillborn(member, exitcode)
        if member.lost is not None:
            task, number, i = member.lost
            if number is None:
                self._lose(LostTask(self.engine, task), None, worker, exitcode)
            else:
                # Its callbacks may take their time, and need workers.
                self.engine.post((LOST, (number, i, worker, exitcode)))
        if pool is not None and pool.on_process_down:
            try:
                pool.on_process_down(worker)
            except BaseException as exc:
                # It ends the pool. When that ends anyway, there are others to see to.
                if not self.terminated:
                    raise
                error("Supervisor: %r", exc, exc_info=True)
        return exitcode

    def _note_stillborn(self, member: Member, exitcode: int | None) -> None:
        self._look_who_is_ready()
        if member.unfit is None and exitcode in (-SIGKILL, -SIGTERM):
            # That says nothing of the next one.
            self._slain += 1
        else:
            self._stillborn += 1
            if self._stillborn > STILLBORN_LIMIT:
                self._recover_at = monotonic() + RECOVER_AFTER
        self._why_stillborn = member.unfit or captured(
            WorkerLostError(f"Worker exited before it was ready: {human_status(exitcode)}")
        )

    def _on_lost(self, number: int, i: int | None, worker: Any, exitcode: int | None) -> None:
        job = self.cache.get(number)
        if job is None or job.ready():
            return
        try:
            if type(job) is ApplyResult and not job.accepted():
                job._ack(i, monotonic(), worker.pid, None)
        finally:
            self._lose(job, i, worker, exitcode)

    def _lose(self, job: Any, i: int | None, worker: Any, exitcode: int | None) -> None:
        """A worker has ended in the middle of a task."""
        pool = self._pool()
        try:
            if pool is not None:
                pool._task_lost(job, i, worker, exitcode)
                return
        except BaseException as exc:
            # A hook's or a callback's. The job ends all the same, and the others go on.
            error("Lost task: %r", exc, exc_info=True)
            if job.ready():
                return
            if self.putlock is not None:
                self.putlock.release()
        job._set(i, (False, captured(WorkerLostError(human_status(exitcode)))))

    def _without_workers(self) -> None:
        """Nothing can be done: if that will not change, say so to those who wait."""
        pool = self._pool()
        if self.broken is not None or self.drained:
            return
        if (self._stillborn or self._slain) and not self._may_have_workers():
            assert self._why_stillborn is not None
            self.fail(self._why_stillborn)
        elif self.closed and self.engine.has_waiting() and pool is not None and not pool._processes:
            self.fail(captured(WorkerLostError("The pool was closed without workers")))
