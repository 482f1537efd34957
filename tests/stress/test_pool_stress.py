"""billiard.pool while its workers are killed, stopped, limited and cancelled at random instants."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import PATIENCE, count_up, eventually, nap, pool_of, square
from storm import (
    ALL,
    LARGE,
    SECONDS,
    SHORT,
    SMALL,
    Bully,
    Killer,
    Stopper,
    Tally,
    applies,
    applies_with_callbacks,
    check_alive,
    imaps,
    lost,
    maps,
    megabytes,
    numbers,
    started,
    strange_results,
    use,
    workers,
)

import billiard
from billiard.exceptions import (
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from billiard.pool import ApplyResult

pytestmark = [pytest.mark.stress, pytest.mark.timeout(180 + 2 * SECONDS)]
fork: Any = billiard.get_context("fork")
#: Seconds between two deaths. On a busy machine workers need a while before they can do anything.
PAUSES = {"fork": 0.03, "forkserver": 0.1, "spawn": 0.4}


log = logging.getLogger("storm")
log.setLevel(logging.INFO)
log.propagate = False


def pause(ctx: Any) -> float:
    return PAUSES[ctx.get_start_method()]


# ---- SIGKILL ----


def test_every_job_ends_while_random_workers_are_killed(ctx: Any) -> None:
    with pool_of(ctx, 3) as pool:
        tally = lost()
        with Killer(started(pool), pause(ctx)) as killer:
            use(pool, tally, SECONDS if ctx.get_start_method() == "fork" else SHORT)
        assert tally.right and killer.count
        assert tally.excused <= killer.count
        check_alive(pool, 3)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_jobs_of_one_kind_end_while_workers_are_killed(kind: Any) -> None:
    """Where all jobs are alike their own paths meet the deaths more often."""
    with pool_of(fork, 2) as pool:
        tally = lost()
        with Killer(started(pool), 0.02) as killer:
            use(pool, tally, SHORT / 2, [kind])
        assert tally.excused <= killer.count
        check_alive(pool, 2)


def test_one_worker_at_a_time_is_killed_and_the_work_goes_on() -> None:
    with pool_of(fork, 1) as pool:
        tally = lost()
        with Killer(started(pool), 0.05) as killer:
            use(pool, tally, SHORT, SMALL)
        assert tally.right and tally.excused <= killer.count
        check_alive(pool, 1)


def test_deaths_with_large_payloads_on_the_way_spoil_nothing_else(ctx: Any) -> None:
    with pool_of(ctx, 2) as pool:
        tally = lost()
        with Killer(started(pool), pause(ctx)) as killer:
            use(pool, tally, SHORT, LARGE)
        assert tally.excused <= killer.count
        check_alive(pool, 2)


def test_deaths_among_results_that_cannot_be_read() -> None:
    with pool_of(fork, 2) as pool:
        tally = lost()
        with Killer(started(pool), 0.03) as killer:
            use(pool, tally, SHORT, [strange_results, applies])
        assert tally.excused <= killer.count
        check_alive(pool, 2)


@pytest.mark.parametrize("share", [1, 2, 3])
def test_deaths_of_workers_that_are_replaced_after_a_few_tasks(share: int) -> None:
    with pool_of(fork, 2, maxtasksperchild=share) as pool:
        tally = lost()

        def count(pool: Any, dice: random.Random, tally: Tally) -> None:
            results = [pool.apply_async(count_up) for _ in range(8)]
            for result in results:
                tally.take(lambda r=result: r.get(PATIENCE), lambda v: 1 <= v <= share)

        with Killer(pool, 0.03) as killer:
            use(pool, tally, SHORT, [count, maps, imaps])
        assert tally.right and tally.excused <= killer.count
        check_alive(pool, 2)


def test_workers_that_are_replaced_after_a_few_tasks_lose_nothing(ctx: Any) -> None:
    with pool_of(ctx, 2, maxtasksperchild=4) as pool:
        tally = Tally()
        use(pool, tally, SHORT, [megabytes])  # few tasks: spawning takes its time
        check_alive(pool, 2)


def test_workers_are_replaced_while_a_thread_of_the_parent_logs(tmp_path: Path) -> None:
    """A worker that is forked while a record is written hangs with its first one."""
    log.addHandler(handler := logging.FileHandler(tmp_path / "log"))

    def chat() -> int:
        log.info("a record")
        return 1

    def squares(pool: Any, dice: random.Random, tally: Tally) -> None:
        mine = numbers(dice)
        results = [pool.apply_async(square_and_log, (n,)) for n in mine]
        for n, result in zip(mine, results, strict=True):
            tally.take(lambda r=result: r.get(PATIENCE), lambda v, n=n: v == n * n)

    try:
        with pool_of(fork, 2, maxtasksperchild=1) as pool:
            tally = Tally()  # nobody kills workers: that would end one that hangs
            with strikes(chat, 0.0002):
                use(pool, tally, SHORT, [squares])
            assert tally.right
            check_alive(pool, 2)
    finally:
        log.removeHandler(handler)
        handler.close()


def square_and_log(n: int) -> int:
    log.info("the square of %d", n)
    return n * n


def test_workers_that_are_told_to_terminate_by_strangers(ctx: Any) -> None:
    with pool_of(ctx, 3) as pool:
        tally = lost()
        with Killer(started(pool), pause(ctx), signal.SIGTERM) as killer:
            use(pool, tally, SHORT)
        assert tally.right and tally.excused <= killer.count
        check_alive(pool, 3)


# ---- SIGSTOP ----


def test_workers_that_are_stopped_for_a_moment_lose_nothing(ctx: Any) -> None:
    with pool_of(ctx, 3) as pool:
        tally = Tally()
        before = set(workers(started(pool)))
        with Stopper(pool, 0.02):
            use(pool, tally, SHORT)
        assert set(workers(pool)) == before
        check_alive(pool, 3)


def test_workers_that_are_stopped_and_then_killed() -> None:
    class StopAndKill(Killer):
        def hurt(self, pid: int) -> None:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.02 * self.dice.random())
            super().hurt(pid)

    with pool_of(fork, 3) as pool:
        tally = lost()
        with StopAndKill(started(pool), 0.05) as killer:
            use(pool, tally, SHORT)
        assert tally.right and tally.excused <= killer.count
        check_alive(pool, 3)


# ---- time limits ----


def sleep_until_limited(seconds: float) -> float:
    """How long it took until the soft limit came; -1 if none came."""
    began = time.monotonic()
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return time.monotonic() - began
    return -1.0


def softly_limited(pool: Any, dice: random.Random, tally: Tally) -> None:
    """Some tasks end about when their limits come, some have long ones, some have none."""
    close = dice.uniform(0.004, 0.02)
    jobs = [(close, close), (0.0, 2 * PATIENCE), (0.002, 2 * PATIENCE), (10.0, 0.05)]
    dice.shuffle(jobs)
    results = [
        (seconds, limit, pool.apply_async(sleep_until_limited, (seconds,), soft_timeout=limit))
        for seconds, limit in jobs
    ]
    free = [pool.apply_async(square, (n,)) for n in range(6)]
    for n, result in enumerate(free):
        tally.take(lambda r=result: r.get(PATIENCE), lambda v, n=n: v == n * n)
    for seconds, limit, result in results:

        def is_right(value: float, seconds: float = seconds, limit: float = limit) -> bool:
            hit = value >= 0
            return seconds == limit or hit == (seconds > limit)

        def outcome(result: Any = result, due: bool = seconds >= limit) -> float:
            try:
                return float(result.get(PATIENCE))
            except SoftTimeLimitExceeded:
                # It came before the task could catch it (perhaps a new worker had to import much
                # before it could begin), or after.
                if due:
                    return 0.0
                raise

        tally.take(outcome, is_right)


def test_soft_limits_never_hit_other_tasks(ctx: Any) -> None:
    with pool_of(ctx, 3) as pool:
        tally = Tally()
        before = set(workers(started(pool)))
        use(pool, tally, SHORT, [softly_limited])
        assert tally.right
        assert set(workers(pool)) == before  # a soft limit ends no worker
        check_alive(pool, 3)


def test_soft_limits_while_workers_are_killed() -> None:
    with pool_of(fork, 3) as pool:
        tally = lost()
        with Killer(started(pool), 0.05) as killer:
            use(pool, tally, SHORT, [softly_limited, applies])
        assert tally.right and tally.excused <= killer.count
        check_alive(pool, 3)


def hardly_limited(pool: Any, dice: random.Random, tally: Tally) -> None:
    """Tasks that end about when their hard limits come, and others that have none."""
    seconds = dice.uniform(0.004, 0.02)
    limited = [pool.apply_async(nap, (seconds,), timeout=seconds) for _ in range(2)]
    free = [pool.apply_async(square, (n,)) for n in range(8)]
    for n, result in enumerate(free):
        tally.take(lambda r=result: r.get(PATIENCE), lambda v, n=n: v == n * n)
    for result in limited:

        def outcome(result: Any = result) -> float:
            with suppress(TimeLimitExceeded):
                return float(result.get(PATIENCE))
            return seconds

        tally.take(outcome, lambda v: v == seconds)


def test_hard_limits_cost_their_own_tasks_only(ctx: Any) -> None:
    with pool_of(ctx, 3) as pool:
        tally = Tally()
        use(started(pool), tally, SHORT, [hardly_limited])
        assert tally.right
        check_alive(pool, 3)


def test_hard_limits_while_workers_are_killed() -> None:
    with pool_of(fork, 3) as pool:
        tally = lost()
        with Killer(started(pool), 0.05) as killer:
            use(pool, tally, SHORT, [hardly_limited, applies])
        assert tally.right and tally.excused <= killer.count
        check_alive(pool, 3)


def test_limits_of_both_kinds_at_once_end_every_job() -> None:
    with pool_of(fork, 2, soft_timeout=0.02, timeout=0.03) as pool:
        tally = Tally(SoftTimeLimitExceeded, TimeLimitExceeded)

        def limited(pool: Any, dice: random.Random, tally: Tally) -> None:
            naps = [dice.uniform(0.0, 0.04) for _ in range(6)]
            results = [pool.apply_async(stubborn_nap, (s,)) for s in naps]
            for seconds, result in zip(naps, results, strict=True):
                tally.take(lambda r=result: r.get(PATIENCE), lambda v, s=seconds: v == s)

        use(started(pool), tally, SHORT, [limited])
        assert tally.right and tally.excused
        eventually(lambda: len(workers(pool)) == 2)
        eventually(lambda: not pool._cache)


def stubborn_nap(seconds: float) -> float:
    """Does not let a soft limit end it."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with suppress(SoftTimeLimitExceeded):
            time.sleep(left)
    return seconds


# ---- jobs that are ended from outside ----


@contextmanager
def strikes(act: Callable[[], int], every: float) -> Iterator[list[int]]:
    """Act again and again in a thread; what it returns is added up in the list."""
    over, total = threading.Event(), [0]

    def run() -> None:
        while not over.wait(every):
            total[0] += act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield total
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("signum", [None, signal.SIGKILL])
def test_terminated_jobs_cost_no_others(ctx: Any, signum: int | None) -> None:
    class Terminator(Bully):
        def hurt(self, pid: int) -> None:
            pool.terminate_job(pid, signum)

    with pool_of(ctx, 3) as pool:
        tally = Tally(Terminated, WorkerLostError)
        with Terminator(started(pool), pause(ctx)) as terminator:
            use(pool, tally, SHORT, SMALL)
        assert tally.right and tally.excused <= terminator.count
        check_alive(pool, 3)


#: what a caller gets who waits for a job that was cancelled
CANCELLED: tuple[type[BaseException], ...] = (Terminated,)
needs_cancel = pytest.mark.skipif(
    not hasattr(ApplyResult, "cancel"), reason="results have no cancel()"
)


def cancelled_at_random(pool: Any, dice: random.Random, tally: Tally) -> None:
    """Who is told that a job is cancelled gets no value; who is told that it is too late does."""
    results = [pool.apply_async(nap, (dice.uniform(0, 0.01),)) for _ in range(6)]
    free = [pool.apply_async(square, (n,)) for n in range(6)]
    time.sleep(dice.uniform(0, 0.02))
    for result in results:
        if result.cancel():
            tally.take(lambda r=result: was_cancelled(r), lambda value: value)
        else:
            tally.take(lambda r=result: r.get(PATIENCE), lambda value: value <= 0.01)
    for n, result in enumerate(free):
        tally.take(lambda r=result: r.get(PATIENCE), lambda v, n=n: v == n * n)


def was_cancelled(result: Any) -> bool:
    try:
        result.get(PATIENCE)
    except CANCELLED:
        return True
    return False


@needs_cancel
def test_cancelled_jobs_cost_no_others(ctx: Any) -> None:
    with pool_of(ctx, 3) as pool:
        tally = Tally()
        use(started(pool), tally, SHORT, [cancelled_at_random])
        assert tally.right
        check_alive(pool, 3)


@needs_cancel
def test_jobs_are_cancelled_while_workers_are_killed() -> None:
    with pool_of(fork, 3) as pool:
        tally = lost()
        with Killer(started(pool), 0.05) as killer:
            use(pool, tally, SHORT, [cancelled_at_random, applies])
        assert tally.right and tally.excused <= killer.count
        check_alive(pool, 3)


# ---- handlers that raise ----


class Interrupt(Exception):
    """What a handler raises, anywhere in the main thread."""


def be_interrupted(act: Callable[[], object], seconds: float) -> None:
    """Act again and again; at random instants a signal's handler raises."""
    armed: list[None] = []

    def interrupt(*_: object) -> None:
        if armed:
            armed.pop()
            raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                armed.append(None)
                while armed:
                    act()
            except Interrupt:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "use_it",
    [
        lambda pool: pool.map(square, range(50), 1),
        lambda pool: list(pool.imap(square, range(50), timeout=PATIENCE)),
        lambda pool: list(pool.imap(square, range(50), buffersize=3)),
        lambda pool: list(pool.imap(square, range(50), buffersize=3, timeout=PATIENCE)),
        lambda pool: pool.apply_async(square, (3,), callback=str).get(PATIENCE),
        lambda pool: pool.shrink(0),  # waits for who replaces workers
    ],
    ids=["map", "limited", "buffered", "both", "callback", "shrink"],
)
def test_a_pool_works_and_ends_after_handlers_have_raised(
    use_it: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some meet code that nobody can raise to.
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: None)
    with pool_of(fork, 2) as pool:
        be_interrupted(lambda: use_it(pool), SHORT / 2)
        before = workers(pool)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: before[0] not in workers(pool))
        assert pool.map(square, range(100), 1) == [n * n for n in range(100)]
        pool.close()
        assert pool.join(PATIENCE)


# ---- growing, shrinking and ending ----


def test_a_pool_grows_and_shrinks_while_workers_are_killed() -> None:
    with pool_of(fork, 3) as pool:
        tally, dice = lost(), random.Random()

        def resize() -> int:
            if pool._processes < 5 and dice.random() < 0.5:
                pool.grow(1)
            elif pool._processes > 2:
                with suppress(ValueError):  # all are busy
                    pool.shrink(1)
            return 1

        with Killer(started(pool), 0.05) as killer, strikes(resize, 0.01):
            use(pool, tally, SHORT)
        assert tally.right and tally.excused <= killer.count
        check_alive(pool, pool._processes)


def test_closing_while_workers_are_killed_finishes_every_job(ctx: Any) -> None:
    end = time.monotonic() + SHORT
    while time.monotonic() < end:
        pool = ctx.Pool(2)
        try:
            with Killer(started(pool), pause(ctx)) as killer:
                results = [pool.apply_async(nap, (0.001,)) for _ in range(100)]
                mapped = pool.map_async(nap, [0.001] * 100, 1)
                iterator = pool.imap(square, range(50))
                pool.close()
                pool.join()
            tally = lost()
            for result in results:
                tally.take(lambda r=result: r.get(0), lambda v: v == 0.001)
            tally.take(lambda m=mapped: m.get(0), lambda v: v == [0.001] * 100)
            for n in range(50):
                tally.take(lambda it=iterator: it.next(0), lambda v, n=n: v == n * n)
            assert not tally.wrong, tally.wrong
            assert tally.excused <= killer.count
            assert not pool._cache and not pool._pool
        finally:
            pool.terminate()


def test_terminating_while_workers_are_killed_lets_everybody_go(ctx: Any) -> None:
    end = time.monotonic() + SHORT
    while time.monotonic() < end:
        pool = started(ctx.Pool(2))
        tally = Tally(Terminated, WorkerLostError)
        with Killer(pool, pause(ctx)):
            results = [pool.apply_async(nap, (0.001,)) for _ in range(500)]
            mapped = pool.map_async(nap, [0.001] * 100, 1)
            waiting = threading.Thread(target=tally.take, args=(results[-1].get, bool))
            waiting.start()
            time.sleep(0.05 * random.random())
            pool.terminate()
            pool.join()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        for result in results:
            tally.take(lambda r=result: r.get(0), lambda v: v == 0.001)
        tally.take(lambda m=mapped: m.get(0), lambda v: v == [0.001] * 100)
        assert not tally.wrong, tally.wrong
        assert not pool._cache and not pool._pool


def test_a_pool_that_restarts_its_workers_while_others_kill_them() -> None:
    with pool_of(fork, 3, allow_restart=True) as pool:
        tally = lost()

        def restart() -> int:
            pool.restart()
            return 1

        with Killer(started(pool), 0.05) as killer, strikes(restart, 0.1):
            use(pool, tally, SHORT, [applies, applies_with_callbacks, maps])
        assert tally.right and tally.excused <= killer.count
        check_alive(pool, 3)
