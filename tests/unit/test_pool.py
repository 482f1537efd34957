"""billiard.pool: calls, results, callbacks and the rest of the interface."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import (
    PATIENCE,
    Gate,
    add,
    eventually,
    fail,
    fail_with,
    forever,
    in_grandchild,
    initialize,
    initialized,
    nap,
    pid,
    pool_of,
    set_and_wait,
    square,
    square_unless,
    wait_for,
)

import billiard
from billiard import pool as pool_module
from billiard.einfo import ExceptionInfo, RemoteTraceback
from billiard.exceptions import TimeoutError

fork: Any = billiard.get_context("fork")


# ---- every call, under every start method ----


def test_every_kind_of_call(ctx: Any) -> None:
    with pool_of(ctx, 2) as pool:
        assert pool.apply(add, (1,), {"b": 2}) == 3
        assert pool.apply_async(square, (7,)).get(PATIENCE) == 49
        assert pool.map(square, range(10)) == [x * x for x in range(10)]
        assert pool.map(square, iter(range(7)), chunksize=3) == [x * x for x in range(7)]
        assert pool.map_async(square, range(3)).get(PATIENCE) == [0, 1, 4]
        assert pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
        assert pool.starmap_async(add, [(i, i) for i in range(3)], 2).get(PATIENCE) == [0, 2, 4]
        assert list(pool.imap(square, range(20))) == [x * x for x in range(20)]
        assert list(pool.imap(square, range(20), 3)) == [x * x for x in range(20)]
        assert sorted(pool.imap_unordered(square, range(20))) == [x * x for x in range(20)]
        assert sorted(pool.imap_unordered(square, range(20), chunksize=3)) == [
            x * x for x in range(20)
        ]
        assert len(set(pool.map(pid, range(100), 1))) <= 2
        pool.close()
        pool.join()


def test_initializer_runs_once_in_every_worker(ctx: Any) -> None:
    with pool_of(ctx, 2, initialize, (1, "two")) as pool:
        assert pool.map(lambda _: initialized(), range(8), 1) == 8 * [[1, "two"]]


def test_local_functions_and_lambdas_travel_by_value(ctx: Any) -> None:
    secret = 40

    def closure(x: int) -> int:
        return secret + x

    with pool_of(ctx, 1) as pool:
        assert pool.apply(closure, (2,)) == 42
        assert pool.map(lambda x: x + secret, [1, 2]) == [41, 42]
        assert list(pool.imap(closure, [3])) == [43]


def test_workers_may_have_children(ctx: Any) -> None:
    with pool_of(ctx, 1) as pool:
        assert pool.apply(in_grandchild, ("fork", 6)) == 36


# ---- results ----


def test_results_say_how_far_they_are(pool: Any, tmp_path: Path) -> None:
    begun, go_on = Gate(tmp_path), Gate(tmp_path)
    result = pool.apply_async(set_and_wait, (begun, go_on, 5), correlation_id="abc")
    assert begun.wait(PATIENCE)
    assert not result.ready()
    assert result.correlation_id == "abc"
    assert eventually(result.accepted)
    assert len(result.worker_pids()) == 1
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(TimeoutError):
        result.get(timeout=0.01)
    with pytest.raises(TimeoutError):
        result.get(timeout=0)
    result.wait(0.01)
    go_on.set()
    result.wait()
    assert result.ready() and result.successful()
    assert result.get() == result.get(timeout=0) == 5
    assert repr(result) == f"<ApplyResult: {result._job} ack:True ready:True>"


def test_a_task_s_exception_has_its_own_type_and_the_remote_traceback(pool: Any) -> None:
    result = pool.apply_async(fail, ("why", 5))
    with pytest.raises(LookupError) as caught:
        result.get(PATIENCE)
    assert caught.value.args == ("why", 5)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in fail" in str(caught.value.__cause__)
    assert not result.successful()
    with pytest.raises(LookupError):
        pool.map(fail, [1, 2])
    with pytest.raises(LookupError):
        pool.apply(fail)


@pytest.mark.parametrize("kind", [BaseException, GeneratorExit, KeyboardInterrupt, SystemExit])
def test_exceptions_of_any_kind_reach_the_caller(pool: Any, kind: type[BaseException]) -> None:
    with pytest.raises(kind, match="text"):
        pool.apply(fail_with, (kind("text"),))
    assert pool.apply(square, (3,)) == 9


def test_map_fails_with_the_first_failure(pool: Any) -> None:
    with pytest.raises(LookupError):
        pool.map(square_unless, range(10), 1)
    with pytest.raises(LookupError):
        pool.starmap(square_unless, [(3,), (4,)])
    assert pool.map(square_unless, [1, 2]) == [1, 4]


@pytest.mark.parametrize("chunksize", [1, 2])
def test_imap_fails_where_the_task_failed(pool: Any, chunksize: int) -> None:
    it = pool.imap(square_unless, [1, 2, 3, 4], chunksize)
    assert next(it) == 1
    assert next(it) == 4
    with pytest.raises(LookupError):
        next(it)
    if chunksize == 1:
        assert list(it) == [16]


def test_imap_iterators_can_time_out(pool: Any, tmp_path: Path) -> None:
    event = Gate(tmp_path)
    it = pool.imap(wait_for, [event])
    with pytest.raises(TimeoutError):
        it.next(timeout=0.01)
    event.set()
    assert it.next(timeout=PATIENCE) is None
    for _ in range(2):
        with pytest.raises(StopIteration):
            it.next(timeout=PATIENCE)
    assert it.ready()


def test_imap_unordered_does_not_wait_for_the_first(pool: Any, tmp_path: Path) -> None:
    event = Gate(tmp_path)
    unordered = pool.imap_unordered(lambda x: x or wait_for(event, x), [0, 1, 2])
    assert sorted([unordered.next(PATIENCE), unordered.next(PATIENCE)]) == [1, 2]
    event.set()
    assert list(unordered) == [0]


def test_nothing_to_do_is_done_at_once(pool: Any) -> None:
    assert pool.map(square, []) == []
    assert pool.map(square, [], 5) == []
    assert list(pool.imap(square, [])) == []
    assert list(pool.imap_unordered(square, [], 4)) == []
    assert pool.map_async(square, []).successful()


def test_large_arguments_and_results(pool: Any) -> None:
    big = os.urandom(3 << 20)
    assert pool.apply(bytes, (big,)) == big
    assert pool.map(len, [big] * 5, 1) == [len(big)] * 5
    assert [len(b) for b in pool.imap(bytes, [5 << 20] * 4)] == [5 << 20] * 4
    assert pool.apply(str, ("é" * 100_000,)) == "é" * 100_000
    # Some that are given ahead, some that are not.
    sizes = [(i * 977) % 20_000 for i in range(3000)]
    assert pool.map(len, [b"x" * size for size in sizes], 1) == sizes
    assert list(pool.imap(bytes, sizes)) == list(map(bytes, sizes))


def test_imap_reads_an_endless_iterable_only_as_far_as_needed(tmp_path: Path) -> None:
    produced = -1

    def numbers() -> Iterator[int]:
        nonlocal produced
        while True:
            produced += 1
            yield produced

    event = Gate(tmp_path)
    with pool_of(fork, 1) as busy:
        blocked = busy.apply_async(wait_for, (event,))
        it = busy.imap(square, numbers())
        eventually(lambda: produced > 0)
        settled = -1
        while settled != produced:
            settled = produced
            time.sleep(0.1)
        assert produced < 20_000
        event.set()
        blocked.get(PATIENCE)
        assert [next(it) for _ in range(5)] == [0, 1, 4, 9, 16]


# ---- callbacks ----


def test_callbacks_in_order(pool: Any) -> None:
    log: list[Any] = []
    result = pool.apply_async(
        square,
        (3,),
        callback=lambda v: log.append(("value", v)),
        error_callback=lambda e: log.append(("error", e)),
        accept_callback=lambda pid, at: log.append(("accepted", pid, at)),
    )
    assert result.get(PATIENCE) == 9
    eventually(lambda: len(log) == 2)
    (what, worker, at), value = log
    assert what == "accepted" and worker in [w.pid for w in pool._pool]
    assert time.monotonic() - 60 < at <= time.monotonic()
    assert value == ("value", 9)


def test_error_callbacks_get_an_exception_info(pool: Any) -> None:
    log: list[Any] = []
    for result in (
        pool.apply_async(fail, error_callback=log.append),
        pool.map_async(fail, [1], error_callback=log.append),
        pool.starmap_async(fail, [(1,)], error_callback=log.append),
    ):
        with pytest.raises(LookupError):
            result.get(PATIENCE)
    eventually(lambda: len(log) == 3)
    for info in log:
        assert isinstance(info, ExceptionInfo)
        assert info.type is LookupError and "in fail" in info.traceback


def test_map_callbacks(pool: Any) -> None:
    log: list[Any] = []
    assert pool.map_async(square, range(3), callback=log.append).get(PATIENCE) == [0, 1, 4]
    pool.starmap_async(add, [(1, 1)], callback=log.append).wait(PATIENCE)
    assert log == [[0, 1, 4], [2]]


def test_a_callback_that_raises_is_logged_and_nothing_else(
    pool: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def bad(value: Any) -> None:
        raise LookupError("in the callback")

    for kwargs in ({}, {"callbacks_propagate": (LookupError,)}):
        assert pool.apply_async(square, (2,), callback=bad, **kwargs).get(PATIENCE) == 4
    assert pool.map_async(square, [2], callback=bad).get(PATIENCE) == [4]
    assert pool.apply_async(square, (2,), accept_callback=lambda *a: bad(a)).get(PATIENCE) == 4
    assert pool.apply(square, (5,)) == 25
    # A test before this one may have made the logger, which pytest then listens to.
    assert "in the callback" in capfd.readouterr().err + caplog.text


def test_a_callback_may_submit(pool: Any) -> None:
    later: list[Any] = []
    done = threading.Event()

    def callback(value: int) -> None:
        later.append(pool.apply_async(square, (value,)))
        done.set()

    pool.apply_async(square, (2,), callback=callback)
    assert done.wait(PATIENCE)
    assert later[0].get(PATIENCE) == 16


# ---- the rest of the interface ----


def test_the_default_context_s_pool_is_this_one(pool: Any) -> None:
    assert isinstance(pool, pool_module.Pool)
    assert repr(pool) == "<Pool state=RUN pool_size=2>"
    assert 1 <= pool.cpu_count() <= billiard.cpu_count()
    with billiard.Pool(1) as other:
        assert other.apply(square, (2,)) == 4
    assert repr(other).startswith("<Pool state=TERMINATE")
    other.join()


def test_classes_say_where_users_find_them() -> None:
    for name in (
        "Pool",
        "ThreadPool",
        "Worker",
        "PoolThread",
        "Supervisor",
        "TaskHandler",
        "TimeoutHandler",
        "ResultHandler",
        "ApplyResult",
        "MapResult",
        "IMapIterator",
        "IMapUnorderedIterator",
        "LaxBoundedSemaphore",
        "MaybeEncodingError",
        "WorkersJoined",
    ):
        assert getattr(pool_module, name).__module__ == "billiard.pool", name


def test_lax_bounded_semaphore() -> None:
    semaphore = pool_module.LaxBoundedSemaphore(2)
    semaphore.release()
    assert semaphore._value == 2
    assert semaphore.acquire() and semaphore.acquire()
    assert not semaphore.acquire(blocking=False)
    semaphore.grow()
    assert semaphore.acquire(blocking=False)
    semaphore.clear()
    assert semaphore._value == 3
    semaphore.shrink()
    semaphore.release()
    assert semaphore._value == 2


def test_a_semaphore_that_shrinks_swallows_what_is_released_too_much() -> None:
    semaphore = pool_module.LaxBoundedSemaphore(2)
    assert semaphore.acquire() and semaphore.acquire()
    semaphore.shrink()
    semaphore.release()
    assert not semaphore.acquire(blocking=False), "one still holds it, and no more may"
    semaphore.release()
    assert semaphore.acquire(blocking=False) and not semaphore.acquire(blocking=False)
    semaphore.shrink()
    semaphore.grow()
    assert not semaphore.acquire(blocking=False)
    semaphore.clear()
    assert semaphore._value == semaphore._initial_value == 1


def test_callers_can_wait_for_a_slot(tmp_path: Path) -> None:
    event = Gate(tmp_path)
    with pool_of(fork, 1, putlocks=True) as pool:
        first = pool.apply_async(wait_for, (event,))
        second: list[Any] = []
        waiting = threading.Thread(
            target=lambda: second.append(pool.apply_async(square, (3,)).get(PATIENCE))
        )
        waiting.start()
        pool.apply_async(square, (4,), waitforslot=False)
        waiting.join(0.1)
        assert waiting.is_alive() and not second
        event.set()
        waiting.join(PATIENCE)
        assert second == [9]
        first.get(PATIENCE)


def test_closing_lets_go_who_waits_for_a_slot() -> None:
    with pool_of(fork, 1, putlocks=True) as pool:
        pool.apply_async(nap, (0.3,))
        caught: list[BaseException] = []

        def submit() -> None:
            try:
                pool.apply_async(square, (3,))
            except ValueError as exc:
                caught.append(exc)

        waiting = threading.Thread(target=submit)
        waiting.start()
        waiting.join(0.05)
        pool.close()
        waiting.join(PATIENCE)
        assert [str(exc) for exc in caught] in ([], ["Pool not running"])
        pool.join()


def test_many_threads_share_a_pool(pool: Any) -> None:
    results: list[Any] = []

    def submit(n: int) -> None:
        mine = [pool.apply_async(square, (n * 1000 + i,)) for i in range(200)]
        results.extend(r.get(PATIENCE) for r in mine)

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(results) == sorted((n * 1000 + i) ** 2 for n in range(5) for i in range(200))


def test_a_task_does_not_wait_behind_a_long_one_while_a_worker_is_idle(
    pool: Any, tmp_path: Path
) -> None:
    # Quick tasks first: their workers may be given tasks ahead.
    pool.map(square, range(2000), 1)
    for _ in range(20):
        event = Gate(tmp_path)
        blocked = pool.apply_async(wait_for, (event, "done"))
        others = [pool.apply_async(square, (i,)) for i in range(50)]
        freeing = pool.apply_async(event.set)
        freeing.get(PATIENCE)
        assert blocked.get(PATIENCE) == "done"
        assert [r.get(PATIENCE) for r in others] == [i * i for i in range(50)]


def test_a_discarded_job_is_forgotten(pool: Any, tmp_path: Path) -> None:
    log: list[Any] = []
    event = Gate(tmp_path)
    result = pool.apply_async(wait_for, (event,), callback=log.append)
    result.discard()
    event.set()
    assert pool.apply(square, (3,)) == 9
    assert not log and not result.ready() and not pool._cache


def test_long_and_short_lives(ctx: Any) -> None:
    pool = ctx.Pool(4)
    assert pool.map(square, range(4), 1) == [0, 1, 4, 9]
    eventually(lambda: all(worker.inq.shared.is_up for worker in pool._pool))
    pool.close()
    pool.join()
    assert not pool._pool
    with pool_of(ctx, 1) as other:
        running = other.apply_async(forever)
        eventually(running.accepted)
        other.terminate()
        other.join()
        assert not other._pool
