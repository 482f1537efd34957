"""How a pool starts its first workers."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pool_tasks import descriptors, pool_of
from scripts import run_file

import billiard
from billiard import forkserver, popen_fork
from billiard import pool as pool_module

FORKSERVER = billiard.get_context("forkserver")
WORKER_MEMORY = "memfd:billiard-worker"


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many processes the fork server was asked for, each time."""
    asked = []
    server = forkserver._forkserver
    start_children = server._start_children

    def counting(orders: Any) -> Any:
        asked.append(len(orders))
        return start_children(orders)

    monkeypatch.setattr(server, "_start_children", counting)
    return asked


def test_the_fork_server_is_asked_once_for_all_workers(batches: list[int]) -> None:
    up: list[int] = []
    with FORKSERVER.Pool(4, on_process_up=lambda worker: up.append(worker.pid)) as pool:
        assert batches == [4]
        assert up == [worker.pid for worker in pool._pool]
        assert [worker.index for worker in pool._pool] == [0, 1, 2, 3]
        assert pool.map(abs, range(-20, 0), 1) == list(range(20, 0, -1))
    pool.join()


def test_one_worker_s_death_is_no_other_s(batches: list[int]) -> None:
    with FORKSERVER.Pool(3) as pool:
        with pytest.raises(billiard.WorkerLostError):
            pool.apply_async(os._exit, (3,)).get(60)
        assert pool.map(abs, range(-20, 0), 1) == list(range(20, 0, -1))
    pool.join()
    assert batches[0] == 3


def test_subclasses_that_make_workers_themselves_are_asked_for_each(ctx: Any) -> None:
    made = []

    class Pool(pool_module.Pool):
        def _create_worker_process(self, i: int) -> Any:
            made.append(i)
            return super()._create_worker_process(i)

    with Pool(3, context=ctx) as pool:
        assert made == [0, 1, 2]
        assert pool.apply(abs, (-1,)) == 1
    pool.join()


def test_a_worker_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    """The others have been; the pool has not."""
    server = forkserver._forkserver
    start_children = server._start_children

    def failing(orders: Any) -> Any:
        *children, last = start_children(orders)
        last.send_signal(9)
        last.wait()
        last.close()
        return [*children, OSError(errno.EAGAIN, "no processes left")]

    monkeypatch.setattr(server, "_start_children", failing)
    with pytest.raises(OSError, match="no processes left") as caught:
        FORKSERVER.Pool(3)
    assert caught.value.errno == errno.EAGAIN
    assert billiard.active_children() == []


def test_a_worker_that_cannot_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have been; the pool has not, and none of them stays."""
    launch_all = popen_fork.launch_all

    def failing(process_objs: Any, fork: Any) -> Any:
        [*popens, last] = launch_all(process_objs, fork)
        last._send_signal(9)
        last.wait()
        last.close()
        return [*popens, OSError(errno.EAGAIN, "no processes left")]

    monkeypatch.setattr(popen_fork, "launch_all", failing)
    with pytest.raises(OSError, match="no processes left") as caught:
        billiard.get_context("fork").Pool(3)
    assert caught.value.errno == errno.EAGAIN
    assert billiard.active_children() == []


def test_workers_that_are_no_processes_of_ours_end_with_a_pool_that_cannot_be_made() -> None:
    """Tests of other programs have such: with a start, an end, and nothing to watch."""
    running: set[int] = set()

    class Imitation:
        name, exitcode = "imitation", 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def start(self) -> None:
            if len(running) == 2:
                raise OSError(errno.EAGAIN, "no processes left")
            running.add(id(self))

        def terminate(self) -> None:
            running.discard(id(self))

        def join(self) -> None:
            assert id(self) not in running

    with pytest.raises(OSError, match="no processes left"):
        pool_module.Pool(4, context=Mock(Process=Imitation))
    assert not running


def lanes() -> int:
    """How many workers' memories this process has."""
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[4] for line in maps if WORKER_MEMORY in line}  # by inode
    held = [name for name in descriptors().values() if WORKER_MEMORY in name]
    return max(len(mapped), len(held))


def test_a_worker_has_its_own_memory_and_no_other_s(ctx: Any) -> None:
    with pool_of(ctx, 3) as pool:
        assert pool.apply(lanes) == 1
        # Also one that is made later.
        with pytest.raises(billiard.WorkerLostError):
            pool.apply_async(os._exit, (3,)).get(60)
        assert set(pool.map(one_of_all, [lanes] * 3, 1)) == {1}


def one_of_all(look: Callable[[], int]) -> int:
    """Takes long enough for each worker to get one."""
    time.sleep(0.1)
    return look()


def test_processes_that_start_in_their_own_way_can_be_workers() -> None:
    started = []

    class Announcing(billiard.context.ForkProcess):
        def start(self) -> None:
            started.append(self.name)
            super().start()

    class Pool(pool_module.Pool):
        def Process(self, *args: Any, **kwargs: Any) -> Any:
            return Announcing(*args, **kwargs)

    with Pool(2, context=billiard.get_context("fork")) as pool:
        assert len(started) == 2
        assert pool.map(abs, range(-20, 0), 1) == list(range(20, 0, -1))
    pool.join()


def test_a_task_finds_its_worker_in_the_frame_that_called_it(ctx: Any) -> None:
    """billiard's worker calls tasks in a frame whose `self` it is; some programs look there."""
    with pool_of(ctx, 1) as pool:
        for i in range(3):
            name, done = pool.apply(look_at_the_worker)
            assert (name, done) == ("Worker", i)
        [counter] = pool._on_ready_counters.values()
        assert counter.value == 3


def look_at_the_worker() -> tuple[str, int]:
    frame = sys._getframe(1)
    worker = frame.f_locals["self"]
    return type(worker).__name__, worker.on_ready_counter.value


def test_an_initializer_that_cannot_be_pickled_starts_nothing(batches: list[int]) -> None:
    with pytest.raises(TypeError, match="pickle"):
        FORKSERVER.Pool(3, print, (threading.Lock(),))
    assert batches == []
    assert billiard.active_children() == []


def test_a_worker_imports_less_than_its_pool(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        def imported():
            return [*sys.modules]
        if __name__ == "__main__":
            with billiard.get_context("spawn").Pool(1) as pool:
                print(*pool.apply(imported))
            pool.join()
    """
    found = run_file(tmp_path, source).stdout.split()
    assert "billiard._pool.worker" in found
    dear = {"billiard.pool", "billiard.popen_spawn_posix", "billiard.sharedctypes", "ctypes"}
    assert dear.isdisjoint(found)


def test_workers_are_replaced_once_whoever_asks_for_it() -> None:
    made: list[int] = []
    making, go = threading.Event(), threading.Event()

    class Slow(pool_module.Pool):
        def _create_worker_process(self, i: int) -> Any:
            made.append(i)
            if len(made) > 2:
                making.set()
                assert go.wait(60)
            return super()._create_worker_process(i)

    pool = Slow(2, context=billiard.get_context("fork"))
    try:
        os.kill(pool._pool[1].pid, signal.SIGKILL)
        assert making.wait(60)  # the supervisor is at it
        also = threading.Thread(target=pool._repopulate_pool)
        also.start()
        also.join(0.1)
        go.set()
        also.join(60)
        assert made == [0, 1, 1]
        assert len(pool._pool) == 2
    finally:
        pool.terminate()
        pool.join()
