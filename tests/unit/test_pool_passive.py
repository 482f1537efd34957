"""billiard.pool without threads: what an event loop of somebody else's relies on.

The messages, their order, the exit codes and the hooks were compared with billiard 4.3.2.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pool_tasks import (
    PATIENCE,
    Gate,
    PicklesOnly,
    die,
    eventually,
    fail,
    fail_twice,
    leave,
    make,
    nap,
    pid,
    set_and_wait,
    square,
    wait_for,
)

import billiard
from billiard import compat
from billiard import pool as pool_module
from billiard.connection import wait
from billiard.einfo import ExceptionInfo
from billiard.exceptions import (
    RestartFreqExceeded,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from billiard.pool import ACK, DEATH, EX_RECYCLE, NACK, READY, TASK, Pool
from billiard.queues import _SimpleQueue

fork: Any = billiard.get_context("fork")
WORKER_UP = 15


# ---- a plain pool, driven by hand ----


@pytest.fixture
def make_pool() -> Iterator[Any]:
    pools: list[Any] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        pools.append(Pool(*args, threads=False, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.terminate()


def drive_until(pool: Any, condition: Any) -> None:
    """What an event loop does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        if pool._outqueue._reader.poll(0.01):
            pool.handle_result_event()
        pool.maintain_pool()
        if pool._timeout_handler:
            pool._timeout_handler.handle_event()


def test_nothing_happens_by_itself(make_pool: Any) -> None:
    before = threading.active_count()
    pool = make_pool(2, enable_timeouts=True)
    result = pool.apply_async(square, (3,))
    assert threading.active_count() == before
    assert pool._outqueue._reader.poll(PATIENCE)
    time.sleep(0.05)
    assert not result.ready()
    drive_until(pool, result.ready)
    assert result.get() == 9 and not pool._cache
    for handler in (pool._worker_handler, pool._task_handler, pool._result_handler):
        assert not handler.is_alive()


def test_results_errors_and_lost_workers(make_pool: Any) -> None:
    pool = make_pool(2, lost_worker_timeout=0.3)
    errors: list[Any] = []
    good = pool.apply_async(square, (3,))
    bad = pool.apply_async(fail, ("why",), error_callback=errors.append)
    drive_until(pool, lambda: good.ready() and bad.ready())
    assert good.get() == 9
    with pytest.raises(LookupError):
        bad.get()
    assert isinstance(errors[0], ExceptionInfo)
    lost = pool.apply_async(die, error_callback=errors.append)
    began = time.monotonic()
    drive_until(pool, lost.ready)
    # A result might still be on its way in the shared queue: not earlier.
    assert time.monotonic() - began >= 0.3
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        lost.get()
    assert len(errors) == 2
    last = pool.apply_async(square, (5,))
    drive_until(pool, last.ready)
    assert last.get() == 25


def test_a_job_is_lost_although_its_worker_was_reaped_before_the_ack_was_read(
    make_pool: Any,
) -> None:
    pool = make_pool(1, lost_worker_timeout=0.1)
    worker = pool._pool[0]
    lost = pool.apply_async(die)
    assert wait([worker.sentinel], PATIENCE)
    pool.maintain_pool()
    assert worker not in pool._pool and not lost.accepted()
    drive_until(pool, lost.ready)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        lost.get()


def test_what_does_not_arrive_fails_its_own_job(make_pool: Any) -> None:
    pool = make_pool(1)
    worker = pool._pool[0].pid
    broken = pool.apply_async(fail_twice)
    good = pool.apply_async(pid)
    drive_until(pool, good.ready)
    assert good.get() == worker
    with pytest.raises(pool_module.MaybeEncodingError):
        broken.get()


def test_a_task_that_cannot_be_read_fails_when_it_is_run(make_pool: Any) -> None:
    pool = make_pool(1)
    worker = pool._pool[0].pid
    unreadable = pool.apply_async(square, (PicklesOnly(),))
    nested = pool.apply_async(square, ([{"a": PicklesOnly()}],), {"x": PicklesOnly()})
    good = pool.apply_async(pid)
    drive_until(pool, good.ready)
    assert good.get() == worker
    for result in (unreadable, nested):
        with pytest.raises(ValueError, match="not a number"):
            result.get()


def test_limits(make_pool: Any) -> None:
    pool = make_pool(1, enable_timeouts=True)
    log: list[Any] = []
    first = pool.apply_async(pid)  # the worker is up, and has imported what tasks need
    drive_until(pool, first.ready)
    soft = pool.apply_async(
        nap,
        (PATIENCE,),
        soft_timeout=1,
        timeout_callback=lambda **kwargs: log.append(kwargs),
    )
    drive_until(pool, soft.ready)
    with pytest.raises(SoftTimeLimitExceeded):
        soft.get()
    assert log == [{"soft": True, "timeout": 1}]
    worker = pool._pool[0]
    hard = pool.apply_async(nap, (PATIENCE,), timeout=0.1)
    drive_until(pool, hard.ready)
    with pytest.raises(TimeLimitExceeded):
        hard.get()
    worker.join(PATIENCE)
    assert worker.exitcode is not None


def test_jobs_can_be_terminated(make_pool: Any) -> None:
    pool = make_pool(1)
    result = pool.apply_async(nap, (PATIENCE,))
    drive_until(pool, result.accepted)
    pool.terminate_job(result.worker_pids()[0], signal.SIGKILL)
    drive_until(pool, result.ready)
    with pytest.raises(Terminated):
        result.get()


def test_exit_codes(make_pool: Any) -> None:
    down: list[Any] = []
    pool = make_pool(1, maxtasksperchild=2, on_process_down=down.append)
    results = [pool.apply_async(pid) for _ in range(2)]
    drive_until(pool, lambda: len(down) == 1)
    assert down[0].exitcode == EX_RECYCLE == 155
    assert {r.get() for r in results} == {down[0].pid}
    result = pool.apply_async(leave, (7,))
    drive_until(pool, lambda: len(down) == 2)
    assert down[1].exitcode == 7
    with pytest.raises(SystemExit):
        result.get()
    os.kill(pool._pool[0].pid, signal.SIGTERM)
    drive_until(pool, lambda: len(down) == 3)
    assert down[2].exitcode in (15, -15)


def test_too_many_restarts_close_the_pool(make_pool: Any) -> None:
    pool = make_pool(1, initializer=die, max_restarts=3, max_restart_freq=60)
    with pytest.raises(RestartFreqExceeded):
        drive_until(pool, lambda: False)
    with pytest.raises(ValueError, match="not running"):
        pool.apply_async(square, (1,))


def test_closing_delivers_what_is_on_its_way() -> None:
    pool = Pool(2, threads=False)
    results = [pool.apply_async(square, (i,)) for i in range(8)]
    eventually(lambda: pool._inqueue.empty())
    pool.close()
    pool.join()
    Pool._terminate_pool(
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
    pool._terminate.cancel()
    assert [r.get(0) for r in results] == [i * i for i in range(8)]


def test_a_worker_that_is_added_while_the_pool_is_terminated_is_ended_too() -> None:
    workers, late = [Mock()], Mock()
    supervisor, tasks = Mock(), Mock()
    supervisor.stop.side_effect = lambda timeout=None: workers.append(late)
    tasks.is_alive.return_value = False
    Pool._terminate_pool(
        Mock(), Mock(), Mock(), workers, supervisor, tasks, Mock(), {}, None, (Mock(), tasks, [])
    )
    for worker in (workers[0], late):
        worker.terminate.assert_called_once_with()


# ---- the handlers, as Celery uses them ----


def test_results_are_counted_for_the_worker_that_sent_them() -> None:
    counters = {101: fork.Value("i"), 102: fork.Value("i")}
    cache: dict[int, Any] = {}
    handler = pool_module.ResultHandler(
        None, None, cache, None, None, None, Mock(), None, None, on_ready_counters=counters
    )
    on_ack, on_ready = handler.state_handlers[ACK], handler.state_handlers[READY]
    result = pool_module.MapResult(cache, 1, 2, None, None)
    on_ack(result._job, 0, 1.0, 101, None)
    on_ack(result._job, 1, 1.0, 102, None)
    on_ready(result._job, 0, (True, [0]), None)
    on_ready(result._job, 1, (True, [1]), None)
    assert result.get(0) == [0, 1]
    assert [c.value for c in counters.values()] == [1, 1]
    # A job that nobody knows any more counts as well; one of a dead worker does not.
    on_ack(7_000_000, None, 1.0, 102, None)
    on_ready(7_000_000, None, (True, None), None)
    on_ack(7_000_001, None, 1.0, 101, None)
    handler.on_worker_exit(101)
    on_ready(7_000_001, None, (True, None), None)
    assert [c.value for c in counters.values()] == [1, 2]


def test_unknown_messages_are_ignored() -> None:
    handler = pool_module.ResultHandler(None, None, {}, None, None, None, Mock(), None, None)
    handler.on_state_change((4711, ("what",)))


def test_death_is_hurried_on_only_for_children() -> None:
    handler = pool_module.ResultHandler(None, None, {}, None, None, None, Mock(), None, None)
    process = fork.Process(target=nap, args=(PATIENCE,))
    process.start()
    handler.on_state_change((DEATH, (process.pid, 0)))
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGTERM
    # It is nobody's pid, or somebody else's, by now.
    handler.on_state_change((DEATH, (process.pid, 0)))
    handler.on_state_change((DEATH, (os.getppid(), 0)))


def test_an_ack_is_answered_if_it_has_to_be() -> None:
    answers: list[Any] = []

    def refuse(*args: Any) -> None:
        raise LookupError

    for accept, cancelled, expected in (
        (None, False, ACK),
        (refuse, False, NACK),
        (None, True, NACK),
    ):
        job = pool_module.ApplyResult({}, None, accept, send_ack=lambda *args: answers.append(args))
        if cancelled:
            job._cancel()
        job._ack(None, 1.0, 77, 5)
        assert answers.pop() == (expected, 77, job._job, 5)
        assert job.accepted()
        job._ack(None, 1.0, 77, None)
        assert not answers


def test_a_result_may_overtake_its_ack() -> None:
    cache: dict[int, Any] = {}
    job = pool_module.ApplyResult(cache, None, send_ack=Mock())
    job._set(None, (True, 5))
    assert job.get(0) == 5 and cache
    job._ack(None, 1.0, 77, None)
    assert not cache


def test_only_the_first_outcome_counts() -> None:
    log: list[Any] = []
    job = pool_module.ApplyResult({}, log.append, error_callback=log.append)
    job._ack(None, 1.0, 77, None)
    job._set_terminated(-9)
    job._set(None, (True, 5))
    with pytest.raises(Terminated) as caught:
        job.get(0)
    assert caught.value.args == (9,)
    assert len(log) == 1 and log[0].type is Terminated


def test_jobs_lock_themselves_with_what_the_module_names(monkeypatch: Any) -> None:
    lock = Mock(__enter__=Mock(), __exit__=Mock(return_value=False))
    monkeypatch.setattr(pool_module, "Lock", lambda: lock)
    assert pool_module.ApplyResult({}, None)._mutex is lock


def test_a_worker_that_leads_a_group_is_ended_with_it(monkeypatch: Any) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(pool_module, "_kill", lambda *args: sent.append(args))
    monkeypatch.setattr(os, "killpg", lambda *args: sent.append(("group", *args)))
    handler = pool_module.TimeoutHandler([], {}, None, None)
    worker = Mock(pid=4242)
    worker._popen.wait.return_value = None
    monkeypatch.setattr(os, "getpgid", lambda pid: pid)
    handler._trywaitkill(worker)
    assert sent == [("group", 4242, signal.SIGTERM), ("group", 4242, signal.SIGKILL)]
    sent.clear()
    monkeypatch.setattr(os, "getpgid", lambda pid: 1)
    handler._trywaitkill(worker)
    worker.terminate.assert_called_once_with()
    assert sent == [(4242, signal.SIGKILL)]
    worker._popen.wait.return_value = -15
    sent.clear()
    handler._trywaitkill(worker)
    assert not sent


def test_dying_workers_block_the_signal_that_death_provokes(monkeypatch: Any) -> None:
    blocked: list[bool] = []
    worker = pool_module.Worker.__new__(pool_module.Worker)
    worker.on_exit = None
    worker.outq = Mock()
    worker.outq.put = lambda message: blocked.append(
        signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    )
    monkeypatch.setattr(os, "_exit", lambda status: blocked.append(status))
    monkeypatch.setattr(worker, "_flush", lambda: None)
    worker._do_exit(1, 3)
    assert blocked == [True, 3]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# ---- a pool like Celery's: queues of their own, written to and read from by the loop ----


class LoopWorker(pool_module.Worker):
    def on_loop_start(self, pid: int) -> None:
        self.outq.put((WORKER_UP, (pid,)))


class LoopPool(Pool):
    """One pair of pipes per worker; ``log`` has every message in its order."""

    Worker = LoopWorker

    def __init__(self, processes: int, **kwargs: Any) -> None:
        self.log: list[Any] = []
        self.free = [self.make_queues(kwargs.get("synack")) for _ in range(processes)]
        kwargs.setdefault("on_process_down", lambda worker: None)
        super().__init__(processes, threads=False, **kwargs)
        self._result_handler.state_handlers[WORKER_UP] = lambda pid: None
        self._quick_put = self.write

    @staticmethod
    def make_queues(synack: Any) -> tuple[Any, Any, Any]:
        return (
            _SimpleQueue(wnonblock=True),
            _SimpleQueue(rnonblock=True),
            _SimpleQueue(wnonblock=True) if synack else None,
        )

    def _setup_queues(self) -> None:
        self._inqueue = self._outqueue = self._quick_put = None
        self._quick_get = self._poll_result = None

    def get_process_queues(self) -> tuple[Any, Any, Any]:
        return self.free.pop(0)

    def _process_cleanup_queues(self, worker: Any) -> None:
        self.free.append((worker.inq, worker.outq, worker.synq))

    def write(self, task: Any) -> None:
        job = self._cache[task[1][0]]
        worker = job._scheduled_for = self._pool[0]
        body = pickle.dumps(task)
        frame = memoryview(len(body).to_bytes(4, "big") + body)
        sent = 0
        while sent < len(frame):
            sent += worker.send_job_offset(frame, sent)
        job._write_to = worker

    def send_ack(self, response: int, job: int, i: Any, fd: int) -> None:
        (worker,) = [w for w in self._pool if w.synqW_fd == fd]
        body = pickle.dumps((response, (0,)))
        worker.send_syn_offset(memoryview(len(body).to_bytes(4, "big") + body), 0)

    def process_flush_queues(self, worker: Any) -> None:
        reader = worker.outq._reader
        while reader.poll(0):
            self.take(reader.recv())

    def on_job_process_lost(self, job: Any, pid: int, exitcode: int | None) -> None:
        self.mark_as_worker_lost(job, exitcode)

    def take(self, message: Any) -> None:
        self.log.append(message)
        self._result_handler.on_state_change(message)

    def turn(self) -> None:
        """A turn of the loop."""
        readers = {w.outq._reader: w for w in self._pool}
        for ready in wait([*readers, *self.process_sentinels], 0.05):
            if ready in readers:
                self.take(ready.recv())
        self.maintain_pool()

    @staticmethod
    def _stop_task_handler(task_handler: Any) -> None:
        for worker in task_handler.pool:
            compat.setblocking(worker.inq._writer, 1)
            try:
                worker.inq.put(None)
            except OSError as exc:
                assert exc.errno in (errno.EBADF, errno.EPIPE)

    @classmethod
    def _set_result_sentinel(cls, outqueue: Any, pool: Any) -> None:
        pass

    def _help_stuff_finish_args(self) -> tuple[Any, ...]:
        return (self._pool,)

    @staticmethod
    def _help_stuff_finish(pool: Any) -> None:  # type: ignore[override]
        pass


@pytest.fixture
def make_loop_pool() -> Iterator[Any]:
    pools: list[Any] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        pools.append(LoopPool(*args, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool._result_handler.terminate()
        pool.terminate()
        for queues in (*pool.free, *((w.inq, w.outq, w.synq) for w in pool._pool)):
            for queue in queues:
                if queue is not None:
                    queue.close()


def turn_until(pool: Any, condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        pool.turn()


def test_messages_of_a_worker(ctx: Any, make_loop_pool: Any) -> None:
    pool = make_loop_pool(1, context=ctx, maxtasksperchild=2)
    worker = pool._pool[0]
    for name in ("inqW_fd", "outqR_fd"):
        assert isinstance(getattr(worker, name), int)
    assert worker.synqW_fd is worker.synqR_fd is worker._send_syn_offset is None
    assert compat.isblocking(worker.inq._reader) and compat.isblocking(worker.outq._writer)
    assert not compat.isblocking(worker.inq._writer)
    inq = worker.inqW_fd
    began = time.monotonic()
    good, bad = pool.apply_async(square, (3,)), pool.apply_async(fail, ("why",))
    turn_until(pool, lambda: DEATH in [kind for kind, _ in pool.log])
    kinds = [kind for kind, _ in pool.log]
    assert kinds == [WORKER_UP, ACK, READY, ACK, READY, DEATH]
    up, ack, ready, _, failed, death = [args for _, args in pool.log]
    assert up == (worker.pid,)
    job, i, accepted, accepted_by, synq = ack
    assert (job, i, accepted_by, synq) == (good._job, None, worker.pid, None)
    assert began < accepted < time.monotonic()
    assert ready == (good._job, None, (True, 9), inq)
    assert failed[:2] == (bad._job, None) and failed[3] == inq
    success, info = failed[2]
    assert not success and isinstance(info, ExceptionInfo) and info.exception.args == ("why",)
    assert death == (worker.pid, EX_RECYCLE)


def test_leave_to_run_has_to_be_given(make_loop_pool: Any) -> None:
    pool = make_loop_pool(1, synack=True)
    worker = pool._pool[0]
    good, cancelled = pool.apply_async(square, (3,)), pool.apply_async(square, (4,))
    cancelled._cancel()
    last = pool.apply_async(square, (5,))
    turn_until(pool, last.ready)
    assert (good.get(), last.get()) == (9, 25)
    acks = [args for kind, args in pool.log if kind == ACK]
    assert [args[0] for args in acks] == [good._job, cancelled._job, last._job]
    assert {args[4] for args in acks} == {worker.synqW_fd}
    ready = [args[0] for kind, args in pool.log if kind == READY]
    assert ready == [good._job, last._job]


def test_a_lost_worker_s_results_come_first(make_loop_pool: Any, tmp_path: Path) -> None:
    pool = make_loop_pool(1)
    begun = Gate(tmp_path)
    done = pool.apply_async(square, (3,))
    lost = pool.apply_async(set_and_wait, (begun, Gate(tmp_path)))
    assert begun.wait()
    worker = pool._pool[0]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(PATIENCE)
    # Nothing has been read yet; the queues of the dead are flushed before it is judged.
    pool.maintain_pool()
    assert done.get(0) == 9
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        lost.get(0)
    again = pool.apply_async(square, (5,))
    turn_until(pool, again.ready)
    assert again.get() == 25


def test_jobs_know_where_they_were_written(make_loop_pool: Any, tmp_path: Path) -> None:
    pool = make_loop_pool(1)
    gate = Gate(tmp_path)
    down: list[Any] = []
    pool.on_job_process_down = lambda job, pid: down.append((job, pid))
    first = pool.apply_async(wait_for, (gate,))
    second = pool.apply_async(square, (3,))
    turn_until(pool, first.accepted)
    worker = pool._pool[0]
    assert first._write_to is worker and second._scheduled_for is worker
    os.kill(worker.pid, signal.SIGKILL)
    turn_until(pool, first.ready)
    assert sorted(down, key=lambda entry: entry[0]._job) == [
        (first, worker.pid),
        (second, worker.pid),
    ]
    assert not second.ready()
    second.discard()


def test_a_late_soft_limit_does_not_end_an_idle_worker(make_loop_pool: Any) -> None:
    pool = make_loop_pool(1)
    first = pool.apply_async(pid)
    turn_until(pool, first.ready)
    os.kill(first.get(), signal.SIGUSR1)
    second = pool.apply_async(pid)
    turn_until(pool, second.ready)
    assert second.get() == first.get()


def test_results_that_cannot_be_sent(make_loop_pool: Any) -> None:
    pool = make_loop_pool(1)
    result = pool.apply_async(make, (threading.Lock,))
    turn_until(pool, result.ready)
    with pytest.raises(pool_module.MaybeEncodingError):
        result.get()


def test_a_warm_end_with_a_task_under_way(make_loop_pool: Any, tmp_path: Path) -> None:
    pool = make_loop_pool(1)
    gate = Gate(tmp_path)
    result = pool.apply_async(wait_for, (gate, 5))
    turn_until(pool, result.accepted)
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.apply_async(square, (1,))
    worker = pool._pool[0]
    threading.Timer(0.1, gate.set).start()
    # Celery's result handler reads the queues while it shuts down.
    pool._result_handler.finish_at_shutdown = lambda **kwargs: turn_until_shut(pool)
    pool.join()
    assert result.get(0) == 5
    worker.join(PATIENCE)
    assert worker.exitcode == 0


def turn_until_shut(pool: Any) -> None:
    while pool._cache:
        pool.turn()


def come_back() -> int:
    """The exit code of a child that comes back from this task, too."""
    child = os.fork()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0


def test_a_child_that_comes_back_from_a_task_is_no_worker(make_pool: Any) -> None:
    pool = make_pool(1)
    for _ in range(3):
        result = pool.apply_async(come_back)
        drive_until(pool, result.ready)
        assert result.get(0) == 0


def test_a_worker_s_parts_can_be_made_without_a_pool() -> None:
    inq, outq = _SimpleQueue(), _SimpleQueue()
    worker = pool_module.Worker(inq, outq, maxtasks=2)
    cls, args, numbers = worker.__reduce__()
    assert numbers["inqW_fd"] == inq._writer.fileno()
    assert cls is pool_module.Worker and args[:2] == (inq, outq) and args[5] == 2
    other = cls(*args)
    assert other.inqW_fd == inq._writer.fileno()  # type: ignore[attr-defined]
    worker._make_child_methods()
    inq.put((TASK, (1, None, square, (2,), {})))
    assert worker.wait_for_job()[1][0] == 1
    inq.put(None)
    with pytest.raises(SystemExit):
        worker.wait_for_job()
    inq._writer.close()
    with pytest.raises(SystemExit):
        worker.wait_for_job()
    for maxtasks in (0, -1, True, 1.5):
        with pytest.raises(ValueError):
            pool_module.Worker(_SimpleQueue(), outq, maxtasks=maxtasks)
    inq.close()
    outq.close()
