"""Conditions, in and between processes: who waits, who is woken, and who is killed meanwhile."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("bad", [5, "lock", object()])
def test_what_is_no_lock_is_an_error_at_once(bad: object) -> None:
    with pytest.raises(AttributeError, match="acquire"):
        billiard.Condition(bad)


def test_a_handler_that_raises_ends_the_wait_with_the_lock_held() -> None:
    condition = billiard.Condition()
    with condition:
        with pytest.raises(Interrupt), alarm(interrupt):
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
