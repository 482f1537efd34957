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

now = time.perf_counter
MEGABYTE = 1 << 20


def middle(seconds: list[float]) -> float:
    return statistics.median(seconds)


def timed(run: Callable[[], Any]) -> float:
    start = now()
    run()
    return now() - start


# --- what children and workers run -------------------------------------------------------------


def same(value: Any) -> Any:
    return value


def nothing() -> None:
    pass


def zeros(size: int) -> bytes:
    return bytes(size)


def put_many(queue: Any, number: int, message: Any) -> None:
    for _ in range(number):
        queue.put(message)


def get_many(queue: Any, number: int, done: Any) -> None:
    for _ in range(number):
        queue.get()
    done.put(None)


def send_back(connection: Any, number: int) -> None:
    for _ in range(number):
        connection.send_bytes(connection.recv_bytes())


def take_turns(condition: Any, turn: Any, mine: int, number: int) -> None:
    """Wait until it is `mine`, then give the turn away, `number` times."""
    for _ in range(number):
        with condition:
            while turn.value != mine:
                condition.wait()
            turn.value = 1 - mine
            condition.notify()


def answer_events(asked: Any, answered: Any, number: int) -> None:
    for _ in range(number):
        asked.wait()
        asked.clear()
        answered.set()


def pass_barrier(barrier: Any, number: int) -> None:
    for _ in range(number):
        barrier.wait()


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


# --- locks, queues, pipes, shared memory -------------------------------------------------------


def with_child(mp: Any, target: Any, args: tuple[Any, ...], run: Callable[[], Any]) -> float:
    """Seconds that `run` takes while a child runs `target`."""
    child = mp.Process(target=target, args=args)
    child.start()
    seconds = timed(run)
    child.join()
    return seconds


@case("ns", "low")
def ipc_lock_with(mp: Any, scale: float) -> float:
    lock, number = mp.Lock(), amount(500_000, scale)
    start = now()
    for _ in range(number):
        with lock:
            pass
    return (now() - start) / number * 1e9


@case("ns", "low")
def ipc_lock_acquire_release(mp: Any, scale: float) -> float:
    lock, number = mp.Lock(), amount(1_000_000, scale)
    acquire, release = lock.acquire, lock.release
    start = now()
    for _ in range(number):
        acquire()
        release()
    return (now() - start) / number * 1e9


@case("us", "low")
def ipc_lock_create(mp: Any, scale: float) -> float:
    number = amount(3000, scale)
    return timed(lambda: [mp.Lock() for _ in range(number)]) / number * 1e6


@case("us", "low")
def ipc_value_create(mp: Any, scale: float) -> float:
    number = amount(2000, scale)
    return timed(lambda: [mp.Value("i", 0) for _ in range(number)]) / number * 1e6


@case("ns", "low")
def ipc_value_increment(mp: Any, scale: float) -> float:
    value, number = mp.Value("i", 0), amount(200_000, scale)
    start = now()
    for _ in range(number):
        with value.get_lock():
            value.value += 1
    return (now() - start) / number * 1e9


@case("us", "low")
def ipc_condition_turns(mp: Any, scale: float) -> float:
    condition, turn, number = mp.Condition(), mp.RawValue("i", 0), amount(3000, scale)
    mine = (condition, turn, 0, number)
    seconds = with_child(mp, take_turns, (condition, turn, 1, number), lambda: take_turns(*mine))
    return seconds / number * 1e6


@case("us", "low")
def ipc_event_turns(mp: Any, scale: float) -> float:
    asked, answered, number = mp.Event(), mp.Event(), amount(3000, scale)

    def run() -> None:
        for _ in range(number):
            asked.set()
            answered.wait()
            answered.clear()

    return with_child(mp, answer_events, (asked, answered, number), run) / number * 1e6


@case("us", "low")
def ipc_barrier_turns(mp: Any, scale: float) -> float:
    barrier, number = mp.Barrier(2), amount(2000, scale)
    args = (barrier, number)
    return with_child(mp, pass_barrier, args, lambda: pass_barrier(*args)) / number * 1e6


def queue_rate(mp: Any, kind: str, number: int, message: Any) -> float:
    """Messages a second from one child to this process."""
    queue = getattr(mp, kind)()

    def run() -> None:
        for _ in range(number):
            queue.get()

    return number / with_child(mp, put_many, (queue, number, message), run)


@case("msg/s", "high")
def ipc_queue_small(mp: Any, scale: float) -> float:
    return queue_rate(mp, "Queue", amount(60_000, scale), 12345)


@case("msg/s", "high")
def ipc_queue_kilobyte(mp: Any, scale: float) -> float:
    return queue_rate(mp, "Queue", amount(40_000, scale), bytes(1024))


@case("MB/s", "high")
def ipc_queue_megabyte(mp: Any, scale: float) -> float:
    return queue_rate(mp, "Queue", amount(200, scale), bytes(MEGABYTE))


@case("msg/s", "high")
def ipc_simple_queue(mp: Any, scale: float) -> float:
    return queue_rate(mp, "SimpleQueue", amount(40_000, scale), 12345)


@case("msg/s", "high")
def ipc_queue_two_and_two(mp: Any, scale: float) -> float:
    """Two that put and two that get."""
    queue, done, number = mp.Queue(), mp.Queue(), amount(20_000, scale)
    children = [mp.Process(target=put_many, args=(queue, number, 1)) for _ in range(2)]
    children += [mp.Process(target=get_many, args=(queue, number, done)) for _ in range(2)]
    start = now()
    for child in children:
        child.start()
    done.get()
    done.get()
    seconds = now() - start
    for child in children:
        child.join()
    return 2 * number / seconds


def round_trips(mp: Any, number: int, message: bytes) -> float:
    """Seconds for a message there and back."""
    ours, theirs = mp.Pipe()

    def run() -> None:
        for _ in range(number):
            ours.send_bytes(message)
            ours.recv_bytes()

    return with_child(mp, send_back, (theirs, number), run) / number


@case("us", "low")
def ipc_pipe_turns(mp: Any, scale: float) -> float:
    return round_trips(mp, amount(10_000, scale), b"x") * 1e6


@case("MB/s", "high")
def ipc_pipe_megabyte(mp: Any, scale: float) -> float:
    return 2 / round_trips(mp, amount(200, scale), bytes(MEGABYTE))


@case("ms", "low")
def ipc_array_create(mp: Any, scale: float) -> float:
    """80 MB of doubles, of which two are touched."""

    def run() -> None:
        array = mp.RawArray("d", 10_000_000)
        array[0] = array[9_999_999] = 1.0

    return timed(run) * 1e3


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
