#!/usr/bin/env python3
"""Side by side with billiard 4.3.2 and multiprocessing: a little of everything.

    python benches/compare.py [CASE ...] [--all] [--reference PYTHON] [--rounds 3] [--scale 0.5]

CASE is a name or its beginning: `pool`, `ipc`, `start`. The reference is an interpreter that has
billiard 4.3.2; without one, an environment is made in .venv-ref. The figure in parentheses says how
many times better than the reference.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pool as pool  # its cases are measured, too
from _ruler import MEGABYTE, amount, case, main, middle, now, timed

# --- what children and workers run -------------------------------------------------------------


def nothing() -> None:
    pass


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
    sys.exit(main(__file__, "multiprocessing"))
