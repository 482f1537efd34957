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
from weakref import WeakSet

from .. import _core, util
from ..einfo import ExceptionInfo
from ..exceptions import Terminated, TimeLimitExceeded
from ..process import current_process
from . import wire
from .constants import AT_HAND_TASKS, HARD, IDLE, LOST, READY, SOFT, TASK
from .failures import captured
from .handlers import Refused
from .log import debug
from .parts import LARGE_BYTES, WAITING_TASKS, SequenceTasks, Side
from .results import ApplyResult, as_held
from .submissions import Submissions
from .supervision import TERMINATE_GRACE, Supervision

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from .results import Outcome

#: Seconds that ``terminate`` waits for a thread. Only one that is held up by what a signal handler
#: has interrupted, or by an iterable of the user's, takes longer than an instant.
THREAD_GRACE = 5.0


class NativeDrive(Supervision):
    """See the top of this file. What concerns the workers is in ``Supervision``."""

    is_native = True

    def __init__(self, pool: Any) -> None:
        super().__init__(pool)
        self._default_limits = (pool.soft_timeout or 0, pool.timeout or 0)
        self._messages: deque[Any] = deque()
        #: jobs that were cancelled while tasks of some job were being fed
        self._withdrawn: set[int] = set()
        self._sequences: WeakSet[_core.PoolSequence] = WeakSet()
        #: the outcome of all jobs that come now: there is nobody left to see to them
        self._ended: ExceptionInfo | None = None
        self.has_told_all = False

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
        results.turn = self.standstill.turn
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
        self.fail(info)
        self.dismiss_all()
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
            refill, job._refill = getattr(job, "_refill", None), None
            if refill is not None and (ahead := refill()) is not None:
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
        """End everything at once. In any thread, perhaps in a signal handler; again, if what a
        handler raised has interrupted it."""
        debug("terminating pool")
        tasks, supervisor, _, _ = self.handlers
        self.terminated = self.standstill.is_over = True
        tasks.terminate()
        supervisor.terminate()
        self.engine.terminate(captured(Terminated("the pool has been terminated")))
        self.submissions.put(None)
        self.dismiss_all()
        self.change()
        self.has_told_all = True
        if threading.current_thread() not in self.handlers:
            # The supervisor ends with the last worker, the others then.
            supervisor.stop(TERMINATE_GRACE + THREAD_GRACE)
            for handler in self.handlers:
                if handler._was_started:
                    handler.stop(THREAD_GRACE)

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

    def _in_child(self) -> None:
        """A process has been forked: it needs no more than a worker needs, if it is one."""
        me = current_process()
        for worker in self.workers:
            if worker is not me:
                worker.inq.shared.close()
        if me not in self.workers:
            self.engine.abandon()

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
        sequence.begin(pool, func, iter(items), buffersize)
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
            self.submissions.put((self._if_wanted(task), None))
            self.check_broken()
        else:
            self._put(task)

    def _if_wanted(self, task: Any) -> Iterator[Any]:
        """Not if its job, which knows its limits, has been forgotten meanwhile."""
        number = task[1][0]
        if number in self.cache or number in self._withdrawn:
            yield task

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
        # If nothing is being fed before and after the copy, all tasks of the jobs in it have been
        # fed. While something is, the set may be large: it is not copied.
        fed = set() if self.submissions.busy() else self._withdrawn.copy()
        if not self.submissions.busy():
            self._withdrawn -= fed
        for job in cancelled:
            if not self.engine.cancel(job._job, None, info):
                # It has still to be fed, behind what may be endless; or its outcome is on the way.
                self._answer(job._job, None, (False, info))
        return cancelled

    def wait_until_idle(self, timeout: float | None) -> bool:
        self._check_not_a_handler("drained")
        deadline = None if timeout is None else monotonic() + timeout
        for job in list(self.cache.values()):
            while not (job.ready() or self.terminated or self._is_forgotten(job)):
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

    def _is_forgotten(self, job: Any) -> bool:
        """Whether nobody will bring the outcome of a job."""
        return job._job not in self.cache and not job._is_decided()

    def cancel_all(self) -> list[Any]:
        """End all jobs; those that had no outcome."""
        info = wire.cancelled()
        unfinished = self._cancel_known(info)
        # Not before: from now on others fail what they find. Some may have come meanwhile.
        self.broken = info
        unfinished += self._cancel_known(info)
        self.fail(info)
        return unfinished

    def _cancel_known(self, info: ExceptionInfo) -> list[Any]:
        unfinished = [as_held(job) for job in self._cancel(list(self.cache.values()), info)]
        for sequence in list(self._sequences):
            if not sequence.ready():
                sequence._abandon(info)
                unfinished.append(sequence)
        return unfinished + self.engine.cancel_all(info)

    def check_broken(self) -> None:
        if self._ended is not None:
            self._abandon(self._ended)
        elif self.broken is not None:
            self.fail(self.broken)

    def fail(self, info: ExceptionInfo) -> None:
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
