"""The workers of the native drive: how they are started, watched, replaced and ended.

```
            launch_all()                    OVER: the process has ended, all it sent is read
 made ──────────────────► member, starting ───────────────────────────┐
   │ not started            │ says that it is ready                     ▼
   ▼                        ▼            OVER                        reap(): its task is LOST,
 forgotten                member, up ─────────────────────────────►  hooks are told, the book
                            │ leaving, retired or dismissed           makes another
                            ▼            OVER                           ▲
                          gets no more tasks ───────────────────────────┘
```

The supervisor does it, and who calls ``maintain_pool``: for both there is the lock ``maintenance``.
What others ask of workers (``retire``, ``recall``, ``condemn``, ``dismiss_all``) needs no lock.
"""

from __future__ import annotations

import threading
from time import monotonic
from weakref import ref

from .. import _core
from .._launch import is_plain, start_all
from ..common import human_status
from ..exceptions import WorkerLostError
from .constants import (
    DEATH,
    DRAINED,
    EX_OK,
    EX_RECYCLE,
    LOST,
    OVER,
    SIGCONT,
    SIGKILL,
    SIGTERM,
    UNFIT,
)
from .drive import Drive
from .failures import captured
from .handlers import end_worker
from .lane import Lane, ReadyCounter
from .log import error
from .parts import LostTask, Member
from .results import ApplyResult
from .standstill import MaintenanceInTurn, Standstill, wait_for_imports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from ..einfo import ExceptionInfo

#: Seconds between SIGTERM and SIGKILL when the pool is terminated: tasks may have to clean up, but
#: whoever terminates a pool waits for it.
TERMINATE_GRACE = 0.7
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


class Starts:
    """How the starts of workers went lately: whether one more is worth it."""

    def __init__(self) -> None:
        #: how many workers had become ready when that was last looked at
        self.ready = 0
        #: workers that ended before they were ready, since the last that was
        self.stillborn = 0
        #: those that were killed instead, by whom we do not know
        self.slain = 0
        #: what the last of them ended of
        self.why: ExceptionInfo | None = None

    def look(self, ready: int) -> None:
        """So many have become ready by now."""
        if ready != self.ready:
            self.ready, self.stillborn, self.slain, self.why = ready, 0, 0, None

    def note_failure(self, unfit: ExceptionInfo | None, exitcode: int | None) -> None:
        """One has ended before it was ready, perhaps because it was unfit."""
        if unfit is None and exitcode in (-SIGKILL, -SIGTERM):
            # That says nothing of the next one.
            self.slain += 1
        else:
            self.stillborn += 1
        self.why = unfit or captured(
            WorkerLostError(f"Worker exited before it was ready: {human_status(exitcode)}")
        )

    def fail_often(self) -> bool:
        """Whether it is better to wait a while."""
        return self.stillborn > STILLBORN_LIMIT

    def have_a_chance(self, others: bool) -> bool:
        """Whether one more may become ready, now or later.

        ``others``: there are workers, so that nobody waits in vain meanwhile.
        """
        if self.ready:
            return others or not self.fail_often()
        return not self.stillborn and self.slain <= SLAIN_LIMIT


class Supervision(Drive):
    """See the top of this file. The rest of the drive is in ``NativeDrive``."""

    engine: _core.PoolEngine
    putlock: Any

    def __init__(self, pool: Any) -> None:
        self._pool = ref(pool)
        self.workers: list[Any] = pool._pool
        self.cache: dict[int, Any] = pool._cache
        self.standstill = Standstill()
        self._maintenance = threading.RLock()
        #: task handler, supervisor, timeout handler and result handler, once there are
        self.handlers: tuple[Any, ...] = ()
        #: how workers are started
        self.method = getattr(pool._ctx, "get_start_method", str)()
        self.members: dict[int, Member] = {}
        self.starts = Starts()
        #: what the engine tells the supervisor
        self._event_handlers: dict[int, Callable[..., object]] = {
            OVER: self._on_over,
            UNFIT: self._on_unfit,
            DEATH: self._on_leaving,
            DRAINED: self._on_drained,
        }
        #: tasks are not wanted any more
        self.terminated = False
        #: no more will be submitted
        self.closed = False
        #: and all of them have ended
        self.drained = False
        #: why no task can be done any more
        self.broken: ExceptionInfo | None = None
        #: when to kill all workers that are left, monotonic seconds
        self._kill_all_at: float | None = None
        #: when to try again what the system would not do, or what has failed often
        self._retry_at: float | None = None

    @property
    def maintenance(self) -> AbstractContextManager[Any]:  # type: ignore[override]
        turn = self.standstill.turn
        # Only in the result handler, which runs no signal handlers, may it be code in Python that
        # takes a lock: what a handler raises would leave it taken.
        return MaintenanceInTurn(self._maintenance, turn) if turn.is_mine() else self._maintenance

    # ---- start ----

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
        return together and type(self).launch is Supervision.launch

    def launch_all(self, workers: Sequence[Any]) -> None:
        forks = self.method == "fork"
        if forks:
            wait_for_imports()
        try:
            if forks and all(map(is_plain, workers)):
                lanes = [worker.inq.shared for worker in workers]
                start_all(workers, lambda _: self._fork(lanes))
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

    def _fork(self, lanes: list[_core.PoolLane]) -> list[_core.Child | OSError] | int:
        if threading.current_thread() not in self.handlers:
            return self.engine.fork_workers(lanes)
        with self.standstill as standstill:
            return self.engine.fork_workers(lanes, standstill)

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

    # ---- which are wanted, which are at work ----

    def wants_workers(self) -> bool:
        waits = self._retry_at is not None and monotonic() < self._retry_at
        return not waits and self._may_have_workers()

    def _may_have_workers(self) -> bool:
        """Whether they would be of use, now or soon."""
        if self.terminated or self.drained or self.broken is not None:
            return False
        if self.closed and not self.engine.has_waiting():
            return False
        self.starts.look(self.engine.ready())
        return self.starts.have_a_chance(others=bool(self.workers))

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
        self.standstill.note_termination()
        member = self.members.get(worker.pid)
        if member is not None and not self.engine.condemn(member.index):
            self.engine.retire(member.index, False)

    def is_leaving(self, worker: Any) -> bool:
        member = self.members.get(worker.pid)
        return member is not None and member.leaving

    # ---- the supervisor's part ----

    def change(self) -> None:
        """There is something for the supervisor to do."""
        self.engine.change()

    def later(self) -> None:
        """The system would not start a worker now."""
        self._retry_at = max(self._retry_at or 0.0, monotonic() + RETRY_AFTER)

    def wait_for_change(self) -> bool:
        """Wait until there is something to do; false when there will never be."""
        if not self.workers and (self.terminated or self.drained):
            self.engine.post(None)
            return False
        event = self.engine.next_event(self._patience())
        if self._retry_at is not None and monotonic() >= self._retry_at:
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

    def _on_unfit(self, pid: int, info: ExceptionInfo) -> None:
        member = self.members.get(pid)
        if member is not None:
            member.unfit = info

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
            self.starts.look(self.engine.ready())
            self.starts.note_failure(member.unfit, exitcode)
            if self.starts.fail_often():
                self._retry_at = monotonic() + RECOVER_AFTER
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
        if self.starts.why is not None and not self._may_have_workers():
            self.fail(self.starts.why)
        elif self.closed and self.engine.has_waiting() and pool is not None and not pool._processes:
            self.fail(captured(WorkerLostError("The pool was closed without workers")))

    # ---- the end ----

    def dismiss_all(self) -> None:
        """Have all workers end, at the latest when the grace is over."""
        self._kill_all_at = monotonic() + TERMINATE_GRACE
        self._end_workers()

    def end_stragglers(self, deadline: float) -> None:
        """Have no worker outlast both the deadline and a grace: there are no tasks any more."""
        self._kill_all_at = max(deadline, monotonic() + TERMINATE_GRACE)
        self.change()

    def _end_workers(self) -> None:
        """Tell all that have not been told."""
        for member in list(self.members.values()):
            member.retired = True
            if not (member.dismissed or member.over):
                member.dismissed = True
                member.worker.terminate_controlled()
                # One that has been stopped would see the end no sooner than SIGKILL.
                member.worker._popen._send_signal(SIGCONT)
