"""billiard.pool: every way to end one ends it soon, and leaves nothing."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import PATIENCE, eventually, forever, nap, square
from scripts import environment
from storm import MEGABYTE, SECONDS, backtrack, hold_the_gil, ignore_sigterm, workers

import billiard
from billiard import _core
from billiard.connection import wait
from billiard.exceptions import Terminated, WorkerLostError

pytestmark = [pytest.mark.stress, pytest.mark.timeout(240 + 4 * SECONDS)]
fork: Any = billiard.get_context("fork")
#: how many pools are made: a thousand in a minute of `make stress`
POOLS = max(20, int(SECONDS * 1000 / 60))
#: Seconds that the end of a pool, or of an orphan, may take: one, if this is what the machine has
#: to do. In the common test run it has other things to do, too.
SOON = 1.0 if "BILLIARD_STRESS_SECONDS" in os.environ else 10.0


# ---- many pools in one process ----

#: prepares something, yields, and then ends a pool
End = Iterator[None]


def close_idle(pool: Any) -> End:
    assert pool.map(square, range(10)) == [n * n for n in range(10)]
    yield
    pool.close()
    pool.join()


def close_with_work(pool: Any) -> End:
    results = [pool.apply_async(square, (n,)) for n in range(20)]
    yield
    pool.close()
    pool.join()
    assert [r.get(0) for r in results] == [n * n for n in range(20)]


def terminate_at_once(pool: Any) -> End:
    yield
    pool.terminate()
    pool.join()


def terminate_in_the_middle(pool: Any) -> End:
    endless = pool.imap(square, iter(int, 1))
    next(endless)
    results = [pool.apply_async(nap, (0.01,)) for _ in range(50)]
    mapped = pool.map_async(square, range(1000), 1)
    yield
    pool.terminate()
    pool.join()
    for result in (*results, mapped):
        assert result.ready()
        with suppress(Terminated, WorkerLostError):
            result.get(0)


def terminate_while_tasks_never_end(pool: Any) -> End:
    results = [pool.apply_async(forever) for _ in range(4)]
    eventually(lambda: sum(r.accepted() for r in results) == 2)
    yield
    pool.terminate()
    pool.join()
    for result in results:
        with pytest.raises((Terminated, WorkerLostError)):
            result.get(0)


def terminate_with_megabytes_on_the_way(pool: Any) -> End:
    results = [pool.apply_async(bytes, (8 * MEGABYTE,)) for _ in range(4)]
    pool.apply_async(len, (bytes(8 * MEGABYTE),))
    yield
    pool.terminate()
    pool.join()
    for result in results:
        with suppress(Terminated, WorkerLostError):
            assert len(result.get(0)) == 8 * MEGABYTE


def terminate_stopped_workers(pool: Any) -> End:
    results = [pool.apply_async(nap, (0.001,)) for _ in range(20)]
    for pid in workers(pool):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    yield
    pool.terminate()
    pool.join()
    for result in results:
        with suppress(Terminated, WorkerLostError):
            result.get(0)


def terminate_dead_workers(pool: Any) -> End:
    pool.apply_async(nap, (0.001,))
    for pid in workers(pool):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    yield
    pool.terminate()
    pool.join()


def terminate_from_two_threads(pool: Any) -> End:
    pool.apply_async(forever)
    threads = [threading.Thread(target=pool.terminate) for _ in range(2)]
    yield
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.join()


def terminate_after_close(pool: Any) -> End:
    results = [pool.apply_async(nap, (0.01,)) for _ in range(50)]
    yield
    pool.close()
    pool.terminate()
    pool.join()
    assert all(result.ready() for result in results)


def leave_a_with_block(pool: Any) -> End:
    with pool:
        pool.map(square, range(10))
        pool.map_async(nap, [0.01] * 50, 1)
        yield
    pool.join()


def leave_a_with_block_by_an_exception(pool: Any) -> End:
    with pytest.raises(LookupError), pool:
        pool.apply_async(forever)
        yield
        raise LookupError
    pool.join()


def collect_an_idle_one(pool: Any) -> End:
    pool.map(square, range(10))
    yield


def collect_one_that_knows_itself(pool: Any) -> End:
    pool.map(square, range(10))
    pool.itself = pool
    yield


WAYS: tuple[Callable[[Any], End], ...] = (
    close_idle,
    close_with_work,
    terminate_at_once,
    terminate_in_the_middle,
    terminate_while_tasks_never_end,
    terminate_with_megabytes_on_the_way,
    terminate_stopped_workers,
    terminate_dead_workers,
    terminate_from_two_threads,
    terminate_after_close,
    leave_a_with_block,
    leave_a_with_block_by_an_exception,
    collect_an_idle_one,
    collect_one_that_knows_itself,
)


def children() -> set[int]:
    pids: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):
            pids |= set(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return pids


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_pool_is_gone_soon_and_wholly_however_it_ends(ctx: Any) -> None:
    """Descriptors, threads and names that are left are looked for when all have ended."""
    dice, before = random.Random(), children()
    count = POOLS if ctx.get_start_method() == "fork" else max(POOLS // 10, len(WAYS))
    slow = []
    for i in range(count):
        way = WAYS[i % len(WAYS)]
        options = dice.choice(({}, {"maxtasksperchild": 20}, {"timeout": PATIENCE}))
        pool = ctx.Pool(2, **options)
        if dice.random() < 0.7:  # the others end while their workers begin
            pool.map(square, range(4), 1)
        ending = way(pool)
        next(ending)
        began = time.monotonic()
        next(ending, None)
        del pool, ending
        gc.collect()
        eventually(lambda: children() <= before)
        if (seconds := time.monotonic() - began) > SOON:
            slow.append((way.__name__, seconds))
    assert not slow, slow


NATIVE = hasattr(_core, "PoolEngine")


@pytest.mark.skipif(not NATIVE, reason="these workers are given ten seconds to tidy up")
@pytest.mark.parametrize(
    ("task", "args"), [(backtrack, ()), (ignore_sigterm, ()), (hold_the_gil, (600,))]
)
def test_terminate_ends_workers_that_do_not_listen(ctx: Any, task: Any, args: Any) -> None:
    pool = ctx.Pool(2)
    results = [pool.apply_async(task, args) for _ in range(2)]
    eventually(lambda: all(r.accepted() for r in results))
    began = time.monotonic()
    pool.terminate()
    pool.join()
    assert time.monotonic() - began < SOON
    for result in results:
        with pytest.raises(WorkerLostError):
            result.get(0)


@pytest.mark.parametrize("limit", ["timeout", "terminate_job"])
def test_a_task_in_c_code_can_be_ended(ctx: Any, limit: str) -> None:
    with ctx.Pool(1) as pool:
        if limit == "timeout":
            result = pool.apply_async(backtrack, timeout=0.2)
            with pytest.raises(billiard.exceptions.TimeLimitExceeded):
                result.get(PATIENCE)
        else:
            result = pool.apply_async(hold_the_gil, (600,))
            (pid,) = eventually(result.worker_pids)
            pool.terminate_job(pid, signal.SIGKILL)
            with pytest.raises(Terminated):
                result.get(PATIENCE)
        assert pool.apply(square, (3,)) == 9
    pool.join()


# ---- programs that end with a live pool ----


def start_program(source: str, folder: Path, *args: str) -> subprocess.Popen[str]:
    """A program of its own, with the tests' modules and a temporary directory of its own."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(source))
    tests = Path(__file__).parents[1]
    path = [environment()["PYTHONPATH"], str(tests / "unit"), str(tests / "stress")]
    return subprocess.Popen(
        [sys.executable, str(script), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join(path), TMPDIR=str(folder)),
    )


def watch(pids: list[int]) -> list[int]:
    """Descriptors that become readable when the processes have ended."""
    return [_core.watch_process(pid, _core.process_start_time(pid)) for pid in pids]


def check_gone(sentinels: list[int], seconds: float) -> None:
    """Wait that long for the ends of processes, and close their descriptors."""
    deadline, alive = time.monotonic() + seconds, list(sentinels)
    try:
        while alive:
            gone = wait(alive, timeout=max(0.0, deadline - time.monotonic()))
            assert gone, f"{len(alive)} of {len(sentinels)} are there after {seconds} s"
            alive = [fd for fd in alive if fd not in gone]
    finally:
        for fd in sentinels:
            os.close(fd)


ENDING = """
    import os, signal, sys
    import billiard
    from pool_tasks import eventually, forever, nap, square

    def main(method, way):
        pool = billiard.get_context(method).Pool(2)
        assert pool.map(square, [3]) == [9]
        busy = [pool.apply_async(forever) for _ in range(2 * (way != "idle"))]
        eventually(lambda: all(r.accepted() for r in busy))
        print(*(worker.pid for worker in pool._pool), flush=True)
        input()
        if way == "queued":
            busy += [pool.apply_async(nap, (0.01,)) for _ in range(1000)]
        elif way == "iterating":
            busy.append(pool.imap(nap, iter(int, 1)))
        elif way == "stopped":
            for worker in pool._pool:
                os.kill(worker.pid, signal.SIGSTOP)
        elif way == "terminated":
            pool.terminate()
        elif way == "raising":
            raise LookupError("the end")
        elif way == "exiting":
            sys.exit(3)
        return pool, busy

    if __name__ == "__main__":
        kept = main(*sys.argv[1:])
"""


@pytest.mark.parametrize(
    "way",
    ["idle", "busy", "queued", "iterating", "stopped", "terminated", "raising", "exiting"],
)
def test_a_program_ends_soon_with_a_live_pool(ctx: Any, way: str, tmp_path: Path) -> None:
    with start_program(ENDING, tmp_path, ctx.get_start_method(), way) as program:
        assert program.stdout is not None
        sentinels = watch([int(pid) for pid in program.stdout.readline().split()])
        assert len(sentinels) == 2
        began = time.monotonic()
        _, err = program.communicate("\n", timeout=PATIENCE)
        seconds = time.monotonic() - began
    check_gone(sentinels, SOON)
    assert program.returncode == {"raising": 1, "exiting": 3}.get(way, 0), err
    assert err.count("Traceback") == (way == "raising"), err
    assert seconds < SOON
    assert {path.name for path in tmp_path.iterdir()} <= {"program.py", "__pycache__"}


ORPHANING = """
    import sys, time
    import billiard
    from pool_tasks import eventually, forever
    from storm import backtrack, hold_the_gil, ignore_sigterm

    def compute():
        while True:
            pass

    def large_power():
        3 ** 100_000_000

    def zeros(_):
        return bytes(100_000)

    TASKS = [
        (forever, ()), (compute, ()), (large_power, ()), (backtrack, ()),
        (hold_the_gil, (60,)), (ignore_sigterm, ()),
    ]

    if __name__ == "__main__":
        ctx = billiard.get_context(sys.argv[1])
        idle = ctx.Pool(2)
        idle.map(abs, range(10), 1)
        busy = ctx.Pool(len(TASKS))
        jobs = [busy.apply_async(*task) for task in TASKS]
        # Its workers have more to say than anybody listens to.
        loud = ctx.Pool(2)
        results = loud.imap_unordered(zeros, iter(int, 1))
        next(results)
        eventually(lambda: all(job.accepted() for job in jobs))
        workers = [worker for pool in (idle, busy, loud) for worker in pool._pool]
        # One that is stopped while it starts cannot have taken precautions.
        eventually(lambda: all(worker.inq.shared.is_up for worker in workers))
        print(*(worker.pid for worker in workers), flush=True)
        input()
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_no_worker_outlives_a_parent_that_is_killed(
    ctx: Any, stopped: bool, tmp_path: Path
) -> None:
    """Whatever the workers do: nothing, computing, in C code, blocked because nobody reads."""
    with start_program(ORPHANING, tmp_path, ctx.get_start_method()) as program:
        assert program.stdout is not None
        pids = [int(pid) for pid in program.stdout.readline().split()]
        sentinels = watch(pids)
        if stopped:
            program.send_signal(signal.SIGSTOP)
            for pid in pids[::2]:
                os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2 * random.random())
        program.kill()
        check_gone(sentinels, SOON)
        program.communicate()
    assert len(sentinels) == 10
    assert {path.name for path in tmp_path.iterdir()} <= {"program.py", "__pycache__"}
