"""billiard.pool: workers come and go; pools of threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import (
    PATIENCE,
    ExitNote,
    Gate,
    allocate,
    die,
    eventually,
    fail,
    initialize_badly,
    leave,
    nap,
    pid,
    pool_of,
    square,
    wait_for,
)

import billiard
from billiard import _core
from billiard import pool as pool_module
from billiard.exceptions import Terminated, WorkerLostError
from billiard.pool import EX_RECYCLE, Pool, ThreadPool

fork: Any = billiard.get_context("fork")


def pids(pool: Any) -> set[int]:
    return {worker.pid for worker in list(pool._pool)}


# ---- lives ----


def test_a_worker_is_replaced_after_so_many_tasks(ctx: Any) -> None:
    with pool_of(ctx, 2, maxtasksperchild=3) as pool:
        done = pool.map(pid, range(18), 1)
        assert all(done.count(worker) <= 3 for worker in set(done))
        assert len(set(done)) >= 6
        eventually(lambda: len(pool._pool) == 2)


def test_tasks_given_ahead_do_not_make_a_worker_do_more_than_its_share() -> None:
    with pool_of(fork, 2, maxtasksperchild=50) as pool:
        done = list(pool.imap_unordered(pid, range(1000)))
        counts = [done.count(worker) for worker in set(done)]
        assert max(counts) <= 50 and len(done) == 1000


def test_a_worker_is_replaced_when_it_has_used_too_much_memory() -> None:
    # A forked worker begins with what this process has.
    limit = _core.resident_kib() + 200_000
    with pool_of(fork, 1, max_memory_per_child=limit) as pool:
        first = pool.apply(allocate, (1,))
        assert pool.apply(allocate, (1,)) == first
        # What it has given back does not count.
        assert pool.apply(allocate, (300,)) == first
        assert pool.apply(allocate, (300, True)) == first
        assert pool.apply(allocate, (1,)) != first


def test_hooks_see_workers_come_and_go() -> None:
    up: list[Any] = []
    down: list[Any] = []
    with pool_of(fork, 1, on_process_up=up.append, on_process_down=down.append) as pool:
        assert [worker.pid for worker in up] == list(pids(pool))
        first = pool._pool[0]
        with pytest.raises(WorkerLostError):
            pool.apply(die)
        assert pool.apply(square, (3,)) == 9
        eventually(lambda: len(up) == 2)  # told after the start
        assert up == [first, pool._pool[0]] and down == [first]
        assert first.exitcode == -signal.SIGKILL
        assert first.name.startswith("ForkPoolWorker-") and first.daemon
        assert (first.index, pool._pool[0].index) == (0, 0)


def test_a_worker_tells_that_it_exits(ctx: Any) -> None:
    queue = ctx.SimpleQueue()
    pool = ctx.Pool(1, maxtasksperchild=1, on_process_exit=ExitNote(queue))
    first = pool.apply(pid)
    assert queue.get() == (first, EX_RECYCLE)
    with pytest.raises(SystemExit):
        pool.apply(leave, (5,))
    assert queue.get()[1] == 5
    pool.terminate()
    pool.join()
    pool = ctx.Pool(1, on_process_exit=ExitNote(queue))
    first = pool.apply(pid)
    pool.close()
    pool.join()
    while (last := queue.get())[0] != first:
        pass  # one of the terminated pool
    assert last == (first, 0)
    queue.close()


def test_what_the_last_task_printed_or_queued_is_not_lost(tmp_path: Path) -> None:
    package = str(Path(billiard.__file__).parents[1])
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import billiard\n"
            "from pool_tasks import initialize, print_unflushed\n"
            "queue = billiard.Queue()\n"
            "def put(x): queue.put('x' * x)\n"
            "pool = billiard.Pool(1, maxtasksperchild=1)\n"
            "pool.apply(print_unflushed, ('printed\\n',))\n"
            "pool.apply(put, (100_000,))\n"
            "print(len(queue.get(timeout=30)), flush=True)\n"
            "pool.close(); pool.join(); queue.close(); queue.join_thread()\n",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package, tests])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, sorted(done.stdout.split())) == (0, ["100000", "printed"]), done


# ---- more, less, anew ----


def test_a_pool_may_begin_empty_and_grow(ctx: Any) -> None:
    with pool_of(ctx, 0) as pool:
        result = pool.apply_async(square, (4,))
        assert not pids(pool)
        pool.grow()
        assert result.get(PATIENCE) == 16
        pool.grow(2)
        eventually(lambda: len(pids(pool)) == 3)
        assert sorted(worker.index for worker in pool._pool) == [0, 1, 2]


def test_an_empty_pool_that_is_closed_fails_what_waits() -> None:
    pool = fork.Pool(0)
    result = pool.apply_async(square, (4,))
    pool.close()
    pool.join()
    with pytest.raises(WorkerLostError, match="without workers"):
        result.get(0)


def test_shrinking_ends_idle_workers_only(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with pool_of(fork, 3) as pool:
        busy = pool.apply_async(wait_for, (gate, 5))
        (worker,) = eventually(busy.worker_pids)
        pool.shrink(2)
        eventually(lambda: pids(pool) == {worker})
        with pytest.raises(ValueError, match="busy"):
            pool.shrink()
        gate.set()
        assert busy.get(PATIENCE) == 5
        assert pool.map(pid, range(5), 1) == [worker] * 5


def test_a_restarted_pool_has_other_workers(ctx: Any, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with pool_of(ctx, 2, allow_restart=True) as pool:
        busy = pool.apply_async(wait_for, (gate, 5))
        eventually(busy.accepted)
        before = pids(pool)
        assert len(before) == 2
        pool.restart()
        gate.set()
        assert busy.get(PATIENCE) == 5
        eventually(lambda: len(pids(pool)) == 2 and not pids(pool) & before)
        assert pool.map(square, range(5), 1) == [0, 1, 4, 9, 16]


def test_restarting_has_to_be_allowed() -> None:
    with pool_of(fork, 1) as pool, pytest.raises(ValueError, match="allow_restart"):
        pool.restart()


def test_did_start_ok_and_sentinels() -> None:
    with pool_of(fork, 2) as pool:
        assert pool.did_start_ok() is True
        assert len(pool.process_sentinels) == 2
        pool.maintain_pool()
        assert pool.map(square, range(3)) == [0, 1, 4]


def test_maintain_pool_and_the_supervisor_do_not_quarrel() -> None:
    with pool_of(fork, 2) as pool:
        stop = threading.Event()
        failures: list[BaseException] = []

        def maintain() -> None:
            try:
                while not stop.is_set():
                    pool.maintain_pool()
            except BaseException as exc:
                failures.append(exc)

        thread = threading.Thread(target=maintain)
        thread.start()
        for _ in range(20):
            with pytest.raises(WorkerLostError):
                pool.apply(die)
        stop.set()
        thread.join()
        assert not failures
        assert pool.apply(square, (3,)) == 9
        eventually(lambda: len(pool._pool) == 2)


def test_workers_and_handlers_can_be_subclassed() -> None:
    class Worker(pool_module.Worker):
        def on_loop_start(self, pid: int) -> None:
            self.outq.put((99, (pid,)))

        def prepare_result(self, result: Any) -> Any:
            return "prepared", result

    class Subclass(Pool):
        pass

    Subclass.Worker = Worker  # type: ignore[misc]
    said: list[int] = []
    seen: list[Any] = []

    class Handler(pool_module.ResultHandler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.state_handlers[99] = said.append

    Subclass.ResultHandler = Handler  # type: ignore[misc]
    Subclass.on_job_ready = lambda self, *args: seen.append(args)  # type: ignore[method-assign,assignment]
    pool = Subclass(1, context=fork)
    assert pool.apply(square, (3,)) == ("prepared", 9)
    assert said == list(pids(pool))
    assert [args[2] for args in seen] == [(True, ("prepared", 9))]
    pool.terminate()
    pool.join()


def test_contexts_side_by_side() -> None:
    with pool_of(fork, 1) as one, pool_of(billiard.get_context("spawn"), 1) as two:
        assert one.apply(pid) != two.apply(pid)
        assert one._pool[0].name.startswith("Fork") and two._pool[0].name.startswith("Spawn")


# ---- threads ----


@pytest.fixture
def threads() -> Any:
    pool = ThreadPool(3)
    yield pool
    pool.terminate()
    pool.join()


def test_a_pool_of_threads_does_what_a_pool_does(threads: Any) -> None:
    assert isinstance(threads, Pool)
    assert threads.apply(pid) == os.getpid()
    assert threads.map(lambda x: x + 1, range(10)) == list(range(1, 11))
    assert threads.starmap(lambda a, b: a * b, [(2, 3), (4, 5)]) == [6, 20]
    assert list(threads.imap(square, range(10), 3)) == [x * x for x in range(10)]
    assert sorted(threads.imap_unordered(square, range(10))) == [x * x for x in range(10)]
    log: list[Any] = []
    result = threads.apply_async(square, (3,), callback=log.append)
    assert result.get(PATIENCE) == 9
    eventually(lambda: log == [9])
    with pytest.raises(LookupError) as caught:
        threads.apply(fail, (1,))
    assert caught.value.args == (1,)
    eventually(lambda: not threads._cache)


def test_an_error_in_a_thread_is_told_without_its_wrapper(threads: Any) -> None:
    told: list[Any] = []
    threads.apply_async(fail, (1,), error_callback=told.append)
    eventually(lambda: len(told) == 1)
    assert told[0].type is LookupError
    assert isinstance(told[0].exception, LookupError)
    assert "in fail" in told[0].traceback


def test_threads_share_objects(threads: Any) -> None:
    lock = threading.Lock()
    assert threads.apply(lambda x: x, (lock,)) is lock
    names = set(threads.map(lambda _: threading.current_thread(), range(30), 1))
    assert names <= set(threads._pool)


def test_a_pool_of_threads_is_closed_like_any() -> None:
    pool = ThreadPool(2)
    results = [pool.apply_async(nap, (0.01,)) for _ in range(10)]
    mapped = pool.map_async(square, range(10), 1)
    pool.close()
    pool.join()
    assert [r.get(0) for r in results] == [0.01] * 10
    assert mapped.get(0) == [x * x for x in range(10)]
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (1,))
    assert not pool._pool


def test_a_pool_of_threads_is_terminated_without_waiting_for_tasks() -> None:
    pool = ThreadPool(1)
    release = threading.Event()
    running = pool.apply_async(release.wait, (PATIENCE,))
    waiting = pool.apply_async(square, (2,))
    eventually(running.accepted)
    pool.terminate()
    for result in (running, waiting):
        with pytest.raises(Terminated):
            result.get(PATIENCE)
    release.set()
    pool.join()


def test_threads_have_an_initializer() -> None:
    local = threading.local()

    def start(value: int) -> None:
        local.value = value

    with ThreadPool(2, start, (5,)) as pool:
        assert pool.map(lambda _: local.value, range(10), 1) == [5] * 10
    pool.join()
    bad = ThreadPool(2, initialize_badly, ("not today",))
    with pytest.raises(LookupError, match="not today"):
        bad.apply(square, (1,))
    bad.close()
    bad.join()


def test_threads_come_and_go(threads: Any) -> None:
    threads.grow(2)
    assert len(threads._pool) == 5
    threads.shrink(4)
    eventually(lambda: len(threads._pool) == 1)
    assert threads.map(square, range(5), 1) == [0, 1, 4, 9, 16]
    gate = threading.Event()
    busy = threads.apply_async(gate.wait, (PATIENCE,))
    eventually(busy.accepted)
    with pytest.raises(ValueError, match="busy"):
        threads.shrink()
    gate.set()
    assert busy.get(PATIENCE)


def test_threads_cannot_be_limited(threads: Any) -> None:
    for name in ("timeout", "soft_timeout"):
        with pytest.raises(ValueError, match="limit"):
            threads.apply_async(square, (1,), **{name: 1})
    with pytest.raises(ValueError, match="allow_restart"):
        threads.restart()


def test_a_pool_of_threads_that_nobody_uses_is_collected() -> None:
    import gc
    import weakref

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pool = ThreadPool(2)
        gone = weakref.ref(pool)
        assert pool.apply(square, (2,)) == 4
        del pool
        eventually(lambda: gc.collect() is not None and gone() is None)


def test_dummy_makes_pools_of_threads() -> None:
    from billiard import dummy

    with dummy.Pool(2) as pool:
        assert isinstance(pool, ThreadPool)
        assert pool.map(square, [1, 2]) == [1, 4]
    pool.join()
