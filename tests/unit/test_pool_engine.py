"""The corners of the native drive: what callers, signals and users' code may do to it."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import billiard
import billiard.pool
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, WorkerLostError


def ident(x: Any) -> Any:
    return x


def fail() -> None:
    raise ValueError("on purpose")


class Witness:
    """Something to see the end of."""


def test_a_failure_that_was_raised_does_not_keep_the_frame_that_asked() -> None:
    witnesses = []

    def ask(result: Any) -> None:
        witness = Witness()
        witnesses.append(weakref.ref(witness))
        try:
            result.get(30)
        except Exception as exc:
            assert exc.__traceback__
        # The frame knows the result, which knows the exception, which knows the frame.

    with billiard.get_context("fork").Pool(1) as pool:
        ask(pool.apply_async(fail))
        lost = pool.apply_async(ident, (lambda: None,))
        lost.cancel()
        ask(lost)
        del lost
        gc.collect()
        assert [witness() for witness in witnesses] == [None, None]


def _is_collected(pool_of: Any) -> bool:
    """Whether a pool that nobody has closed goes away with its last job."""
    pool = billiard.get_context("fork").Pool(1)
    result, known = pool_of(pool), weakref.ref(pool)
    threads = list(pool._drive.handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del pool
        deadline = time.monotonic() + 60
        while known() is not None and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.005)
    for thread in threads:
        thread.stop(60)
    del result
    return known() is None


def test_a_pool_whose_job_was_cancelled_can_be_collected() -> None:
    def cancelled(pool: Any) -> Any:
        result = pool.apply_async(time.sleep, (100,))
        assert result.cancel()
        return result

    assert _is_collected(cancelled)


def test_a_pool_whose_job_could_not_be_sent_can_be_collected() -> None:
    assert _is_collected(lambda pool: pool.apply_async(ident, (threading.Lock(),)))


def _begin_badly() -> None:
    raise ValueError("long " * 100_000)


def test_an_initializer_s_exception_arrives_however_long_it_is() -> None:
    with (
        billiard.get_context("fork").Pool(1, _begin_badly) as pool,
        pytest.raises(billiard.pool.MaybeEncodingError) as caught,
    ):
        pool.apply_async(ident, (1,)).get(30)
    assert "ValueError" in str(caught.value)


def _inner_soft_limit() -> str:
    with billiard.get_context("fork").Pool(1) as pool:
        try:
            pool.apply_async(time.sleep, (20,), soft_timeout=0.05).get(30)
        except SoftTimeLimitExceeded:
            return "limited"
    return "not limited"


def test_soft_limits_hold_in_the_pool_of_a_task() -> None:
    with billiard.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_inner_soft_limit).get(60) == "limited"


# ---- what signals and users' code raise ----


class Interrupting:
    """Raises KeyboardInterrupt once in the process that made it, as a signal's handler may."""

    def __init__(self) -> None:
        self.at = [os.getpid()]

    def __reduce__(self) -> Any:
        if self.at.pop() if self.at else None:
            raise KeyboardInterrupt
        return int, (2,)


class Interruptible:
    """An iterator that goes on after an exception."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __iter__(self) -> Interruptible:
        return self

    def __next__(self) -> Any:
        if not self.values:
            raise StopIteration
        value = self.values.pop(0)
        if value is KeyboardInterrupt:
            raise value
        return value


def _taken(results: Any) -> list[Any]:
    taken = []
    while True:
        try:
            taken.append(results.next(30))
        except StopIteration:
            return taken
        except KeyboardInterrupt:
            taken.append(KeyboardInterrupt)


@pytest.mark.parametrize("limit", [None, 60])
@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_an_interrupted_reader_of_the_input_loses_no_result(method: str, limit: Any) -> None:
    items = Interruptible([0, 1, 2, KeyboardInterrupt, 3, 4])
    with billiard.get_context("fork").Pool(1) as pool:
        taken = _taken(getattr(pool, method)(ident, items, buffersize=2, timeout=limit))
    assert taken.count(KeyboardInterrupt) == 1
    taken.remove(KeyboardInterrupt)
    assert taken == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("limit", [None, 60])
def test_an_item_whose_pickling_was_interrupted_is_sent_later(limit: Any) -> None:
    items = iter([0, 1, Interrupting(), 3])
    with billiard.get_context("fork").Pool(1) as pool:
        taken = _taken(pool.imap(ident, items, buffersize=1, timeout=limit))
    assert taken.count(KeyboardInterrupt) == 1
    taken.remove(KeyboardInterrupt)
    assert taken == [0, 1, 2, 3]


_INTERRUPTS = [0]


def _rebuilt(maker: int) -> str:
    if os.getpid() == maker and _INTERRUPTS[0] > 0:
        _INTERRUPTS[0] -= 1
        raise KeyboardInterrupt
    return "rebuilt"


class Rebuilt:
    def __init__(self, maker: int) -> None:
        self.maker = maker

    def __reduce__(self) -> Any:
        return _rebuilt, (self.maker,)


def test_a_result_whose_unpickling_was_interrupted_can_be_had_again() -> None:
    with billiard.get_context("fork").Pool(1) as pool:
        result = pool.apply_async(Rebuilt, (os.getpid(),))
        results = pool.imap(Rebuilt, [os.getpid()] * 3)
        _INTERRUPTS[0] = 1
        with pytest.raises(KeyboardInterrupt):
            result.get(30)
        assert result.get(30) == "rebuilt"
        _INTERRUPTS[0] = 2
        taken = _taken(results)
    assert taken == [KeyboardInterrupt, KeyboardInterrupt, *["rebuilt"] * 3]


def test_a_closed_pool_reads_the_rest_of_an_input_that_was_read_ahead_of_its_results() -> None:
    with billiard.get_context("fork").Pool(1) as pool:
        results = pool.imap(ident, range(10), buffersize=2)
        limited = pool.imap(ident, range(10), buffersize=2, timeout=60)
        pool.close()
        assert pool.join(30)
        assert list(results) == list(limited) == list(range(10))


def _exits() -> Iterator[int]:
    yield 1
    raise SystemExit(3)


def test_an_input_that_exits_ends_its_own_sequence_only() -> None:
    with billiard.get_context("fork").Pool(1) as pool:
        results = pool.imap(ident, _exits())
        assert results.next(30) == 1
        with pytest.raises(SystemExit):
            results.next(30)
        limited = pool.imap(ident, _exits(), timeout=60)
        assert limited.next(30) == 1
        with pytest.raises(SystemExit):
            limited.next(30)
        assert pool.apply_async(ident, (2,)).get(30) == 2
        pool.close()
        assert pool.join(30)


def test_a_callback_that_exits_holds_up_no_other() -> None:
    def leave(value: Any) -> None:
        raise SystemExit

    with billiard.get_context("fork").Pool(1) as pool:
        pool.apply_async(ident, (1,), callback=leave).wait(30)
        called = threading.Event()
        pool.apply_async(ident, (2,), callback=lambda value: called.set())
        assert called.wait(30)
        pool.close()
        assert pool.join(30)


def test_a_worker_that_cannot_be_watched_is_not_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun = billiard.get_context("fork").Semaphore(0)
    pool = billiard.get_context("fork").Pool(0, _BEGUN.append, (begun,))
    engine, failures = pool._drive.engine, [OSError(errno.EMFILE, "none left")]

    class Engine:
        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def attach(self, *args: Any) -> None:
            if failures:
                assert begun.acquire(timeout=30)
                raise failures.pop()
            engine.attach(*args)

    monkeypatch.setattr(pool._drive, "engine", Engine())
    with pool:
        lost = pool.apply_async(_begin_and_wait, (60,))
        pool.grow(1)
        with pytest.raises(WorkerLostError):
            lost.get(30)
        assert pool.apply_async(ident, (1,)).get(30) == 1
        assert len(pool._pool) == len(pool._drive.members) == 1
        pool.close()
        assert pool.join(30)
    caplog.clear()  # the exception that it has knows the worker


def test_the_longest_timeout_of_threads_is_one_here() -> None:
    with billiard.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(time.sleep, (0.05,)).get(threading.TIMEOUT_MAX) is None
        with pytest.raises(OverflowError):
            pool.apply_async(time.sleep, (0.05,)).get(1e10)


def test_a_process_forked_by_the_system_call_leaves_the_workers_alone_when_it_exits() -> None:
    program = """
import billiard, os, sys
if __name__ == "__main__":
    pool = billiard.get_context("fork").Pool(1)
    task = pool.apply_async(int)
    task.get(30)
    workers = [worker.pid for worker in pool._pool]
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.apply_async(os.getpid).get(30) in workers
    pool.terminate()
"""
    # Python 3.12 and newer warn of the fork beside the pool's threads.
    quiet = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(quiet, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_map_that_is_cancelled_hands_out_no_more_tasks() -> None:
    ctx = billiard.get_context("fork")
    begun = ctx.Semaphore(0)
    with ctx.Pool(1, _BEGUN.append, (begun,)) as pool:
        result = pool.map_async(_begin_and_wait, [60] * 5000, chunksize=1)
        assert begun.acquire(timeout=30)
        assert result.cancel()
        with pytest.raises(Terminated):
            result.get(30)
        assert not result.cancel()
        assert pool.apply_async(ident, (1,)).get(30) == 1
        assert not begun.acquire(block=False)
        pool.close()
        assert pool.join(30)


_BEGUN: list[Any] = []


def _begin_and_wait(seconds: float) -> None:
    _BEGUN[-1].release()
    time.sleep(seconds)


def test_a_pool_that_could_not_be_made_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    # The last of the threads to be started.
    monkeypatch.setattr(billiard.pool.TaskHandler, "start", start)
    with pytest.raises(RuntimeError, match="new thread"):
        billiard.get_context("fork").Pool(2)


def test_a_task_does_not_wait_for_an_idle_worker_that_is_stopped() -> None:
    with billiard.get_context("fork").Pool(2) as pool:
        pool.map(ident, range(20))
        for worker in list(pool._pool):
            os.kill(worker.pid, signal.SIGSTOP)
            assert pool.apply_async(ident, (1,)).get(30) == 1
            called = threading.Event()
            pool.apply_async(threading.get_ident, callback=lambda _, done=called: done.set())
            assert called.wait(30)
            os.kill(worker.pid, signal.SIGCONT)


class SlowlyDecoded:
    def __reduce__(self) -> Any:
        return time.sleep, (0.3,)


def test_a_soft_limit_that_passes_before_the_task_can_begin_is_raised() -> None:
    with billiard.get_context("fork").Pool(1) as pool:
        result = pool.apply_async(ident, (SlowlyDecoded(),), soft_timeout=0.05)
        with pytest.raises(SoftTimeLimitExceeded):
            result.get(30)
        assert pool.apply_async(ident, (1,), soft_timeout=30).get(30) == 1


def test_a_worker_that_dies_in_a_limited_sequence_costs_one_item() -> None:
    with billiard.get_context("fork").Pool(1) as pool:
        results = pool.imap(_die_of, [1, 0, 2], timeout=60)
        assert results.next(30) == 1
        with pytest.raises(WorkerLostError):
            results.next(30)
        assert results.next(30) == 2


def _die_of(n: int) -> int:
    if n == 0:
        os._exit(3)
    return n
