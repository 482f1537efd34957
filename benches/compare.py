#!/usr/bin/env python3
"""Side by side with billiard 4.3.2 and multiprocessing: a little of everything.

    python benches/compare.py [CASE ...] [--reference PYTHON] [--rounds 3] [--scale 0.5]

CASE is a name or its beginning: `pool`, `ipc`, `start`. The reference is an interpreter that has
billiard 4.3.2; without one, an environment is made in .venv-ref. The figure in parentheses says how
many times better than the reference.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from _ruler import amount, case, main
from ipc import MEGABYTE, now, timed


def middle(seconds: list[float]) -> float:
    return statistics.median(seconds)


# --- what children and workers run -------------------------------------------------------------


def same(value: Any) -> Any:
    return value


def nothing() -> None:
    pass


def zeros(size: int) -> bytes:
    return bytes(size)


# --- pool --------------------------------------------------------------------------------------


def started_pool(mp: Any, processes: int = 2, **options: Any) -> Any:
    """A pool whose workers have all begun to work."""
    pool = mp.Pool(processes, **options)
    pool.map(same, range(1000))
    return pool


def end(pool: Any) -> None:
    pool.close()
    pool.join()


def per_second(mp: Any, number: int, run: Callable[[Any], Any]) -> float:
    pool = started_pool(mp)
    seconds = timed(lambda: run(pool))
    end(pool)
    return number / seconds


@case("tasks/s", "high")
def pool_unordered(mp: Any, scale: float) -> float:
    """Tiny tasks, each a message of its own."""
    number = amount(30_000, scale)
    return per_second(mp, number, lambda pool: list(pool.imap_unordered(same, range(number))))


@case("tasks/s", "high")
def pool_unordered_dicts(mp: Any, scale: float) -> float:
    """Small dicts both ways, as real messages are."""
    number = amount(20_000, scale)
    tasks = [{"id": n, "name": f"n{n}", "tags": ["a", "b"], "x": n / 7} for n in range(number)]
    return per_second(mp, number, lambda pool: list(pool.imap_unordered(same, tasks)))


@case("tasks/s", "high")
def pool_apply_async(mp: Any, scale: float) -> float:
    number = amount(20_000, scale)

    def run(pool: Any) -> None:
        for result in [pool.apply_async(same, (n,)) for n in range(number)]:
            result.get()

    return per_second(mp, number, run)


@case("tasks/s", "high")
def pool_map(mp: Any, scale: float) -> float:
    """Tiny tasks in the chunks that `map` chooses."""
    number = amount(400_000, scale)
    return per_second(mp, number, lambda pool: pool.map(same, range(number)))


@case("us", "low")
def pool_latency(mp: Any, scale: float) -> float:
    """One task at a time, there and back."""
    pool = started_pool(mp)
    figures = [timed(lambda: pool.apply(same, (1,))) for _ in range(amount(2000, scale))]
    end(pool)
    return middle(figures) * 1e6


@case("MB/s", "high")
def pool_send_megabytes(mp: Any, scale: float) -> float:
    """Different blocks to the workers, which give only the length back."""
    number = amount(200, scale)
    blocks = [os.urandom(MEGABYTE) for _ in range(number)]
    return per_second(mp, number, lambda pool: list(pool.imap_unordered(len, blocks)))


@case("MB/s", "high")
def pool_receive_megabytes(mp: Any, scale: float) -> float:
    number = amount(200, scale)
    sizes = [MEGABYTE] * number
    return per_second(mp, number, lambda pool: list(pool.imap_unordered(zeros, sizes)))


@case("tasks/s", "high")
def pool_recycle(mp: Any, scale: float) -> float:
    """A new worker for each task."""
    number = amount(40, scale)
    pool = mp.Pool(2, maxtasksperchild=1)
    seconds = timed(lambda: pool.map(same, range(number), 1))
    pool.terminate()
    pool.join()
    return number / seconds


@case("ms", "low")
def pool_first_result(mp: Any, scale: float) -> float:
    """From nothing to the first result of four workers."""
    figures = []
    for _ in range(5):
        start = now()
        pool = mp.Pool(4)
        pool.apply(same, (1,))
        figures.append(now() - start)
        end(pool)
    return middle(figures) * 1e3


@case("ms", "low")
def pool_close_join(mp: Any, scale: float) -> float:
    """The end of an idle pool."""
    figures = []
    for _ in range(3):
        pool = started_pool(mp, 4)
        figures.append(timed(lambda pool=pool: end(pool)))  # type: ignore[misc]
    return middle(figures) * 1e3


def seconds_until_failure(mp: Any, function: Any, argument: Any, **limits: float) -> float:
    """How long a task that cannot succeed keeps its caller waiting."""
    # a pool of billiard 4.3.2 that has no limit of its own ignores those of a job
    pool = started_pool(mp, timeout=3600) if limits else started_pool(mp)
    start = now()
    result = pool.apply_async(function, (argument,), **limits)
    try:
        result.get(timeout=30)
    except mp.TimeoutError:
        raise  # it is still waiting
    except Exception:
        return now() - start
    finally:
        pool.terminate()
        pool.join()
    raise AssertionError("the task has succeeded")


def die(number: int) -> None:
    os.kill(os.getpid(), number)


@case("s", "low")
def pool_lost_worker(mp: Any, scale: float) -> float:
    """From a worker's SIGKILL to the caller's exception (multiprocessing hangs)."""
    return seconds_until_failure(mp, die, signal.SIGKILL)


@case("s late", "low")
def pool_soft_limit(mp: Any, scale: float) -> float:
    return seconds_until_failure(mp, time.sleep, 30, soft_timeout=0.3) - 0.3


@case("s late", "low")
def pool_hard_limit(mp: Any, scale: float) -> float:
    return seconds_until_failure(mp, time.sleep, 30, timeout=0.3) - 0.3


# --- starting ----------------------------------------------------------------------------------


def start_and_join(mp: Any, method: str, number: int) -> float:
    """Milliseconds for one process after the other that does nothing."""
    context = mp.get_context(method)

    def one() -> None:
        child = context.Process(target=nothing)
        child.start()
        child.join()

    one()  # the fork server starts with the first
    return middle([timed(one) for _ in range(number)]) * 1e3


@case("ms", "low")
def start_fork(mp: Any, scale: float) -> float:
    return start_and_join(mp, "fork", amount(60, scale))


@case("ms", "low")
def start_spawn(mp: Any, scale: float) -> float:
    return start_and_join(mp, "spawn", amount(16, scale))


@case("ms", "low")
def start_forkserver(mp: Any, scale: float) -> float:
    return start_and_join(mp, "forkserver", amount(40, scale))


@case("ms", "low")
def start_import(mp: Any, scale: float) -> float:
    """What the imports cost over an interpreter that does nothing."""
    name = mp.__name__
    modules = f"import {name}, {name}.pool, {name}.managers, {name}.queues"

    def run(code: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))

    return middle([run(modules) - run("pass") for _ in range(7)]) * 1e3


if __name__ == "__main__":
    sys.exit(main(__file__))
