"""Locks and semaphores, in and between processes, and what becomes of them when owners die."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from alarms import Interrupt, alarm, interrupt
from synchronize_helpers import LONG, MAKERS, SHORT, kill, started

import billiard
from billiard import synchronize
from billiard.exceptions import OwnerDiedError


@pytest.fixture(params=MAKERS)
def lock(request: pytest.FixtureRequest) -> Any:
    """One of everything that can be acquired once."""
    return MAKERS[request.param](billiard)


# ---- locks and semaphores ----


def test_what_is_held_cannot_be_acquired_by_another_thread(lock: Any) -> None:
    assert lock.acquire()
    results: list[bool] = []

    def try_it() -> None:
        results.append(lock.acquire(False))
        results.append(lock.acquire(block=True, timeout=SHORT))
        results.append(lock.acquire(True, -1.0))

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert results == [False, False, False]
    lock.release()
    assert lock.acquire(False)
    lock.release()


def test_with_acquires_and_releases_also_when_the_body_raises(lock: Any) -> None:
    with lock as got:
        assert got is True
        assert lock._get_value() == 0
    with pytest.raises(Interrupt), lock:
        raise Interrupt
    assert lock._get_value() == 1


def test_a_timeout_is_kept(lock: Any) -> None:
    lock.acquire()
    results = []

    def wait() -> None:
        start = time.monotonic()
        results.append((lock.acquire(True, 0.1), time.monotonic() - start))

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    [(got, took)] = results
    assert not got
    assert 0.1 <= took < LONG
    lock.release()


@pytest.mark.parametrize("bad", ["soon", float("nan"), object()])
def test_a_timeout_that_is_no_time_is_an_error(bad: object) -> None:
    lock = billiard.Lock()
    lock.acquire()
    with pytest.raises((TypeError, ValueError)):
        lock.acquire(True, bad)


def test_releasing_too_often_is_an_error() -> None:
    for lock in (billiard.Lock(), billiard.BoundedSemaphore(1)):
        with pytest.raises(ValueError, match="too many times"):
            lock.release()
    with pytest.raises(AssertionError):
        billiard.RLock().release()
    semaphore = billiard.Semaphore(0)
    semaphore.release()
    assert semaphore.get_value() == 1


def test_a_value_out_of_range_is_an_error() -> None:
    with pytest.raises(OSError, match="not in") as caught:
        billiard.Semaphore(-1)
    assert caught.value.errno == 22
    for made in (billiard.Semaphore, billiard.BoundedSemaphore):
        with pytest.raises(OverflowError):
            made(2**31)


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
def test_whether_to_wait_is_told_by_an_integer(kind: str) -> None:
    lock = getattr(billiard, kind)()
    for bad in (None, 1.5, "x", object()):
        with pytest.raises(TypeError):
            lock.acquire(bad)
    with pytest.raises(OverflowError):
        lock.acquire(2**31)
    assert lock.acquire(1, 10)
    lock.release()


def test_a_recursive_lock_is_released_as_often_as_it_was_acquired() -> None:
    lock = billiard.RLock()
    for count in (1, 2, 3):
        assert lock.acquire()
        assert lock._count() == count
    for _ in range(3):
        assert lock._is_mine()
        lock.release()
    assert not lock._is_mine()
    assert lock._get_value() == 1


def test_a_recursive_lock_is_its_thread_s() -> None:
    lock = billiard.RLock()
    lock.acquire()
    errors: list[BaseException] = []

    def release() -> None:
        try:
            lock.release()
        except AssertionError as error:
            errors.append(error)

    thread = threading.Thread(target=release)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert lock._is_mine()
    lock.release()


def test_a_semaphore_counts() -> None:
    semaphore = billiard.Semaphore(2)
    assert semaphore.acquire(False) and semaphore.acquire(False)
    assert not semaphore.acquire(False)
    semaphore.release()
    assert semaphore.get_value() == 1
    assert not semaphore.locked()


def test_reprs_tell_the_owner() -> None:
    lock, rlock = billiard.Lock(), billiard.RLock()
    assert repr(lock) == "<Lock(owner=None)>"
    assert repr(rlock) == "<RLock(None, 0)>"
    with lock, rlock, rlock:
        name = billiard.current_process().name
        assert repr(lock) == f"<Lock(owner={name})>"
        assert repr(rlock) == f"<RLock({name}, 2)>"
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.extend([repr(lock), repr(rlock)]))
        thread.start()
        thread.join()
        assert seen == ["<Lock(owner=SomeOtherThread)>", "<RLock(SomeOtherThread, nonzero)>"]
    assert repr(billiard.Semaphore(3)) == "<Semaphore(value=3)>"
    assert repr(billiard.BoundedSemaphore(3)) == "<BoundedSemaphore(value=3, maxvalue=3)>"


def test_locked_says_whether_it_is_held() -> None:
    for lock in (billiard.Lock(), billiard.RLock()):
        assert not lock.locked()
        with lock:
            assert lock.locked()


def test_locks_have_no_names_and_look_like_the_original_s() -> None:
    lock = billiard.Lock()
    inner = lock._semlock
    assert (inner.kind, inner.maxvalue, inner.name) == (synchronize.SEMAPHORE, 1, None)
    assert inner.handle
    assert not inner._is_zero()
    assert synchronize.SEM_VALUE_MAX == 2**31 - 1
    assert synchronize.SemLock._make_name() != synchronize.SemLock._make_name()


class Named(synchronize.Lock):
    def __init__(self, name: str, ctx: Any = None) -> None:
        super().__init__(ctx=ctx)
        self.label = name


def test_a_subclass_may_have_its_own_constructor() -> None:
    with Named("mine") as got:
        assert got is True
    assert Named("mine").label == "mine"


def test_a_subclass_that_forgets_the_constructor_is_told() -> None:
    class Forgetful(synchronize.Lock):
        def __init__(self) -> None:
            pass

    with pytest.raises(RuntimeError, match="__init__"):
        Forgetful().acquire()


def test_an_inherited_lock_cannot_be_pickled_at_other_times(lock: Any) -> None:
    objects = [lock, billiard.Condition(), billiard.Event(), billiard.Barrier(1)]
    for thing in objects:
        with pytest.raises(RuntimeError, match="inheritance"):
            pickle.dumps(thing)


def test_a_handler_runs_while_it_is_waited_for_and_the_wait_goes_on(lock: Any) -> None:
    lock.acquire()
    calls: list[int] = []

    other = billiard.Lock()
    other.acquire()
    start = time.monotonic()
    with alarm(lambda: calls.append(1)):
        assert not other.acquire(True, 4 * SHORT)
    assert calls == [1]
    assert time.monotonic() - start >= 4 * SHORT
    lock.release()


def test_a_handler_that_raises_ends_the_wait() -> None:
    lock = billiard.Lock()
    lock.acquire()
    with pytest.raises(Interrupt), alarm(interrupt):
        lock.acquire()
    lock.release()
    assert lock.acquire(False)


def hold(lock: Any, ready: Any, done: Any) -> None:
    lock.acquire()
    ready.set()
    assert done.wait(LONG)
    lock.release()


@pytest.mark.parametrize("kind", MAKERS)
def test_processes_exclude_each_other(ctx: Any, kind: str) -> None:
    lock, ready, done = MAKERS[kind](ctx), ctx.Event(), ctx.Event()
    with started(ctx, hold, lock, ready, done):
        assert ready.wait(LONG)
        assert not lock.acquire(False)
        assert not lock.acquire(True, SHORT)
        done.set()
        assert lock.acquire(True, LONG)
    lock.release()


@pytest.mark.parametrize("kind", MAKERS)
def test_objects_of_the_default_context_work_in_every_child(ctx: Any, kind: str) -> None:
    lock, ready, done = MAKERS[kind](billiard), billiard.Event(), billiard.Event()
    with started(ctx, hold, lock, ready, done):
        assert ready.wait(LONG)
        assert not lock.acquire(False)
        done.set()
        assert lock.acquire(True, LONG)


def release_it(lock: Any) -> None:
    lock.release()


def test_a_lock_may_be_released_by_another_process(ctx: Any) -> None:
    lock = ctx.Lock()
    lock.acquire()
    with started(ctx, release_it, lock):
        assert lock.acquire(True, LONG)


def is_mine(lock: Any, results: Any) -> None:
    results.put((lock._is_mine(), lock._count(), repr(lock)))


def test_a_forked_child_does_not_own_what_its_parent_holds() -> None:
    ctx = billiard.get_context("fork")
    results = ctx.SimpleQueue()
    for lock in (ctx.Lock(), ctx.RLock()):
        with lock, started(ctx, is_mine, lock, results):
            mine, count, text = results.get()
            assert not mine
            assert count == 0
            assert "SomeOtherProcess" in text


def count_descriptors(locks: list[Any], results: Any) -> None:
    fds = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if entry.is_symlink()]
    results.put(sum("memfd:billiard" in what for what in fds))


def test_a_child_gets_a_descriptor_for_all_its_locks_not_for_each(ctx: Any) -> None:
    locks = [ctx.Lock() for _ in range(300)]
    results = ctx.SimpleQueue()
    with started(ctx, count_descriptors, locks, results):
        assert results.get() < 10


def add(lock: Any, counter: Any, times: int) -> None:
    for _ in range(times):
        with lock:
            counter.value += 1


@pytest.mark.parametrize("kind", MAKERS)
def test_nothing_is_lost_between_processes(ctx: Any, kind: str) -> None:
    lock, counter = MAKERS[kind](ctx), ctx.RawValue("i", 0)
    with started(ctx, add, lock, counter, 2000), started(ctx, add, lock, counter, 2000):
        pass
    assert counter.value == 4000


# ---- owners that die ----


def acquire_and_wait(lock: Any, ready: Any) -> None:
    lock.acquire()
    lock.acquire(False)
    ready.set()
    signal.pause()


def test_who_finds_the_owner_dead_is_told_and_owns_the_lock(ctx: Any) -> None:
    lock, ready = ctx.RLock(), ctx.Event()
    with started(ctx, acquire_and_wait, lock, ready) as process:
        assert ready.wait(LONG)
        kill(process)
    start = time.monotonic()
    with pytest.raises(OwnerDiedError, match=str(process.pid)):
        lock.acquire()
    assert time.monotonic() - start < LONG
    assert lock._is_mine()
    assert lock._count() == 1
    lock.release()
    with lock:
        pass


def test_a_dead_owner_is_noticed_while_nobody_has_collected_it() -> None:
    ctx = billiard.get_context("fork")
    lock, ready = ctx.RLock(), ctx.Event()
    with started(ctx, acquire_and_wait, lock, ready) as process:
        assert ready.wait(LONG)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(OwnerDiedError):
            lock.acquire()
        lock.release()


@pytest.mark.parametrize("arguments", [(False,), (True, 0), (True, 0.001)])
def test_who_only_ever_tries_finds_the_owner_dead_too(arguments: tuple[Any, ...]) -> None:
    ctx = billiard.get_context("fork")
    lock, ready = ctx.RLock(), ctx.Event()
    with started(ctx, acquire_and_wait, lock, ready) as process:
        assert ready.wait(LONG)
        kill(process)
    deadline = time.monotonic() + LONG
    with pytest.raises(OwnerDiedError):
        while not lock.acquire(*arguments) and time.monotonic() < deadline:
            pass
    assert lock._is_mine()
    lock.release()


def test_a_robust_lock_is_its_process_s_and_tells_of_its_death(ctx: Any) -> None:
    lock, ready = ctx.Lock(robust=True), ctx.Event()
    with pytest.raises(ValueError, match="too many times"):
        lock.release()
    with started(ctx, acquire_and_wait, lock, ready) as process:
        assert ready.wait(LONG)
        assert not lock.acquire(True, SHORT)
        with pytest.raises(ValueError, match="another process"):
            lock.release()
        kill(process)
    with pytest.raises(OwnerDiedError):
        lock.acquire()
    assert lock._is_mine() and not lock.acquire(False)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert lock.acquire(False)
    lock.release()


def test_a_plain_lock_stays_held_when_its_holder_dies(ctx: Any) -> None:
    lock, ready = ctx.Lock(), ctx.Event()
    with started(ctx, acquire_and_wait, lock, ready) as process:
        assert ready.wait(LONG)
        kill(process)
    assert not lock.acquire(True, 3 * SHORT)
    lock.release()


def take_turns(lock: Any, counter: Any, stop: Any) -> None:
    while not stop.is_set():
        with suppress(OwnerDiedError):
            lock.acquire()
        counter.value += 1
        lock.release()


@pytest.mark.stress
def test_no_kill_ever_leaves_others_waiting(ctx: Any) -> None:
    lock, counter, stop = ctx.RLock(), ctx.RawValue("q", 0), ctx.Event()
    end = time.monotonic() + float(os.environ.get("BILLIARD_STRESS_SECONDS", "4")) / 4

    def start() -> Any:
        process = ctx.Process(target=take_turns, args=(lock, counter, stop))
        process.start()
        return process

    workers = [start() for _ in range(3)]
    kills = 0
    while time.monotonic() < end:
        seen = counter.value
        kill(workers.pop(0))
        kills += 1
        workers.append(start())
        deadline = time.monotonic() + LONG
        while counter.value == seen and time.monotonic() < deadline:
            time.sleep(0.001)
        assert counter.value > seen, f"everyone waits after {kills} kills"
    stop.set()
    for worker in workers:
        worker.join(LONG)
        assert worker.exitcode == 0
