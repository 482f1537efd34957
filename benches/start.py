#!/usr/bin/env python3
"""What it costs to start a process: the figures of docs/start-methods.md.

    python benches/start.py [CASE ...] [--reference PYTHON] [--rounds 3] [--scale 0.5]

`system_*` are the floors that no package gets below: bare system calls, a bare interpreter. Cases
that only billiard on Rust has (`start_all`, spares) have no figure for the others.

The children import this file as their main module, so it imports little before it has to.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

now = time.perf_counter


def nothing() -> None:
    pass


def same(value: Any) -> Any:
    return value


def middle(figures: list[float]) -> float:
    return sorted(figures)[len(figures) // 2]


def milliseconds(number: int, run: Callable[[], object]) -> float:
    """The median time of a call, after one that does not count."""
    run()
    figures = []
    for _ in range(number):
        begin = now()
        run()
        figures.append((now() - begin) * 1e3)
    return middle(figures)


def one(mp: Any, method: str, number: int) -> float:
    ctx = mp.get_context(method)

    def start_and_join() -> None:
        process = ctx.Process(target=nothing)
        process.start()
        process.join()

    return milliseconds(number, start_and_join)


def fork_over_system(mp: Any, scale: float) -> float:
    """Start and join by fork, in units of the bare system calls: in turn, in one process."""
    ctx = mp.get_context("fork")

    def start_and_join() -> None:
        process = ctx.Process(target=nothing)
        process.start()
        process.join()

    figures: tuple[list[float], list[float]] = [], []
    for _ in range(int(200 * scale)):
        for run, into in ((start_and_join, figures[0]), (bare_fork, figures[1])):
            begin = now()
            run()
            into.append(now() - begin)
    return middle(figures[0]) / middle(figures[1])


def many(mp: Any, method: str, number: int, start: Callable[[list[Any]], object]) -> float:
    """Milliseconds per process of `number` that are started before the first is joined."""
    ctx = mp.get_context(method)

    def start_and_join() -> None:
        processes = [ctx.Process(target=nothing) for _ in range(number)]
        start(processes)
        for process in processes:
            process.join()

    return milliseconds(3, start_and_join) / number


def in_turn(processes: list[Any]) -> None:
    for process in processes:
        process.start()


def heap(megabytes: int) -> bytearray:
    """Memory that is really there."""
    memory = bytearray(megabytes << 20)
    memory[:: os.sysconf("SC_PAGESIZE")] = b"x" * len(memory[:: os.sysconf("SC_PAGESIZE")])
    return memory


def bare_fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def system_fork(mp: Any, scale: float) -> float:
    return milliseconds(int(120 * scale), bare_fork)


def system_interpreter(mp: Any, scale: float) -> float:
    import subprocess  # not for the children: it takes longer than they do

    command = [sys.executable, "-I", "-S", "-c", "pass"]
    return milliseconds(int(20 * scale), lambda: subprocess.run(command, check=True))


def fork(mp: Any, scale: float) -> float:
    return one(mp, "fork", int(120 * scale))


def forkserver(mp: Any, scale: float) -> float:
    return one(mp, "forkserver", int(80 * scale))


def spawn(mp: Any, scale: float) -> float:
    return one(mp, "spawn", int(20 * scale))


def spawn_spare(mp: Any, scale: float) -> float:
    """A spare interpreter is ready, and has had the time to be."""
    set_spares = import_module(f"{mp.__name__}.spawn").set_spares
    ctx, figures = mp.get_context("spawn"), []
    set_spares(1)
    for _ in range(int(20 * scale)):
        time.sleep(0.2)
        process = ctx.Process(target=nothing)
        begin = now()
        process.start()
        process.join()
        figures.append((now() - begin) * 1e3)
    set_spares(0)
    return middle(figures)


def many_fork(mp: Any, scale: float) -> float:
    return many(mp, "fork", 16, in_turn)


def many_forkserver(mp: Any, scale: float) -> float:
    return many(mp, "forkserver", 16, in_turn)


def many_forkserver_together(mp: Any, scale: float) -> float:
    return many(mp, "forkserver", 16, import_module(f"{mp.__name__}.process").start_all)


def many_spawn(mp: Any, scale: float) -> float:
    return many(mp, "spawn", 16, in_turn)


def large_fork(mp: Any, scale: float) -> float:
    """In a parent that uses 500 MB."""
    memory = heap(500)
    figure = one(mp, "fork", int(20 * scale))
    del memory
    return figure


def large_forkserver(mp: Any, scale: float) -> float:
    """In a parent that uses 2 GB."""
    memory = heap(2000)
    figure = one(mp, "forkserver", int(40 * scale))
    del memory
    return figure


def large_spawn(mp: Any, scale: float) -> float:
    """In a parent that uses 2 GB."""
    memory = heap(2000)
    figure = one(mp, "spawn", int(20 * scale))
    del memory
    return figure


def pool_spawn(mp: Any, scale: float) -> float:
    """A pool of 16 until each worker could have answered once."""

    def start() -> None:
        pool = mp.get_context("spawn").Pool(16)
        pool.map(same, range(16), 1)
        pool.terminate()
        pool.join()

    return milliseconds(1, start)


def memory(mp: Any, method: str) -> float:
    """Megabytes that a child has for itself, doing nothing."""
    ctx = mp.get_context(method)
    process = ctx.Process(target=time.sleep, args=(60,))
    process.start()
    time.sleep(1.0)
    kilobytes = 0
    with open(f"/proc/{process.pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith(("Private_Clean", "Private_Dirty")):
                kilobytes += int(line.split()[1])
    process.terminate()
    process.join()
    return kilobytes / 1024


def memory_fork(mp: Any, scale: float) -> float:
    return memory(mp, "fork")


def memory_forkserver(mp: Any, scale: float) -> float:
    return memory(mp, "forkserver")


def memory_spawn(mp: Any, scale: float) -> float:
    return memory(mp, "spawn")


TIMES = [
    system_fork,
    system_interpreter,
    fork,
    forkserver,
    spawn,
    spawn_spare,
    many_fork,
    many_forkserver,
    many_forkserver_together,
    many_spawn,
    large_fork,
    large_forkserver,
    large_spawn,
    pool_spawn,
]
MEMORY = [memory_fork, memory_forkserver, memory_spawn]

if __name__ == "__main__":
    from _ruler import case, main

    for run in TIMES:
        case("ms", "low")(run)
    case("times", "low")(fork_over_system)
    for run in MEMORY:
        case("MB", "low")(run)
    sys.exit(main(__file__, "multiprocessing"))
