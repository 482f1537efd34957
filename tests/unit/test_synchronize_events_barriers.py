"""Events and barriers, in and between processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from alarms import Interrupt, alarm, interrupt
from synchronize_helpers import LONG, SHORT, kill, started

import billiard

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
    with pytest.raises(Interrupt), alarm(interrupt):
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
