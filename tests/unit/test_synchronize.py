"""Locks, semaphores, conditions, events and barriers, in and between processes."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import billiard
from billiard import synchronize
from billiard.exceptions import OwnerDiedError

#: seconds after which something that should happen will not
LONG = 30.0
#: seconds in which something that should not happen would have
SHORT = 0.05

MAKERS: dict[str, Callable[[Any], Any]] = {
    "Lock": lambda ctx: ctx.Lock(),
    "robust": lambda ctx: ctx.Lock(robust=True),
    "RLock": lambda ctx: ctx.RLock(),
    "Semaphore": lambda ctx: ctx.Semaphore(1),
    "BoundedSemaphore": lambda ctx: ctx.BoundedSemaphore(1),
}


@pytest.fixture(params=MAKERS)
def lock(request: pytest.FixtureRequest) -> Any:
    """One of everything that can be acquired once."""
    return MAKERS[request.param](billiard)


@contextmanager
def started(ctx: Any, target: Any, *args: Any) -> Iterator[Any]:
    """A process that has to end well, unless it was killed."""
    process = ctx.Process(target=target, args=args)
    process.start()
    try:
        yield process
        process.join(LONG)
        assert process.exitcode in (0, -signal.SIGKILL)
    finally:
        if process.is_alive():
            process.kill()
            process.join()


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@contextmanager
def alarm(handler: Callable[..., Any], after: float = SHORT) -> Iterator[None]:
    """A signal handler that runs in a moment."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Interrupt(Exception):
    pass


def interrupt(*_: object) -> None:
    raise Interrupt


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
    assert 0.1 <= took < 5
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


@pytest.mark.parametrize("value", [-1, 2**31])
def test_a_value_out_of_range_is_an_oserror(value: int) -> None:
    with pytest.raises(OSError, match="not in") as caught:
        billiard.Semaphore(value)
    assert caught.value.errno == 22


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
    calls = []

    def handler(*_: object) -> None:
        calls.append(1)

    other = billiard.Lock()
    other.acquire()
    start = time.monotonic()
    with alarm(handler):
        assert not other.acquire(True, 4 * SHORT)
    assert calls == [1]
    assert time.monotonic() - start >= 4 * SHORT
    lock.release()


def test_a_handler_that_raises_ends_the_wait() -> None:
    lock = billiard.Lock()
    lock.acquire()
    with alarm(interrupt), pytest.raises(Interrupt):
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
    assert time.monotonic() - start < 1
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


# ---- conditions ----


def sleep_on(condition: Any, ready: Any, woken: Any, timeout: float | None = None) -> None:
    with condition:
        ready.release()
        if condition.wait(timeout):
            woken.release()


def wait_until_asleep(condition: Any, ready: Any, number: int) -> None:
    """Everyone has announced itself, and has let go of the lock since."""
    for _ in range(number):
        assert ready.acquire(True, LONG)
    with condition:
        pass


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_notify_wakes_as_many_as_it_is_told(ctx: Any, kind: str) -> None:
    condition = ctx.Condition(MAKERS[kind](ctx))
    ready, woken = ctx.Semaphore(0), ctx.Semaphore(0)
    with (
        started(ctx, sleep_on, condition, ready, woken),
        started(ctx, sleep_on, condition, ready, woken),
        started(ctx, sleep_on, condition, ready, woken),
    ):
        wait_until_asleep(condition, ready, 3)
        assert condition._sleeping_count.get_value() - condition._woken_count.get_value() == 3
        with condition:
            condition.notify()
        assert woken.acquire(True, LONG)
        assert not woken.acquire(True, SHORT)
        with condition:
            condition.notify(n=2)
        assert woken.acquire(True, LONG) and woken.acquire(True, LONG)
    assert condition._sleeping_count.get_value() == 0
    assert condition._wait_semaphore.get_value() == 0


def test_notify_all_wakes_everyone(ctx: Any) -> None:
    condition, ready, woken = ctx.Condition(), ctx.Semaphore(0), ctx.Semaphore(0)
    with (
        started(ctx, sleep_on, condition, ready, woken),
        started(ctx, sleep_on, condition, ready, woken),
    ):
        thread = threading.Thread(target=sleep_on, args=(condition, ready, woken))
        thread.start()
        wait_until_asleep(condition, ready, 3)
        assert repr(condition) == "<Condition(<RLock(None, 0)>, 3)>"
        with condition:
            condition.notify_all()
        thread.join(LONG)
    assert woken.get_value() == 3


def test_a_wait_that_is_over_leaves_nothing_behind() -> None:
    condition = billiard.Condition()
    with condition:
        assert condition.wait(SHORT) is False
        condition.notify_all()
        condition.notify(5)
        assert condition.wait(0) is False
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 0)>"


def test_a_wait_gives_back_a_lock_that_is_held_more_than_once() -> None:
    condition, ready, woken = billiard.Condition(), billiard.Semaphore(0), billiard.Semaphore(0)
    counts: list[int] = []

    def wait() -> None:
        with condition, condition, condition:
            sleep_on(condition, ready, woken)
            counts.append(condition._lock._count())

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until_asleep(condition, ready, 1)
    with condition:
        condition.notify()
    thread.join(LONG)
    assert counts == [3]
    assert condition._lock._get_value() == 1


def test_only_the_holder_of_the_lock_waits_and_notifies() -> None:
    condition = billiard.Condition(billiard.Lock())
    for call in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(AssertionError):
            call()
    with condition, pytest.raises(ValueError, match="-1"):
        condition.notify(-1)


class Wrapped:
    """A lock that looks like one of ours from outside only."""

    def __init__(self) -> None:
        self._semlock = billiard.RLock()
        self.calls: list[str] = []

    def acquire(self, *args: Any) -> bool:
        self.calls.append("acquire")
        return bool(self._semlock.acquire(*args))

    def release(self) -> None:
        self.calls.append("release")
        self._semlock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *args: Any) -> None:
        self.release()


def test_any_lock_will_do_that_has_the_methods() -> None:
    lock = Wrapped()
    condition = synchronize.Condition(lock)
    woken: list[bool] = []

    def wait() -> None:
        with condition:
            ready.set()
            woken.append(condition.wait(LONG))

    ready = threading.Event()
    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    with condition:
        condition.notify()
    thread.join(LONG)
    assert woken == [True]
    assert lock.calls.count("acquire") == lock.calls.count("release") == 3


def test_a_handler_that_raises_ends_the_wait_with_the_lock_held() -> None:
    condition = billiard.Condition()
    with condition:
        with alarm(interrupt), pytest.raises(Interrupt):
            condition.wait()
        assert condition._lock._is_mine()
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 0)>"


def test_wait_for_returns_what_the_predicate_says(ctx: Any) -> None:
    condition, state = ctx.Condition(), ctx.RawValue("i", 0)
    with started(ctx, count_up, condition, state, 4), condition:
        assert condition.wait_for(lambda: state.value == 4, LONG) is True
        assert condition.wait_for(lambda: state.value, 0) == 4
        assert condition.wait_for(lambda: state.value == 5, SHORT) is False


def count_up(condition: Any, state: Any, to: int) -> None:
    for _ in range(to):
        with condition:
            state.value += 1
            condition.notify()


def test_a_waiter_that_is_killed_holds_up_nobody_and_takes_nothing(ctx: Any) -> None:
    condition, ready, woken = ctx.Condition(), ctx.Semaphore(0), ctx.Semaphore(0)
    with started(ctx, sleep_on, condition, ready, woken) as victim:
        wait_until_asleep(condition, ready, 1)
        with started(ctx, sleep_on, condition, ready, woken):
            wait_until_asleep(condition, ready, 1)
            kill(victim)
            with condition:
                condition.notify()
            assert woken.acquire(True, LONG)
            with condition:  # nobody is left, but who knows
                condition.notify()
                condition.notify_all()
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 0)>"


def play(condition: Any, turn: Any, mine: int, rounds: int) -> None:
    for _ in range(rounds):
        with condition:
            assert condition.wait_for(lambda: turn.value == mine, LONG)
            turn.value = 1 - mine
            condition.notify()


def test_turns_are_passed_on_without_end(ctx: Any) -> None:
    condition, turn = ctx.Condition(), ctx.RawValue("i", 0)
    with started(ctx, play, condition, turn, 1, 500):
        play(condition, turn, 0, 500)


def lock_again(condition: Any) -> None:
    """As `acquire`; the state behind it is a number, which cannot be half changed."""
    with suppress(OwnerDiedError):
        condition.acquire()


def produce(condition: Any, stock: Any, made: Any, stop: Any) -> None:
    while not stop.is_set():
        lock_again(condition)
        stock.value += 1
        made.value += 1
        condition.notify()
        condition.release()


def consume(condition: Any, stock: Any, used: Any, stop: Any) -> None:
    while not stop.is_set():
        lock_again(condition)
        while stock.value <= 0 and not stop.is_set():
            with suppress(OwnerDiedError):
                condition.wait(SHORT if stop.is_set() else LONG)
        stock.value -= 1
        used.value += 1
        condition.release()


@pytest.mark.stress
def test_no_kill_ever_stops_the_others_at_a_condition(ctx: Any) -> None:
    condition, stop = ctx.Condition(), ctx.Event()
    stock, made, used = (ctx.RawValue("q", 0) for _ in range(3))
    end = time.monotonic() + float(os.environ.get("BILLIARD_STRESS_SECONDS", "4")) / 4

    def start(target: Any, total: Any) -> Any:
        process = ctx.Process(target=target, args=(condition, stock, total, stop))
        process.start()
        return process

    jobs = [(produce, made), (consume, used)] * 2
    workers = [start(*job) for job in jobs]
    kills = 0
    while time.monotonic() < end:
        index = kills % len(jobs)
        kill(workers[index])
        kills += 1
        workers[index] = start(*jobs[index])
        before = made.value, used.value
        deadline = time.monotonic() + LONG
        while not (made.value > before[0] and used.value > before[1]):
            assert time.monotonic() < deadline, f"everyone waits after {kills} kills"
            time.sleep(0.001)
    stop.set()
    for worker in workers:
        worker.join(SHORT)
    while any(worker.is_alive() for worker in workers):
        lock_again(condition)
        stock.value += len(workers)
        condition.notify_all()
        condition.release()
        for worker in workers:
            worker.join(SHORT)
    assert all(worker.exitcode == 0 for worker in workers)


# ---- events ----


def wait_for_event(event: Any, ready: Any, results: Any) -> None:
    ready.release()
    results.put(event.wait(LONG))


def test_an_event_wakes_everyone_who_waits(ctx: Any) -> None:
    event, ready, results = ctx.Event(), ctx.Semaphore(0), ctx.SimpleQueue()
    with (
        started(ctx, wait_for_event, event, ready, results),
        started(ctx, wait_for_event, event, ready, results),
    ):
        assert ready.acquire(True, LONG) and ready.acquire(True, LONG)
        event.set()
        assert [results.get(), results.get()] == [True, True]


def test_an_event_stays_set_until_it_is_cleared() -> None:
    event = billiard.Event()
    assert not event.is_set()
    assert event.wait(0) is False
    assert event.wait(SHORT) is False
    event.set()
    event.set()
    assert event.is_set() and event.wait() and event.wait(0)
    event.clear()
    assert not event.is_set() and not event.wait(0)


def test_a_waiter_sees_an_event_that_is_cleared_at_once() -> None:
    event, results = billiard.Event(), []
    thread = threading.Thread(target=lambda: results.append(event.wait(LONG)))
    thread.start()
    while thread.is_alive():
        event.set()
        event.clear()
    thread.join()
    assert results == [True]


def test_an_event_says_whether_it_is_set() -> None:
    event = billiard.Event()
    assert repr(event).startswith("<Event at 0x") and repr(event).endswith(" unset>")
    event.set()
    assert repr(event).endswith(" set>")


def test_a_killed_waiter_of_an_event_holds_up_nobody(ctx: Any) -> None:
    event, ready, results = ctx.Event(), ctx.Semaphore(0), ctx.SimpleQueue()
    with started(ctx, wait_for_event, event, ready, results) as victim:
        assert ready.acquire(True, LONG)
        kill(victim)
        event.set()
        assert event.wait(0)


# ---- barriers ----


def meet(barrier: Any, rounds: int, results: Any) -> None:
    results.put([barrier.wait(LONG) for _ in range(rounds)])


def test_parties_get_different_numbers_in_every_round(ctx: Any) -> None:
    barrier, results = ctx.Barrier(3), ctx.SimpleQueue()
    with started(ctx, meet, barrier, 20, results), started(ctx, meet, barrier, 20, results):
        mine = [barrier.wait(LONG) for _ in range(20)]
        indices = zip(mine, results.get(), results.get(), strict=True)
    assert all(sorted(round_) == [0, 1, 2] for round_ in indices)
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)


class Count:
    def __init__(self, counter: Any) -> None:
        self.counter = counter

    def __call__(self) -> None:
        self.counter.value += 1


def test_the_action_runs_once_a_round_before_anyone_goes_on(ctx: Any) -> None:
    counter = ctx.RawValue("i", 0)
    barrier, results = ctx.Barrier(2, Count(counter)), ctx.SimpleQueue()
    with started(ctx, meet, barrier, 10, results):
        for number in range(1, 11):
            barrier.wait(LONG)
            assert counter.value >= number
    assert counter.value == 10


def fail() -> None:
    raise Interrupt


def meet_in_vain(barrier: Any, results: Any) -> None:
    try:
        barrier.wait(LONG)
    except Exception as error:
        results.put(type(error).__name__)


def test_an_action_that_fails_breaks_the_barrier(ctx: Any) -> None:
    barrier, results = ctx.Barrier(2, fail), ctx.SimpleQueue()
    with started(ctx, meet_in_vain, barrier, results):
        meet_in_vain(barrier, results)
    assert sorted([results.get(), results.get()]) == ["BrokenBarrierError", "Interrupt"]
    assert barrier.broken


def test_time_over_breaks_it_for_everyone_until_it_is_reset(ctx: Any) -> None:
    barrier, results = ctx.Barrier(3, timeout=LONG), ctx.SimpleQueue()
    with started(ctx, meet_in_vain, barrier, results):
        while barrier.n_waiting == 0:
            time.sleep(0.001)
        with pytest.raises(threading.BrokenBarrierError):
            barrier.wait(SHORT)
        assert results.get() == "BrokenBarrierError"
    assert barrier.broken and barrier.n_waiting == 0
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    assert not barrier.broken


@pytest.mark.parametrize("verb", ["abort", "reset"])
def test_who_waits_learns_of_the_end(ctx: Any, verb: str) -> None:
    barrier, results = ctx.Barrier(2), ctx.SimpleQueue()
    with started(ctx, meet_in_vain, barrier, results):
        while barrier.n_waiting == 0:
            time.sleep(0.001)
        getattr(barrier, verb)()
        assert results.get() == "BrokenBarrierError"
    assert barrier.broken is (verb == "abort")


def test_a_barrier_s_default_timeout_is_used() -> None:
    barrier = billiard.Barrier(2, timeout=SHORT)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()


def test_who_is_interrupted_is_not_counted() -> None:
    barrier = billiard.Barrier(2)
    with alarm(interrupt), pytest.raises(Interrupt):
        barrier.wait()
    assert (barrier.n_waiting, barrier.broken) == (0, False)


def test_a_barrier_is_one_of_threading_s() -> None:
    barrier = billiard.Barrier(1)
    assert isinstance(barrier, threading.Barrier)
    assert barrier.wait() == 0
    assert (barrier._state, barrier._count) == (0, 0)
    with pytest.raises(ValueError, match="0 parties"):
        billiard.Barrier(0)


class Stuck:
    def __init__(self, results: Any) -> None:
        self.results = results

    def __call__(self) -> None:
        self.results.put(os.getpid())
        signal.pause()


def test_who_dies_in_the_action_breaks_the_barrier(ctx: Any) -> None:
    acting, results = ctx.SimpleQueue(), ctx.SimpleQueue()
    barrier = ctx.Barrier(2, Stuck(acting))
    with (
        started(ctx, meet_in_vain, barrier, results),
        started(ctx, meet_in_vain, barrier, results),
    ):
        os.kill(acting.get(), signal.SIGKILL)
        assert results.get() == "BrokenBarrierError"
    assert barrier.broken
