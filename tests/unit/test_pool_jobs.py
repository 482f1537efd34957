"""billiard.pool: scheduling, back-pressure, limits of single jobs, cancelling and draining."""

from __future__ import annotations

import inspect
import itertools
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
from pool_tasks import (
    PATIENCE,
    Gate,
    die,
    eventually,
    forever,
    leave,
    nap,
    pid,
    pool_of,
    set_and_wait,
    square,
    wait_for,
)

import billiard
from billiard.exceptions import (
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from billiard.pool import RUN, ApplyResult, Pool

fork: Any = billiard.get_context("fork")
#: what a caller gets who waits for a job that was cancelled
CANCELLED = Terminated
IMAPS = ["imap", "imap_unordered"]
MANY = ["map_async", "starmap_async", "imap", "imap_unordered"]


def has(method: str, keyword: str) -> bool:
    return keyword in inspect.signature(getattr(Pool, method)).parameters


needs_buffersize = pytest.mark.skipif(not has("imap", "buffersize"), reason="no buffersize=")
needs_limits = pytest.mark.skipif(not has("imap", "timeout"), reason="no limits for many tasks")
needs_cancel = pytest.mark.skipif(not hasattr(ApplyResult, "cancel"), reason="no cancel()")
needs_drain = pytest.mark.skipif(not hasattr(Pool, "drain"), reason="no drain()")
needs_join = pytest.mark.skipif(not has("join", "timeout"), reason="no join(timeout=)")


# ---- programs that put something in a pool's place ----


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("method", IMAPS)
def test_imap_of_a_mock_puts_its_tasks_on_the_mock_s_queue(method: str, chunksize: int) -> None:
    """Tests of other programs do so."""
    pool = Mock(_state=RUN, _cache={})
    result = getattr(Pool, method)(pool, square, range(7), chunksize)
    [(tasks, set_length)] = pool._taskqueue.put.call_args.args
    given = 0
    for given, (_, (job, i, func, args, kwargs)) in enumerate(tasks, 1):  # noqa: B007
        pool._cache[job]._set(i, (True, func(*args, **kwargs)))
    set_length(given)
    assert sorted(result) == [i * i for i in range(7)]
    assert not pool._cache


# ---- scheduling ----


@pytest.mark.parametrize("method", IMAPS)
def test_no_task_waits_behind_a_long_one_while_a_worker_is_free(
    ctx: Any, method: str, tmp_path: Path
) -> None:
    """All short tasks are done while the long ones last, wherever these are among them."""
    with pool_of(ctx, 3) as pool:
        pool.map(square, range(500), 1)
        gates = {5: Gate(tmp_path), 40: Gate(tmp_path)}
        begun = Gate(tmp_path)

        def calls() -> Iterator[Any]:
            for i in range(60):
                yield (wait_for, (gates[i], i)) if i in gates else (square, (i,))

        results = [pool.apply_async(call, args) for call, args in calls()]
        short = [r for i, r in enumerate(results) if i not in gates]
        for result in short:
            result.get(PATIENCE)
        assert not any(results[i].ready() for i in gates)
        # So it is for a task that comes when two of three are busy.
        iterator = getattr(pool, method)(square, range(20))
        assert sorted(next(iterator) for _ in range(20)) == [n * n for n in range(20)]
        begun.set()
        for i, gate in gates.items():
            gate.set()
            assert results[i].get(PATIENCE) == i


def test_free_workers_share_what_waits(tmp_path: Path) -> None:
    """Tasks that wait for each other all run at once: as many as there are workers."""
    with pool_of(fork, 4) as pool:
        gates = [Gate(tmp_path) for _ in range(4)]
        for _ in range(10):
            results = [
                pool.apply_async(set_and_wait, (gates[i], gates[(i + 1) % 4], i)) for i in range(4)
            ]
            assert [r.get(PATIENCE) for r in results] == [0, 1, 2, 3]


# ---- how far imap reads ahead ----


class Counted:
    """Numbers that are counted as they are read, safe to read from any thread."""

    def __init__(self, numbers: Any) -> None:
        self._numbers = iter(numbers)
        self.read = 0

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> int:
        number: int = next(self._numbers)
        self.read += 1
        return number

    def settled(self) -> int:
        """How many have been read when no more are for a moment."""
        before = -1
        while before != self.read:
            before = self.read
            time.sleep(0.1)
        return before


@needs_buffersize
@pytest.mark.parametrize("limits", [{}, {"timeout": PATIENCE}])
def test_what_is_read_ahead_of_results_begins_behind_large_tasks(limits: dict[str, float]) -> None:
    with pool_of(fork, 1) as pool:
        large = [pool.apply_async(len, (bytes(2 << 20),)) for _ in range(8)]
        iterator = pool.imap(square, iter(range(20)), buffersize=2, **limits)
        assert [iterator.next(PATIENCE) for _ in range(20)] == [n * n for n in range(20)]
        assert [result.get(PATIENCE) for result in large] == [2 << 20] * 8


@needs_buffersize
@pytest.mark.parametrize("method", IMAPS)
@pytest.mark.parametrize("buffersize", [1, 2, 10])
def test_buffersize_bounds_what_is_read_ahead(ctx: Any, method: str, buffersize: int) -> None:
    with pool_of(ctx, 2) as pool:
        numbers = Counted(itertools.count())
        iterator = getattr(pool, method)(square, numbers, buffersize=buffersize)
        assert numbers.settled() <= buffersize
        for taken in range(1, 30):
            next(iterator)
            assert numbers.read <= taken + buffersize
        assert numbers.settled() <= 29 + buffersize


@needs_buffersize
@pytest.mark.parametrize("method", IMAPS)
def test_a_buffer_smaller_than_the_pool_gives_every_result(ctx: Any, method: str) -> None:
    with pool_of(ctx, 3) as pool:
        for size in (1, 2, 1000):
            iterator = getattr(pool, method)(square, range(200), buffersize=size)
            assert sorted(iterator) == [n * n for n in range(200)]


@needs_buffersize
@pytest.mark.parametrize("method", IMAPS)
@pytest.mark.parametrize("chunksize", [1, 5])
def test_a_buffer_goes_with_chunks(method: str, chunksize: int) -> None:
    with pool_of(fork, 2) as pool:
        iterator = getattr(pool, method)(square, iter(range(103)), chunksize, buffersize=10)
        assert sorted(iterator) == [n * n for n in range(103)]


@needs_buffersize
@pytest.mark.parametrize("method", IMAPS)
@pytest.mark.parametrize("limit", [None, PATIENCE])
def test_of_the_threads_that_take_results_one_reads_ahead(
    ctx: Any, method: str, limit: Any
) -> None:
    """While it waits for a generator, the others take what is there; nothing is lost."""
    reading, go_on = threading.Event(), threading.Event()

    def numbers() -> Iterator[int]:
        yield from range(3)
        reading.set()
        assert go_on.wait(PATIENCE)
        yield from range(3, 20)

    with pool_of(ctx, 2) as pool:
        iterator = getattr(pool, method)(square, numbers(), buffersize=3, timeout=limit)
        taken: list[int] = []
        reader = threading.Thread(target=lambda: taken.append(next(iterator)))
        reader.start()
        assert reading.wait(PATIENCE)
        here = [next(iterator), next(iterator)]
        go_on.set()
        reader.join(PATIENCE)
        assert sorted([*taken, *here, *iterator]) == [n * n for n in range(20)]


@needs_buffersize
@pytest.mark.parametrize("method", IMAPS)
@pytest.mark.parametrize("limit", [None, PATIENCE])
def test_the_first_items_are_read_by_the_caller(method: str, limit: Any) -> None:
    readers: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(10):
            readers.append(threading.get_ident())
            yield i

    with pool_of(fork, 2) as pool:
        iterator = getattr(pool, method)(square, numbers(), buffersize=3, timeout=limit)
        assert readers == [threading.get_ident()] * 3
        assert sorted(iterator) == [n * n for n in range(10)]


@needs_buffersize
@pytest.mark.parametrize("method", IMAPS)
def test_a_task_that_is_being_submitted_when_the_pool_is_closed_is_done(method: str) -> None:
    with pool_of(fork, 2) as pool:
        iterator = getattr(pool, method)(square, iter(range(10)), buffersize=2, timeout=PATIENCE)
        submit_one = pool._drive.submit_one

        def close_first(task: Any) -> None:
            pool.close()
            submit_one(task)

        with patch.object(pool._drive, "submit_one", close_first):
            taken = [next(iterator)]
        assert sorted([*taken, *iterator]) == [n * n for n in range(10)]
        assert pool.join(PATIENCE)


@needs_buffersize
def test_of_an_endless_iterable_not_all_of_a_large_buffer_is_read_at_once() -> None:
    with pool_of(fork, 2) as pool, patch("billiard._pool.submit.AT_HAND_TASKS", 5):
        numbers = itertools.count()
        iterator = pool.imap(square, numbers, buffersize=10**9, timeout=PATIENCE)
        assert next(numbers) == 5
        assert [next(iterator) for _ in range(3)] == [0, 1, 4]


@needs_buffersize
@pytest.mark.parametrize("limit", [None, PATIENCE])
def test_an_iterable_that_is_interrupted_leaves_no_job(limit: Any) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pool_of(fork, 2) as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.imap(square, numbers(), buffersize=3, timeout=limit)
        assert not pool._cache
        assert pool.apply(square, (3,)) == 9


@needs_buffersize
def test_what_the_iterable_raises_comes_after_what_it_gave() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise LookupError("no more")

    with pool_of(fork, 2) as pool:
        iterator = pool.imap(square, numbers(), buffersize=2)
        assert [next(iterator) for _ in range(5)] == [0, 1, 4, 9, 16]
        with pytest.raises(LookupError, match="no more"):
            next(iterator)


@needs_buffersize
@pytest.mark.parametrize("bad", [0, -1, 1.5, "2"])
def test_a_buffer_is_a_positive_number(bad: Any) -> None:
    with pool_of(fork, 1) as pool:
        with pytest.raises((TypeError, ValueError)):
            pool.imap(square, [1], buffersize=bad)
        assert pool.apply(square, (2,)) == 4


@needs_buffersize
@pytest.mark.parametrize("method", IMAPS)
def test_close_with_a_full_buffer_loses_nothing(method: str) -> None:
    pool = fork.Pool(2)
    iterator = getattr(pool, method)(square, iter(range(100)), buffersize=4)
    first = next(iterator)
    pool.close()
    assert sorted([first, *iterator]) == [n * n for n in range(100)]
    pool.join()


@pytest.mark.parametrize("method", IMAPS)
def test_an_endless_iterable_is_read_ahead_boundedly(method: str, tmp_path: Path) -> None:
    gate, numbers = Gate(tmp_path), Counted(itertools.count())
    with pool_of(fork, 1) as pool:
        pool.apply_async(wait_for, (gate,))
        iterator = getattr(pool, method)(square, numbers)
        assert numbers.settled() < 10_000
        gate.set()
        assert [next(iterator) for _ in range(5)] == [0, 1, 4, 9, 16]


# ---- limits of single jobs ----


def limited(pool: Any, method: str, function: Any, items: list[Any], **limits: float) -> Any:
    call = getattr(pool, method)
    if method.startswith("starmap"):
        items = [(item,) for item in items]
    if method.endswith("_async"):
        return call(function, items, 1, **limits).get(PATIENCE)
    return list(call(function, items, **limits))


@needs_limits
@pytest.mark.parametrize("method", MANY)
def test_hard_limits_of_many_tasks_hold_for_each(ctx: Any, method: str) -> None:
    with pool_of(ctx, 2) as pool:
        # Together they take longer than the limit.
        assert limited(pool, method, nap, [0.1] * 12, timeout=PATIENCE / 2) == [0.1] * 12
        with pytest.raises(TimeLimitExceeded):
            limited(pool, method, forever, [1, 2], timeout=0.2)
        assert pool.apply(square, (3,)) == 9


@needs_limits
@pytest.mark.parametrize("method", MANY)
def test_soft_limits_of_many_tasks_hold_for_each(method: str) -> None:
    with pool_of(fork, 2) as pool:
        before = {worker.pid for worker in pool._pool}
        with pytest.raises(SoftTimeLimitExceeded):
            limited(pool, method, forever, [1, 2], soft_timeout=0.2)
        eventually(lambda: not pool._cache)
        assert {worker.pid for worker in pool._pool} == before


@needs_limits
def test_a_task_of_imap_that_was_limited_has_its_place_and_the_others_go_on() -> None:
    with pool_of(fork, 2) as pool:
        naps = [0.0, PATIENCE, 0.0, 0.0]
        iterator = pool.imap(nap, naps, soft_timeout=1.5)
        assert next(iterator) == 0.0
        with pytest.raises(SoftTimeLimitExceeded):
            next(iterator)
        assert list(iterator) == [0.0, 0.0]


class SlowToDecode:
    """An argument that takes a while to be read."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __reduce__(self) -> Any:
        return nap, (self.seconds,)


def sleep_on(_: object) -> str:
    time.sleep(PATIENCE)
    return "never limited"


def test_a_soft_limit_that_passes_while_the_task_is_decoded_is_not_lost(ctx: Any) -> None:
    with pool_of(ctx, 1) as pool:
        pool.apply(pid)
        result = pool.apply_async(sleep_on, (SlowToDecode(0.5),), soft_timeout=0.1)
        with pytest.raises(SoftTimeLimitExceeded):
            result.get(PATIENCE / 2)


# ---- cancelling ----


@needs_cancel
def test_a_job_that_waits_can_be_cancelled(ctx: Any, tmp_path: Path) -> None:
    with pool_of(ctx, 1) as pool:
        gate, begun = Gate(tmp_path), Gate(tmp_path)
        running = pool.apply_async(wait_for, (gate, 1))
        waiting = pool.apply_async(begun.set)
        assert waiting.cancel() is True
        with pytest.raises(CANCELLED):
            waiting.get(PATIENCE)
        assert waiting.ready() and not waiting.successful()
        gate.set()
        assert running.get(PATIENCE) == 1
        assert pool.apply(square, (3,)) == 9
        assert not begun.is_set()


@needs_cancel
def test_what_was_cancelled_has_no_result_whatever_else_is_submitted(ctx: Any) -> None:
    with pool_of(ctx, 2) as pool:
        ended = threading.Event()
        others = pool.imap(square, itertools.takewhile(lambda _: not ended.is_set(), endless()))
        try:
            # The worker of who is cancelled may have to be started anew.
            for _ in range(300 if ctx.get_start_method() == "fork" else 50):
                for result in (
                    pool.apply_async(square, (3,), callback=str),
                    pool.apply_async(square, (3,), timeout=PATIENCE),
                    pool.map_async(square, range(3)),
                ):
                    if result.cancel():
                        with pytest.raises(CANCELLED):
                            result.get(PATIENCE)
                        assert not result.cancel()
                    else:
                        result.get(PATIENCE)
                assert next(others) is not None
        finally:
            ended.set()


def endless() -> Iterator[int]:
    return itertools.cycle([1, 2, 3])


@needs_cancel
def test_a_job_that_runs_can_be_cancelled_and_its_worker_is_replaced(
    ctx: Any, tmp_path: Path
) -> None:
    with pool_of(ctx, 1) as pool:
        before, begun = pool.apply(pid), Gate(tmp_path)
        running = pool.apply_async(set_and_wait, (begun, Gate(tmp_path)))
        waiting = pool.apply_async(square, (3,))
        assert begun.wait()
        assert running.cancel() is True
        with pytest.raises(CANCELLED):
            running.get(PATIENCE)
        assert waiting.get(PATIENCE) == 9
        assert pool.apply(pid) != before


@needs_cancel
def test_a_job_that_is_done_cannot_be_cancelled() -> None:
    with pool_of(fork, 1) as pool:
        result = pool.apply_async(square, (3,))
        assert result.get(PATIENCE) == 9
        assert result.cancel() is False
        assert result.get(0) == 9 and result.successful()


@needs_cancel
def test_cancelling_twice_is_cancelling_once(tmp_path: Path) -> None:
    with pool_of(fork, 1) as pool:
        pool.apply_async(wait_for, (gate := Gate(tmp_path),))
        waiting = pool.apply_async(square, (3,))
        assert waiting.cancel() is True
        assert waiting.cancel() is False
        gate.set()


@needs_cancel
def test_the_error_callback_of_a_cancelled_job_is_called_once(tmp_path: Path) -> None:
    with pool_of(fork, 1) as pool:
        gate, log = Gate(tmp_path), []
        pool.apply_async(wait_for, (gate,))
        options = {"callback": log.append, "error_callback": log.append}
        waiting = pool.apply_async(square, (3,), **options)
        assert waiting.cancel() is True
        gate.set()
        eventually(lambda: log)
        assert pool.apply(square, (2,)) == 4
        assert [info.type for info in log] == [CANCELLED]


@needs_cancel
def test_a_map_is_cancelled_as_a_whole(tmp_path: Path) -> None:
    with pool_of(fork, 2) as pool:
        gate = Gate(tmp_path)
        mapped = pool.map_async(wait_for, [gate] * 10, 1)
        assert mapped.cancel() is True
        with pytest.raises(CANCELLED):
            mapped.get(PATIENCE)
        assert pool.map(square, range(4), 1) == [0, 1, 4, 9]
        eventually(lambda: not pool._cache)


class Million:
    """A million items, and how many of them have been read."""

    read = 0

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[int]:
        for item in range(len(self)):
            self.read = item
            yield item


@needs_cancel
def test_a_map_that_was_cancelled_is_not_fed_any_further() -> None:
    with pool_of(fork, 1) as pool:
        items = Million()
        mapped = pool.map_async(square, items, 1)
        eventually(lambda: items.read)
        assert mapped.cancel() is True
        with pytest.raises(CANCELLED):
            mapped.get(PATIENCE)
        assert pool.apply_async(square, (3,), callback=str).get(PATIENCE) == 9
        assert items.read < len(items) - 1


@needs_cancel
@pytest.mark.parametrize("known", [True, False], ids=["before", "after"])
def test_what_is_cancelled_behind_others_does_not_begin_and_holds_no_slot(
    known: bool, tmp_path: Path
) -> None:
    with pool_of(fork, 1, putlocks=True) as pool:
        go_on, begun = threading.Event(), Gate(tmp_path)
        in_callback, leave_it = threading.Event(), threading.Event()

        def callback(_: Any) -> None:
            in_callback.set()
            leave_it.wait(PATIENCE)

        def nothing() -> Iterator[int]:
            go_on.wait(PATIENCE)
            yield from ()

        if not known:
            # The outcome waits meanwhile.
            pool.apply_async(pid, callback=callback)
            assert in_callback.wait(PATIENCE)
        fed = pool.imap(square, nothing())
        waiting = pool.apply_async(begun.set)
        assert waiting.cancel() is True
        if known:
            with pytest.raises(CANCELLED):
                waiting.get(PATIENCE)
        go_on.set()
        eventually(lambda: not pool._taskqueue.busy())
        leave_it.set()
        with pytest.raises(CANCELLED):
            waiting.get(PATIENCE)
        eventually(lambda: pool._putlock._value == 1)
        assert list(fed) == [] and pool.apply(square, (3,)) == 9
        assert not begun.is_set()


@needs_cancel
def test_cancelling_lets_go_who_waits(tmp_path: Path) -> None:
    with pool_of(fork, 1) as pool:
        result = pool.apply_async(wait_for, (Gate(tmp_path),))
        caught: list[BaseException] = []

        def wait() -> None:
            try:
                result.get()
            except CANCELLED as exc:
                caught.append(exc)

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(result.accepted)
        assert result.cancel() is True
        thread.join(PATIENCE)
        assert caught


# ---- waiting for the end ----


@needs_join
def test_join_waits_so_long_and_says_whether_that_was_enough(tmp_path: Path) -> None:
    pool, gate = fork.Pool(1), Gate(tmp_path)
    result = pool.apply_async(wait_for, (gate, 1))
    pool.close()
    assert pool.join(timeout=0.05) is False
    assert pool.join(timeout=0) is False
    gate.set()
    assert pool.join(timeout=PATIENCE) is True
    assert result.get(0) == 1
    assert not pool._pool


@needs_join
@pytest.mark.parametrize("timeout", [math.inf, 1e300, -1.0])
def test_times_that_have_passed_and_times_without_end(timeout: float, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with pool_of(fork, 1) as pool:
        iterators = [
            pool.imap(wait_for, [gate], timeout=limit, buffersize=size)
            for limit in (None, PATIENCE)
            for size in (None, 1)
        ]
        if timeout < 0:
            for iterator in iterators:
                with pytest.raises(billiard.TimeoutError):
                    iterator.next(timeout)
            pool.close()
            assert not pool.join(timeout)
        gate.set()
        if timeout > 0:
            for iterator in iterators:
                assert iterator.next(timeout if timeout == math.inf else 1e9) is None
            pool.close()
            assert pool.join(timeout)


@needs_join
def test_a_running_pool_cannot_be_joined_with_a_timeout_either() -> None:
    with pool_of(fork, 1) as pool, pytest.raises(ValueError, match="still running"):
        pool.join(timeout=1)


@needs_drain
def test_drain_waits_for_all_jobs(ctx: Any) -> None:
    pool = ctx.Pool(2)
    results = [pool.apply_async(nap, (0.01,)) for _ in range(20)]
    assert pool.drain(PATIENCE) == []
    assert [r.get(0) for r in results] == [0.01] * 20
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (1,))
    pool.join()


@needs_drain
def test_drain_returns_what_waits_behind_an_iterable_too() -> None:
    with pool_of(fork, 1) as pool:
        items = Million()
        behind = [pool.map_async(square, items, 1)]
        eventually(lambda: items.read)
        behind += [pool.apply_async(square, (n,)) for n in range(300)]
        behind.append(pool.imap(square, items))
        unfinished = pool.drain(0)
        assert len(unfinished) == len(behind) and set(unfinished) == set(behind)
        for result in behind[:-1]:
            with pytest.raises(CANCELLED):
                result.get(PATIENCE)


@needs_drain
def test_drain_cancels_what_is_not_done_and_returns_it(ctx: Any, tmp_path: Path) -> None:
    pool = ctx.Pool(2)
    done = pool.apply_async(square, (3,))
    done.get(PATIENCE)
    running = [pool.apply_async(wait_for, (Gate(tmp_path),)) for _ in range(2)]
    eventually(lambda: all(r.accepted() for r in running))
    waiting = [pool.apply_async(square, (n,)) for n in range(3)]
    mapped = pool.map_async(square, range(5), 1)
    unfinished = pool.drain(0.1)
    assert set(unfinished) == {*running, *waiting, mapped}
    for result in unfinished:
        with pytest.raises(CANCELLED):
            result.get(PATIENCE)
    assert done.get(0) == 9
    pool.join()
    assert not pool._pool


@needs_drain
def test_drain_returns_what_callers_have(tmp_path: Path) -> None:
    limits: list[dict[str, Any]] = [{}, {"timeout": PATIENCE}]
    with pool_of(fork, 1) as pool:
        pool.apply_async(wait_for, (Gate(tmp_path),))
        mine = {
            pool.imap(square, range(9), buffersize=size, **limit)
            for size in (None, 2)
            for limit in limits
        }
        assert mine < set(pool.drain(0.1))


@needs_drain
def test_a_worker_that_is_stuck_without_a_task_does_not_outlast_a_drained_pool(
    ctx: Any, tmp_path: Path
) -> None:
    pool = ctx.Pool(1, wait_for, (Gate(tmp_path),))
    (never,) = [pool.apply_async(square, (3,))]
    assert pool.drain(0.1) == [never]
    assert pool.join(PATIENCE) and not pool._pool


@needs_drain
def test_a_worker_that_is_stuck_while_another_does_the_tasks_does_not_either(
    tmp_path: Path,
) -> None:
    stuck = [Gate(tmp_path)]

    def initialize() -> None:
        if billiard.current_process().index:
            stuck[0].wait()

    pool = fork.Pool(2, initialize)
    assert pool.apply(square, (3,)) == 9
    assert pool.drain(0.5) == []
    assert pool.join(PATIENCE) and not pool._pool


@needs_drain
def test_a_drained_pool_may_take_for_ever(tmp_path: Path) -> None:
    with pool_of(fork, 1) as pool:
        result = pool.apply_async(nap, (0.1,), callback=str)
        assert pool.drain(1e300) == []
        assert result.get(0) == 0.1


@needs_drain
def test_an_idle_pool_is_drained_at_once() -> None:
    pool = fork.Pool(2)
    pool.map(square, range(10))
    assert pool.drain() == []
    pool.join()


# ---- what a lost worker leaves behind ----


def crash() -> None:
    import ctypes
    import faulthandler

    faulthandler.disable()  # the point is the signal, not the traceback
    ctypes.string_at(0)


def leave_at_once(status: int) -> None:
    import os

    os._exit(status)


@pytest.mark.parametrize(
    ("task", "args", "text"),
    [
        (die, (), "SIGKILL"),
        (crash, (), "SIGSEGV"),
        (leave_at_once, (7,), "exitcode 7"),
    ],
)
def test_a_lost_worker_s_error_says_how_it_ended(ctx: Any, task: Any, args: Any, text: str) -> None:
    with pool_of(ctx, 1) as pool:
        pool.apply(pid)
        with pytest.raises(WorkerLostError, match=text):
            pool.apply_async(task, args).get(PATIENCE)


@needs_cancel  # it came with the native drive
def test_a_lost_worker_s_error_says_which_it_was() -> None:
    with pool_of(fork, 1) as pool:
        worker = pool.apply(pid)
        with pytest.raises(WorkerLostError, match=rf"\b{worker}\b"):
            pool.apply_async(die).get(PATIENCE)


def test_the_worker_of_a_task_that_exits_is_not_lost() -> None:
    with pool_of(fork, 1) as pool, pytest.raises(SystemExit):
        pool.apply_async(leave, (3,)).get(PATIENCE)


@needs_cancel  # it came with the native drive
def test_a_worker_killed_by_a_stranger_s_signal_is_said_to_be(tmp_path: Path) -> None:
    import os

    with pool_of(fork, 1) as pool:
        begun = Gate(tmp_path)
        result = pool.apply_async(set_and_wait, (begun, Gate(tmp_path)))
        assert begun.wait()
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="signal 9"):
            result.get(PATIENCE)
