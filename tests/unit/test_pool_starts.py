"""Workers that end before they are ready, or in ways of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pool_tasks import Gate

import billiard
from billiard._pool import supervision

#: a grace, in seconds, that is far from over when workers end by themselves
NO_KILL = 30


def die_until(deaths: Any, wanted: int, how: str) -> None:
    with deaths.get_lock():
        if deaths.value >= wanted:
            return
        deaths.value += 1
    if how == "raise":
        raise LookupError("the initializer")
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_killed_before_they_are_ready_are_replaced(ctx: Any) -> None:
    """Also before the first one was, and more often than an initializer may fail."""
    deaths = ctx.Value("i", 0)
    with ctx.Pool(2, die_until, (deaths, 8, "kill")) as pool:
        assert pool.apply_async(abs, (-1,)).get(60) == 1
        assert deaths.value == 8
    pool.join()


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_pool_whose_workers_never_get_ready_gives_up(how: str) -> None:
    context = billiard.get_context("fork")
    deaths = context.Value("i", 0)
    with (
        patch.object(supervision, "SLAIN_LIMIT", 10),
        context.Pool(2, die_until, (deaths, 1 << 20, how)) as pool,
    ):
        with pytest.raises(LookupError if how == "raise" else billiard.WorkerLostError):
            pool.apply_async(abs, (-1,)).get(60)
        assert deaths.value < 20
    pool.join()


def terminate_without_a_kill(pool: Any) -> None:
    with patch.object(supervision, "TERMINATE_GRACE", NO_KILL):
        started = time.monotonic()
        pool.terminate()
        pool.join()
        assert time.monotonic() - started < NO_KILL / 2


@pytest.mark.timeout(60)
def test_stopped_workers_do_not_hold_up_terminate(ctx: Any) -> None:
    pool = ctx.Pool(2)
    pool.map(abs, range(4))
    processes = list(pool._pool)
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    terminate_without_a_kill(pool)
    assert not any(process.is_alive() for process in processes)


def exit_with(status: object) -> None:
    sys.exit(status)  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "exitcode"), [("text", 1), (None, 0), (3, 3), (1 << 70, 0)])
def test_exit_status_of_a_worker_whose_task_exits(
    status: object, exitcode: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with billiard.get_context("fork").Pool(1) as pool:
        [worker] = pool._pool
        with pytest.raises(SystemExit):
            pool.apply_async(exit_with, (status,)).get(60)
        worker.join(60)
        assert worker.exitcode == exitcode
    pool.join()
    if status == "text":
        assert capfd.readouterr().err.splitlines().count("text") == 1


def swallow_the_end(begun: Gate) -> int:
    """A task that neither ends at SIGTERM nor says so."""
    begun.set()
    with contextlib.suppress(SystemExit):
        time.sleep(60)
    return 1


class Deadly:
    """Something that nobody survives decoding."""

    def __init__(self, death: Callable[[], int]) -> None:
        self.death = death

    def __reduce__(self) -> tuple[Any, ...]:
        return self.death, ()


def swallow_a_sigterm() -> int:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except SystemExit:
        pass
    return -1


def die_now() -> int:
    os._exit(7)


@pytest.mark.timeout(60)
def test_a_worker_whose_task_swallows_sigterm_ends_after_the_task(ctx: Any, tmp_path: Path) -> None:
    begun = Gate(tmp_path)
    pool = ctx.Pool(1)
    pool.apply_async(swallow_the_end, (begun,))
    assert begun.wait()
    terminate_without_a_kill(pool)


@pytest.mark.parametrize("death", [swallow_a_sigterm, die_now])
def test_a_task_that_kills_whoever_decodes_it_is_lost(death: Callable[[], int]) -> None:
    deaths = []
    with billiard.get_context("fork").Pool(2, on_process_down=deaths.append) as pool:
        job = pool.apply_async(abs, (Deadly(death),))
        chunks = pool.map_async(abs, [Deadly(death)])
        with pytest.raises(billiard.WorkerLostError):
            job.get(60)
        with pytest.raises(billiard.WorkerLostError):
            chunks.get(60)
        assert pool.map(abs, [-1, -2]) == [1, 2]
        assert not pool._cache
        assert len(deaths) <= 4 * 5
        pool.close()
        pool.join()
