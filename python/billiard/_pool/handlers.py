"""The handlers of a pool: public classes, each a thread in the drives that start it.

```
                  Supervisor        TaskHandler        TimeoutHandler      ResultHandler
 does             workers           feeds tasks        limits              results, callbacks
 passive drive    maintain_pool()   (tasks go by       handle_event()      handle_event()
 is driven by     in the loop       _quick_put)        or Celery's timers  or on_state_change()
 native drive     waits for the     waits for the      is never started:   waits for messages
                  drive's notice    task queue         the engine does it  of the engine
```

A handler that was never started still has its part in shutting the pool down: ``stop`` calls
``on_stop_not_started``.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from time import monotonic

from ..common import SIGMAP, TERM_NUMBER
from ..compat import get_errno
from ..dummy import DummyProcess
from ..einfo import ExceptionInfo
from ..exceptions import CoroStop, RestartFreqExceeded, TimeLimitExceeded
from .constants import (
    ACK,
    CLOSE,
    DEATH,
    READY,
    RUN,
    SIG_SOFT_TIMEOUT,
    SIGKILL,
    SIGTERM,
    TERMINATE,
)
from .failures import captured
from .log import debug, error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from .results import Cache, Outcome


#: seconds between SIGTERM and SIGKILL for a worker over its hard limit
KILL_AFTER = 0.1


class WorkersJoined(Exception):
    """There are no workers left. Origin: billiard."""

    __module__ = "billiard.pool"


def stop_if_not_current(thread: Any, timeout: float | None = None) -> None:
    """Stop a handler, unless it is the one that is asking. Origin: billiard."""
    if thread is not threading.current_thread():
        thread.stop(timeout)


stop_if_not_current.__module__ = "billiard.pool"


def send_signal(pid: int, sig: int) -> None:
    """Send a signal, by way of the name that ``billiard.pool`` has for it."""
    getattr(sys.modules.get("billiard.pool"), "_kill", os.kill)(pid, sig)


def kill_if_there(pid: int, sig: int) -> None:
    try:
        send_signal(pid, sig)
    except OSError as exc:
        if get_errno(exc) != errno.ESRCH:
            raise


def end_worker(worker: Any, sig: int) -> bool:
    """Send SIGTERM or SIGKILL to a worker, and to its process group if it leads one."""
    debug("timeout: sending %s to %s", SIGMAP[sig], worker._name)
    try:
        group = os.getpgid(worker.pid)
    except (OSError, AttributeError):
        group = None
    try:
        if group == worker.pid:
            os.killpg(worker.pid, sig)
        elif sig == SIGKILL:
            send_signal(worker.pid, sig)
        else:
            worker.terminate()
    except OSError:
        return False
    return True


def _is_child(pid: int) -> bool:
    """Whether ``pid`` still belongs to a child of ours, running or not yet reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


class Unlocked:
    """A lock for those who need none."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        pass


UNLOCKED = Unlocked()


class Refused(Exception):
    """What a drive raises when it takes no more tasks of a sequence; with an ExceptionInfo."""


class PoolThread(DummyProcess):
    """A handler: a thread with a state (RUN, CLOSE, TERMINATE). Origin: billiard."""

    __module__ = "billiard.pool"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._state = RUN
        self._was_started = False
        self.daemon = True

    def body(self) -> None:
        """What the thread does."""
        raise NotImplementedError

    def run(self) -> None:
        try:
            return self.body()
        except RestartFreqExceeded as exc:
            error("Thread %r crashed: %r", type(self).__name__, exc, exc_info=True)
            # Whoever supervises this process is to start it anew.
            send_signal(os.getpid(), TERM_NUMBER)
            sys.exit()
        except Exception as exc:
            error("Thread %r crashed: %r", type(self).__name__, exc, exc_info=True)
            self.on_crash(exc)
        except BaseException as exc:
            # SystemExit of a hook of the user's.
            if "on_crash" not in vars(self):
                raise
            error("Thread %r crashed: %r", type(self).__name__, exc, exc_info=True)
            self.on_crash(exc)

    def on_crash(self, exc: BaseException) -> None:
        """The thread has failed, and the pool cannot go on without it."""
        os._exit(1)

    def start(self, *args: Any, **kwargs: Any) -> None:
        # Any thread may start a handler, not only the one that made it.
        self._was_started = self._start_called = True
        threading.Thread.start(self)

    def on_stop_not_started(self) -> None:
        """Stopped without having been a thread."""

    def stop(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most ``timeout`` seconds."""
        if self._was_started:
            self.join(timeout)
        else:
            self.on_stop_not_started()

    def terminate(self) -> None:
        """Have it end at once."""
        self._state = TERMINATE

    def close(self) -> None:
        """Have it end when its work is done."""
        self._state = CLOSE


class Supervisor(PoolThread):
    """Replaces workers that have exited. Origin: billiard.

    :param pool: the pool; held weakly, so that a pool that nobody uses can be collected.
    """

    __module__ = "billiard.pool"

    def __init__(self, pool: Any) -> None:
        from weakref import ref

        self._pool_ref = ref(pool)
        self._drive = getattr(pool, "_drive", None)
        super().__init__()

    @property
    def pool(self) -> Any:
        """The pool, None once it is gone."""
        return self._pool_ref()

    def body(self) -> None:
        debug("worker handler starting")
        failure, drive = None, self._drive
        while drive is not None and drive.wait_for_change():
            pool = self.pool
            if pool is None:
                drive.reap()
                continue
            try:
                pool._maintain_pool()
            except RestartFreqExceeded as exc:
                # Let everything end in an orderly way, then tell the program.
                failure = failure or exc
                drive.fail(ExceptionInfo())
                pool.close()
            except OSError as exc:
                # No process, descriptor or memory to be had now.
                drive.later()
                error("Could not start a worker: %r", exc)
            del pool
        debug("worker handler exiting")
        if failure is not None:
            raise failure


class TaskHandler(PoolThread):
    """Takes the sequences of tasks that were submitted, one task at a time. Origin: billiard.

    :param taskqueue: of ``(tasks, set_length)``, None at the end. :param put: hands a task over.
    :param outqueue: unused with drives of ours. :param pool: the workers. :param cache: the jobs.
    """

    __module__ = "billiard.pool"

    def __init__(self, taskqueue: Any, put: Any, outqueue: Any, pool: Any, cache: Cache) -> None:
        self.taskqueue = taskqueue
        self.put = put
        self.outqueue = outqueue
        self.pool = pool
        self.cache = cache
        super().__init__()

    def body(self) -> None:
        ends = False
        while not (ends and self.taskqueue.empty()):
            item = self.taskqueue.get()
            if item is None:
                # What was being submitted meanwhile is behind it.
                ends = True
                continue
            tasks, set_length = item
            del item
            if not self._feed(tasks, set_length):
                debug("task handler found thread._state != RUN")
                break
            # While it waits, the thread must not keep the last tasks alive.
            del tasks, set_length
            self.taskqueue.task_done()
        self.tell_others()

    def _feed(self, tasks: Any, set_length: Callable[[int], object] | None) -> bool:
        """Hand over a sequence of tasks; false if the pool does not want any more."""
        count = 0
        task: Any = None
        try:
            for task in tasks:
                if self._state:
                    return False
                count += 1
                self._feed_one(task)
                task = None
        except Refused as refusal:
            _, (job, i, *_) = task
            self.answer(job, i, (False, refusal.args[0]))
        except BaseException:
            # The iterable that the user gave has failed: so has the job, here. This thread has
            # others to feed, also if it was SystemExit.
            self.answer(getattr(tasks, "job", None), count, (False, ExceptionInfo()))
            count += 1
        if set_length:
            debug("doing set_length()")
            set_length(count)
        return True

    def _feed_one(self, task: Any) -> None:
        try:
            self.put(task)
        except (OSError, Refused):
            debug("could not put task on queue")
            raise
        except Exception:
            _, (job, i, *_) = task
            if not self._state:
                self.answer(job, i, (False, ExceptionInfo()))

    def answer(self, job: int | None, i: int | None, outcome: Outcome) -> None:
        """Bring the outcome of a task that could not be handed over; the drive may do it."""
        result = self.cache.get(job)  # type: ignore[arg-type]
        if result is not None:
            result._set(i, outcome)

    def tell_others(self) -> None:
        """Tell workers and result handler that there will be no more tasks."""
        try:
            debug("task handler sending sentinel to result handler")
            self.outqueue.put(None)
            debug("task handler sending sentinel to workers")
            for _ in self.pool:
                self.put(None)
        except OSError:
            debug("task handler got OSError when sending sentinels")
        debug("task handler exiting")

    def on_stop_not_started(self) -> None:
        self.tell_others()


class TimeoutHandler(PoolThread):
    """Enforces time limits. Origin: billiard.

    :param processes: the workers. :param cache: the jobs.
    :param t_soft: soft limit in seconds of jobs that have none. :param t_hard: hard limit.
    """

    __module__ = "billiard.pool"

    def __init__(
        self, processes: Any, cache: Cache, t_soft: float | None, t_hard: float | None
    ) -> None:
        self.processes = processes
        self.cache = cache
        self.t_soft = t_soft
        self.t_hard = t_hard
        self._it: Iterator[None] | None = None
        #: what the thread does, and how to have it look up: the drive's
        self.watch: Callable[[], object] = lambda: None
        self.poke: Callable[[], object] = lambda: None
        super().__init__()

    def _process_by_pid(self, pid: int | None) -> tuple[Any, int | None]:
        for i, process in enumerate(self.processes):
            if process.pid == pid:
                return process, i
        return None, None

    def on_soft_timeout(self, job: Any) -> None:
        """Tell a job's owner and its worker that the soft limit has passed."""
        debug("soft time limit exceeded for %r", job)
        process, _ = self._process_by_pid(job._worker_pid)
        if process:
            job.handle_timeout(soft=True)
            assert SIG_SOFT_TIMEOUT is not None
            kill_if_there(job._worker_pid, SIG_SOFT_TIMEOUT)

    def on_hard_timeout(self, job: Any) -> None:
        """Fail a job and end its worker."""
        if job.ready():
            return
        debug("hard time limit exceeded for %r", job)
        job._set(job._job, (False, captured(TimeLimitExceeded(job._timeout))))
        process, _ = self._process_by_pid(job._worker_pid)
        job.handle_timeout(soft=False)
        if process:
            self._trywaitkill(process)

    def _trywaitkill(self, worker: Any) -> None:
        """End a worker: kindly first, then at once."""
        if not (end_worker(worker, SIGTERM) and worker._popen.wait(timeout=KILL_AFTER)):
            end_worker(worker, SIGKILL)

    def handle_timeouts(self) -> Iterator[None]:
        """Look at all jobs, again with every step of the iterator. For the passive drive."""
        warned: set[int] = set()
        while self._state == RUN:
            # A copy: the jobs change meanwhile.
            jobs = self.cache.copy()
            warned.intersection_update(jobs)
            now = monotonic()
            for number, job in jobs.items():
                started = getattr(job, "_time_accepted", None)
                if not isinstance(started, (int, float)):
                    continue
                hard = self.t_hard if job._timeout is None else job._timeout
                soft = self.t_soft if job._soft_timeout is None else job._soft_timeout
                if hard and now >= started + hard:
                    self.on_hard_timeout(job)
                elif soft and number not in warned and now >= started + soft:
                    self.on_soft_timeout(job)
                    warned.add(number)
            yield

    def body(self) -> None:
        self.watch()

    def terminate(self) -> None:
        super().terminate()
        self.poke()

    def handle_event(self, *args: Any) -> None:
        """Look at all jobs now. For the passive drive."""
        if self._it is None:
            self._it = self.handle_timeouts()
        if next(self._it, self) is self:
            self._it = None


class ResultHandler(PoolThread):
    """Brings what workers report into the book. Origin: billiard; Celery subclasses it.

    :param outqueue: where messages come from. :param get: takes one.
    :param cache: the jobs. :param poll: waits for a message, so many seconds.
    :param join_exited_workers: reaps. :param putlock: bounds the jobs under way.
    :param restart_state: is told that workers do work. :param check_timeouts: enforces limits
        while the pool shuts down. :param on_job_ready: is told of every result.
    :param on_ready_counters: pid -> shared value, the number of results read from that worker.
    """

    __module__ = "billiard.pool"

    #: message kind -> function for its arguments; more kinds can be added
    state_handlers: dict[int, Callable[..., object]]
    on_state_change: Callable[[Any], object]
    on_worker_exit: Callable[[int], object]
    #: seconds that the thread waits for a message, None for any time
    patience: float | None = 1.0

    def __init__(
        self,
        outqueue: Any,
        get: Any,
        cache: Cache,
        poll: Any,
        join_exited_workers: Any,
        putlock: Any,
        restart_state: Any,
        check_timeouts: Any,
        on_job_ready: Any,
        on_ready_counters: Any = None,
    ) -> None:
        self.outqueue = outqueue
        self.get = get
        self.cache = cache
        self.poll = poll
        self.join_exited_workers = join_exited_workers
        self.putlock = putlock
        self.restart_state = restart_state
        self._it: Iterator[None] | None = None
        self._shutdown_complete = False
        self.check_timeouts = check_timeouts
        self.on_job_ready = on_job_ready
        self.on_ready_counters = on_ready_counters
        #: whether it is this handler that counts results, not the workers themselves
        self.counts = True
        #: held by the thread while it handles a message
        self.turn: AbstractContextManager[None] = UNLOCKED
        #: called by the thread when it ends
        self.on_end: Callable[[], object] = self.finish_at_shutdown
        self._make_methods()
        super().__init__()

    def _make_methods(self) -> None:
        cache, counters = self.cache, self.on_ready_counters
        # Which worker runs which task: a result counts for the worker that sent it, whether or
        # not its job is still in the cache.
        task_of: dict[int, tuple[int, int | None]] = {}
        worker_of: dict[tuple[int, int | None], int] = {}

        def forget(pid: int | None) -> None:
            worker_of.pop(task_of.pop(pid, None), None)  # type: ignore[arg-type]

        def on_ack(
            job: int, i: int | None, time_accepted: float, pid: int, synqW_fd: int | None
        ) -> None:
            self.restart_state.R = 0
            if self.counts and counters is not None:
                forget(pid)
                task_of[pid] = (job, i)
                worker_of[job, i] = pid
            result = cache.get(job)
            if result is not None:
                result._ack(i, time_accepted, pid, synqW_fd)

        def on_ready(job: int, i: int | None, obj: Outcome, inqW_fd: int | None) -> None:
            if self.on_job_ready is not None:
                self.on_job_ready(job, i, obj, inqW_fd)
            pid = worker_of.pop((job, i), None)
            task_of.pop(pid, None)  # type: ignore[arg-type]
            if self.counts and counters and pid in counters:
                counter = counters[pid]
                with counter.get_lock():
                    counter.value += 1
            result = cache.get(job)
            if result is None:
                return
            if self.putlock is not None and not result.ready():
                self.putlock.release()
            result._set(i, obj)

        def on_death(pid: int, exitcode: int) -> None:
            # It is about to exit anyway; this is for one that hangs on the way. A pid that has
            # been reaped may be somebody else's by now.
            if _is_child(pid):
                kill_if_there(pid, TERM_NUMBER)

        def on_state_change(task: Any) -> None:
            state, args = task
            handler = self.state_handlers.get(state)
            if handler is None:
                debug("Unknown job state: %s (args=%s)", state, args)
            else:
                handler(*args)

        self.state_handlers = {ACK: on_ack, READY: on_ready, DEATH: on_death}
        self.on_state_change = on_state_change
        # A worker that is killed within a task never reports it ready.
        self.on_worker_exit = forget

    def _process_result(self, timeout: float | None = 1.0) -> Iterator[None]:
        """Handle messages: all that are there if ``timeout`` is 0, otherwise one."""
        while True:
            try:
                ready, task = self.poll(timeout)
            except (OSError, EOFError) as exc:
                debug("result handler got %r -- exiting", exc)
                raise CoroStop from None
            if self._state:
                debug("result handler found thread._state=TERMINATE")
                raise CoroStop
            if not ready:
                break
            if task is None:
                debug("result handler got sentinel")
                raise CoroStop
            self.on_state_change(task)
            if timeout != 0:
                break
            yield

    def handle_event(self, fileno: int | None = None, events: Any = None) -> None:
        """Handle a message, if there is one. For the passive drive."""
        if self._state == RUN:
            if self._it is None:
                self._it = self._process_result(0)
            try:
                next(self._it)
            except (StopIteration, CoroStop):
                self._it = None

    def body(self) -> None:
        debug("result handler starting")
        try:
            while self._state == RUN:
                try:
                    ready, task = self.poll(self.patience)
                except (OSError, EOFError) as exc:
                    debug("result handler got %r -- exiting", exc)
                    break
                if ready:
                    if task is None:
                        debug("result handler got sentinel")
                        break
                    with self.turn:
                        self._receive(task)
                    del task
        finally:
            self.on_end()

    def _receive(self, task: Any) -> None:
        try:
            self.on_state_change(task)
        except BaseException as exc:
            # A callback's, also if it is SystemExit, which there is nobody above to take. The other
            # jobs go on.
            error("Result handler: %r", exc, exc_info=True)

    def on_stop_not_started(self) -> None:
        self.finish_at_shutdown(handle_timeouts=True)

    def finish_at_shutdown(self, handle_timeouts: bool = False) -> None:
        """Go on until all jobs are done, or five seconds after the last worker has gone."""
        self._shutdown_complete = True
        gone_since = None
        while self.cache and self._state != TERMINATE:
            if self.check_timeouts is not None:
                self.check_timeouts()
            try:
                # Without workers only what is in the queue can come.
                ready, task = self.poll(1.0 if gone_since is None else 0.1)
            except (OSError, EOFError) as exc:
                debug("result handler got %r -- exiting", exc)
                return
            if ready:
                if task is None:
                    debug("result handler ignoring extra sentinel")
                    continue
                self.on_state_change(task)
            try:
                self.join_exited_workers(shutdown=True)
            except WorkersJoined:
                gone_since = gone_since or monotonic()
                if monotonic() - gone_since > 5.0:
                    debug("result handler exiting: timed out")
                    break
        self._make_room()
        debug("result handler exiting: len(cache)=%s, state=%s", len(self.cache), self._state)

    def _make_room(self) -> None:
        """Empty the queue, so that the sentinels that are still to come do not block."""
        if getattr(self.outqueue, "_reader", None) is None:
            return
        debug("ensuring that outqueue is not full")
        try:
            for _ in range(10):
                if not self.outqueue._reader.poll():
                    break
                self.get()
        except (OSError, EOFError):
            pass
