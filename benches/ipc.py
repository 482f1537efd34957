#!/usr/bin/env python3
"""Locks, queues, pipes and shared memory, side by side with billiard 4.3.2 and others.

    python benches/ipc.py [CASE ...] [--reference PYTHON] [--rounds 3] [--scale 0.5]

`--peer faster-fifo=PYTHON:faster_fifo` compares queues with faster-fifo, if that interpreter has
it; it has no figure for the rest. `benches/compare.py` has these cases too.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from _ruler import MEGABYTE, amount, case, main, now, timed

# --- what children run -------------------------------------------------------------------------


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


def put_batches(queue: Any, number: int, message: Any) -> None:
    for _ in range(number // 100):
        queue.put_many([message] * 100)


def count_for_ever(queue: Any, got: Any, place: int) -> None:
    while True:
        queue.get()
        got[place] += 1


# --- locks -------------------------------------------------------------------------------------


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


# --- queues ------------------------------------------------------------------------------------


def with_processes(mp: Any) -> Any:
    """faster-fifo has queues and nothing else."""
    return importlib.import_module("multiprocessing") if mp.__name__ == "faster_fifo" else mp


def make_queue(mp: Any, kind: str = "Queue") -> Any:
    if mp.__name__ == "faster_fifo":
        return mp.Queue(max_size_bytes=50_000_000)
    return getattr(mp, kind)()


def queue_rate(mp: Any, kind: str, number: int, message: Any) -> float:
    """Messages a second from one child to this process."""
    queue = make_queue(mp, kind)

    def run() -> None:
        for _ in range(number):
            queue.get()

    return number / with_child(with_processes(mp), put_many, (queue, number, message), run)


@case("msg/s", "high")
def ipc_queue_small(mp: Any, scale: float) -> float:
    return queue_rate(mp, "Queue", amount(60_000, scale), 12345)


@case("msg/s", "high")
def ipc_queue_dict(mp: Any, scale: float) -> float:
    message = {"id": 7, "name": "n7", "tags": ["a", "b"], "x": 0.5}
    return queue_rate(mp, "Queue", amount(40_000, scale), message)


@case("msg/s", "high")
def ipc_queue_kilobyte(mp: Any, scale: float) -> float:
    return queue_rate(mp, "Queue", amount(40_000, scale), bytes(1024))


@case("MB/s", "high")
def ipc_queue_megabyte(mp: Any, scale: float) -> float:
    return queue_rate(mp, "Queue", amount(200, scale), bytes(MEGABYTE))


@case("msg/s", "high")
def ipc_queue_batches(mp: Any, scale: float) -> float:
    """A hundred at a time where that can be done."""
    queue, number = make_queue(mp), amount(100_000, scale) // 100 * 100 or 100
    batches = hasattr(queue, "put_many")

    def run() -> None:
        left = number
        while left:
            left -= len(queue.get_many()) if batches else len([queue.get()])

    put = put_batches if batches else put_many
    return number / with_child(with_processes(mp), put, (queue, number, 12345), run)


@case("msg/s", "high")
def ipc_simple_queue(mp: Any, scale: float) -> float:
    return queue_rate(mp, "SimpleQueue", amount(40_000, scale), 12345)


@case("msg/s", "high")
def ipc_queue_two_and_two(mp: Any, scale: float) -> float:
    """Two that put and two that get."""
    queue, done, number = make_queue(mp), make_queue(mp), amount(20_000, scale)
    process = with_processes(mp).Process
    children = [process(target=put_many, args=(queue, number, 1)) for _ in range(2)]
    children += [process(target=get_many, args=(queue, number, done)) for _ in range(2)]
    start = now()
    for child in children:
        child.start()
    done.get()
    done.get()
    seconds = now() - start
    for child in children:
        child.join()
    return 2 * number / seconds


@case("msgs", "low")
def ipc_queue_lost_in_kills(mp: Any, scale: float) -> float:
    """How many of 20,000 messages do not arrive when 20 consumers are killed on the way."""
    queue, got, number, kills = make_queue(mp), mp.RawArray("l", 64), 20_000, 20
    queue.cancel_join_thread()

    def consumer(place: int) -> Any:
        child = mp.Process(target=count_for_ever, args=(queue, got, place))
        child.start()
        return child

    children = [consumer(0), consumer(1)]
    for place in range(2, 2 + kills):
        for _ in range(number // kills):
            queue.put(place)
        time.sleep(0.005)
        children.append(consumer(place))
        victim = children.pop(0)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
    seen, since = -1, now()
    while sum(got) < number and now() < since + 2:  # as long as any arrive
        if sum(got) != seen:
            seen, since = sum(got), now()
        time.sleep(0.01)
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    return float(number - sum(got))


# --- pipes and memory --------------------------------------------------------------------------


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


if __name__ == "__main__":
    sys.exit(main(__file__, "multiprocessing"))
