#!/usr/bin/env python3
"""Pools side by side: billiard on Rust, billiard 4.3.2, multiprocessing, concurrent.futures, loky.

    python benches/pool.py [CASE ...] [--all] [--reference PYTHON] [--rounds 3] [--scale 0.5]

CASE is a name or its beginning; cases that take long (storms, idle pools, orphans) are measured if
they are named, or with --all. The figure in parentheses says how many times better than billiard
4.3.2. What an implementation cannot do has the reason in place of a figure.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from _ruler import MEGABYTE, amount, case, main, middle, now, timed

Wait = Callable[[float], Any]


class Workers:
    """The same few verbs over pools and executors."""

    def __init__(self, mp: Any, processes: int = 2, **options: Any) -> None:
        self.executor: Any = None
        self.pool: Any = None
        if hasattr(mp, "ProcessPoolExecutor"):
            if options:
                raise TypeError(f"executors have no {', '.join(options)}")
            self.executor = mp.ProcessPoolExecutor(processes)
            self.at_once = {"kill_workers" if mp.__name__ == "loky" else "cancel_futures": True}
        else:
            self.pool = mp.Pool(processes, **options)

    def submit(self, function: Any, *args: Any, **limits: float) -> tuple[Wait, Any]:
        """Two functions: one waits so many seconds for the value, one says whether it is there."""
        if self.executor is not None:
            if limits:
                raise TypeError("executors have no limits")
            future = self.executor.submit(function, *args)
            return future.result, future.done
        result = self.pool.apply_async(function, args, **limits)
        return result.get, result.ready

    def call(self, function: Any, *args: Any) -> Any:
        return self.submit(function, *args)[0](60)

    def each(self, function: Any, items: Iterable[Any]) -> list[Any]:
        """A task for every item, the results in any order."""
        if self.executor is not None:
            return list(self.executor.map(function, items, chunksize=1))
        return list(self.pool.imap_unordered(function, items))

    def map(self, function: Any, items: Any) -> list[Any]:
        """Chunks: of executors as large as those of pools."""
        if self.executor is not None:
            return list(self.executor.map(function, items, chunksize=max(1, len(items) // 8)))
        return self.pool.map(function, items)  # type: ignore[no-any-return]

    def pids(self) -> list[int]:
        if self.executor is not None:
            return list(self.executor._processes or ())
        return [worker.pid for worker in list(self.pool._pool)]

    def end(self) -> None:
        """When all is done."""
        if self.executor is not None:
            self.executor.shutdown()
        else:
            self.pool.close()
            self.pool.join()

    def terminate(self) -> None:
        """At once, as far as it can."""
        if self.executor is not None:
            self.executor.shutdown(**self.at_once)
        else:
            self.pool.terminate()
            self.pool.join()


def started(mp: Any, processes: int = 2, **options: Any) -> Workers:
    """Workers that have begun to work."""
    workers = Workers(mp, processes, **options)
    workers.map(same, range(1000))
    return workers


def per_second(mp: Any, number: float, run: Callable[[Workers], Any]) -> float:
    workers = started(mp)
    seconds = timed(lambda: run(workers))
    workers.end()
    return number / seconds


# --- what workers run --------------------------------------------------------------------------


def same(value: Any) -> Any:
    return value


def zeros(size: int) -> bytes:
    return bytes(size)


def ones(size: int) -> Any:
    import numpy

    return numpy.ones(size)


def total(array: Any) -> float:
    return float(array.sum())


def compute() -> None:
    while True:
        pass


def backtrack() -> None:
    """Compute in C code that does not let go of the interpreter."""
    import re

    re.match(r"(a|aa)+$", "a" * 60 + "b")


def die(number: int) -> None:
    os.kill(os.getpid(), number)


# --- throughput and latency --------------------------------------------------------------------


@case("tasks/s", "high")
def pool_unordered(mp: Any, scale: float) -> float:
    """Tiny tasks, each a message of its own."""
    number = amount(30_000, scale)
    return per_second(mp, number, lambda workers: workers.each(same, range(number)))


@case("tasks/s", "high")
def pool_unordered_dicts(mp: Any, scale: float) -> float:
    """Small dicts both ways, as real messages are."""
    number = amount(20_000, scale)
    tasks = [{"id": n, "name": f"n{n}", "tags": ["a", "b"], "x": n / 7} for n in range(number)]
    return per_second(mp, number, lambda workers: workers.each(same, tasks))


@case("tasks/s", "high")
def pool_apply_async(mp: Any, scale: float) -> float:
    number = amount(20_000, scale)

    def run(workers: Workers) -> None:
        for wait, _ in [workers.submit(same, n) for n in range(number)]:
            wait(60)

    return per_second(mp, number, run)


@case("tasks/s", "high")
def pool_map(mp: Any, scale: float) -> float:
    """Tiny tasks in the chunks that `map` chooses."""
    number = amount(400_000, scale)
    return per_second(mp, number, lambda workers: workers.map(same, range(number)))


@case("us", "low")
def pool_latency(mp: Any, scale: float) -> float:
    """One task at a time, there and back."""
    workers = started(mp)
    figures = [timed(lambda: workers.call(same, 1)) for _ in range(amount(2000, scale))]
    workers.end()
    return middle(figures) * 1e6


@case("us/task", "low")
def pool_cpu(mp: Any, scale: float) -> float:
    """Processor time of the parent for each tiny task."""
    number, workers = amount(20_000, scale), started(mp)
    before = time.process_time()
    workers.each(same, range(number))
    seconds = time.process_time() - before
    workers.end()
    return seconds / number * 1e6


@case("% of idle", "high")
def pool_busy_main(mp: Any, scale: float) -> float:
    """Tasks done while the main thread computes in Python, as a share of those while it sleeps."""
    number, seconds, workers = amount(80_000, scale), 1.0, started(mp)

    def done_during(spend: Callable[[], object]) -> int:
        # nobody works on them until they are all there
        held = [workers.submit(time.sleep, number / 8000)[0] for _ in range(2)]
        jobs = [workers.submit(same, n) for n in range(number)]
        for wait in held:
            wait(60)
        spend()
        done = sum(1 for _, ready in jobs if ready())
        for wait, _ in jobs:
            wait(60)
        return done

    def compute() -> None:
        end = now() + seconds
        while now() < end:
            sum(range(1000))

    asleep = done_during(lambda: time.sleep(seconds))
    busy = done_during(compute)
    workers.end()
    return 100 * busy / asleep


@case("x list", "low")
def pool_makespan(mp: Any, scale: float) -> float:
    """Tasks of very different lengths: the time as a multiple of what list scheduling takes."""
    dice, count = random.Random(3), 4
    lengths = [dice.lognormvariate(0, 2) for _ in range(amount(400, scale))]
    unit = 2.0 * count / sum(lengths)  # two seconds if nobody ever waits
    lengths = [min(unit * length, 1.0) for length in lengths]
    free = [0.0] * count
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    workers = started(mp, count)
    seconds = timed(lambda: workers.each(time.sleep, lengths))
    workers.end()
    return seconds / max(free)


# --- large things, and many --------------------------------------------------------------------


@case("MB/s", "high")
def pool_send_megabytes(mp: Any, scale: float) -> float:
    """Different blocks to the workers, which give only the length back."""
    number = amount(200, scale)
    blocks = [os.urandom(MEGABYTE) for _ in range(number)]
    return per_second(mp, number, lambda workers: workers.each(len, blocks))


@case("MB/s", "high")
def pool_receive_megabytes(mp: Any, scale: float) -> float:
    number = amount(200, scale)
    return per_second(mp, number, lambda workers: workers.each(zeros, [MEGABYTE] * number))


@case("MB/s", "high")
def pool_send_arrays(mp: Any, scale: float) -> float:
    """Different numpy arrays of 16 MB, which the workers read."""
    import numpy

    arrays = [numpy.full(2 * MEGABYTE, float(n)) for n in range(max(4, amount(24, scale)))]
    return per_second(mp, 16 * len(arrays), lambda workers: workers.each(total, arrays))


@case("MB/s", "high")
def pool_receive_arrays(mp: Any, scale: float) -> float:
    """numpy arrays of 64 MB."""
    number = amount(12, scale)
    sizes = [8 * MEGABYTE] * number
    return per_second(mp, 64 * number, lambda workers: workers.each(ones, sizes))


@case("bytes/task", "low")
def pool_queued_memory(mp: Any, scale: float) -> float:
    """Memory of the parent for each task that waits."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    number, workers = amount(50_000, scale), started(mp, 1)
    workers.submit(time.sleep, 4.0)
    before = resident()
    jobs = [workers.submit(same, n) for n in range(number)]
    time.sleep(0.5)
    grown = resident() - before
    for wait, _ in jobs:
        wait(60)
    workers.end()
    return grown / number


# --- beginnings and ends -----------------------------------------------------------------------


@case("tasks/s", "high")
def pool_recycle(mp: Any, scale: float) -> float:
    """A new worker for each task."""
    number = amount(40, scale)
    workers = Workers(mp, 2, maxtasksperchild=1)
    seconds = timed(lambda: workers.each(same, range(number)))
    workers.terminate()
    return number / seconds


@case("ms", "low")
def pool_first_result(mp: Any, scale: float) -> float:
    """From nothing to the first result of four workers."""
    figures = []
    for _ in range(5):
        start = now()
        workers = Workers(mp, 4)
        workers.call(same, 1)
        figures.append(now() - start)
        workers.end()
    return middle(figures) * 1e3


@case("ms", "low")
def pool_close_join(mp: Any, scale: float) -> float:
    """The end of an idle pool."""
    figures = []
    for _ in range(3):
        workers = started(mp, 4)
        figures.append(timed(workers.end))
    return middle(figures) * 1e3


@case("s", "low", slow=True)
def pool_many_ends(mp: Any, scale: float) -> float:
    """Pools made, used and ended in different ways, a hundred at scale 1: the slowest end."""
    slowest, dice = 0.0, random.Random(3)
    for _ in range(amount(100, scale)):
        workers = Workers(mp)
        if dice.random() < 0.7:
            workers.map(same, range(10))
        if dice.random() < 0.5:
            for _ in range(20):
                workers.submit(time.sleep, 0.005)
            end = workers.terminate
        else:
            end = dice.choice((workers.end, workers.terminate))
        slowest = max(slowest, timed(end))
    return slowest


# --- doing nothing -----------------------------------------------------------------------------


def switches(pids: Iterable[int]) -> int:
    """How often the threads of processes have gone to sleep so far."""
    count = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/status") as file:
                count += sum(
                    int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt")
                )
    return count


@case("per s", "low", slow=True)
def pool_idle_wakeups(mp: Any, scale: float) -> float:
    """How often the parent and four workers wake up while there is nothing to do."""
    workers, seconds = started(mp, 4), max(2.0, 60 * scale)
    time.sleep(2.0)
    pids = [os.getpid(), *workers.pids()]
    before = switches(pids)
    time.sleep(seconds)
    count = switches(pids) - before - 1  # our own sleep
    workers.end()
    return count / seconds


# --- failures ----------------------------------------------------------------------------------


def seconds_until_failure(mp: Any, function: Any, argument: Any, **limits: float) -> float:
    """How long a task that cannot succeed keeps its caller waiting."""
    # a pool of billiard 4.3.2 that has no limit of its own ignores those of a job
    workers = started(mp, timeout=3600) if limits else started(mp)
    start = now()
    wait, ready = workers.submit(function, argument, **limits)
    try:
        wait(30)
    except Exception:
        if not ready():
            raise RuntimeError("it is still waiting after 30 s") from None
        return now() - start
    finally:
        workers.terminate()
    raise AssertionError("the task has succeeded")


@case("s", "low")
def pool_lost_worker(mp: Any, scale: float) -> float:
    """From a worker's SIGKILL to the caller's exception."""
    return seconds_until_failure(mp, die, signal.SIGKILL)


@case("s late", "low")
def pool_soft_limit(mp: Any, scale: float) -> float:
    return seconds_until_failure(mp, time.sleep, 30, soft_timeout=0.3) - 0.3


@case("s late", "low")
def pool_hard_limit(mp: Any, scale: float) -> float:
    return seconds_until_failure(mp, time.sleep, 30, timeout=0.3) - 0.3


@case("% done", "high", slow=True)
def pool_kill_storm(mp: Any, scale: float) -> float:
    """Jobs that give their value while a random worker is killed every 30 ms."""
    number, dice = amount(20_000, scale), random.Random(3)
    workers, over = started(mp, 4), threading.Event()

    def kill() -> None:
        while not over.wait(0.03):
            with suppress(OSError, IndexError, RuntimeError):
                os.kill(dice.choice(workers.pids()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    deadline, done, waiting = now() + 60, 0, deque[Wait]()
    for n in range(number):
        with suppress(Exception):  # the pool is broken
            waiting.append(workers.submit(nap_a_little, n)[0])
        while len(waiting) > (64 if n < number - 1 else 0) and now() < deadline:
            with suppress(Exception):
                waiting.popleft()(max(0.0, min(5.0, deadline - now())))
                done += 1
    over.set()
    # whatever state it is in, it shall not keep us
    leave = threading.Timer(5, os._exit, (0,))
    leave.daemon = True
    leave.start()
    return 100 * done / number


def nap_a_little(n: int) -> int:
    time.sleep(0.001)
    return n


@case("s", "low", slow=True)
def pool_orphans(mp: Any, scale: float) -> float:
    """From the parent's SIGKILL to the end of workers that wait, sleep, compute, are in C code."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        workers = started(mp, 4)
        for task in ((time.sleep, 600), (compute,), (backtrack,)):
            workers.submit(*task)
        time.sleep(1.0)
        os.write(write, " ".join(map(str, workers.pids())).encode())
        time.sleep(600)
    pids = [int(word) for word in os.read(read, 1000).split()]
    poll = select.poll()
    alive = {os.pidfd_open(pid): pid for pid in pids}
    for pidfd in alive:
        poll.register(pidfd, select.POLLIN)
    start = now()
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while alive and now() < start + 20:
        for pidfd, _ in poll.poll(1000):
            poll.unregister(pidfd)
            del alive[pidfd]
    seconds = now() - start
    for pid in alive.values():
        os.kill(pid, signal.SIGKILL)
    if alive:
        raise RuntimeError(f"{len(alive)} of {len(pids)} workers are there after {seconds:.0f} s")
    return seconds


if __name__ == "__main__":
    sys.exit(main(__file__, "multiprocessing", "concurrent.futures", "loky"))
