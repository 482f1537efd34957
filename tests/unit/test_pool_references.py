"""billiard.pool: what pools, results and workers keep, and what they let go."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import (
    PATIENCE,
    Gate,
    descriptors,
    eventually,
    fail,
    forever,
    pool_of,
    set_and_wait,
    square,
    wait_for,
)

import billiard
from billiard.exceptions import WorkerLostError

fork: Any = billiard.get_context("fork")
counted: weakref.WeakSet[Counted] = weakref.WeakSet()


class Counted:
    def __init__(self) -> None:
        counted.add(self)


def test_finished_tasks_are_not_kept(pool: Any) -> None:
    pool.map(type, [Counted() for _ in range(10)])
    pool.map(type, [Counted() for _ in range(10)], 1)
    pool.apply(type, (Counted(),))
    assert len(list(pool.imap(type, (Counted() for _ in range(10))))) == 10
    pool.apply_async(fail, (Counted(),)).wait(PATIENCE)
    eventually(lambda: gc.collect() is not None and not counted)


def test_a_pool_that_nobody_uses_is_collected_with_a_warning() -> None:
    pool = fork.Pool(1)
    worker = pool._pool[0]
    gone = weakref.ref(pool)
    caught: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # Not recorded: a record keeps what it warns of.
        warnings.showwarning = lambda message, category, *args: caught.append((category, message))
        del pool
        eventually(lambda: gc.collect() is not None and gone() is None)
    ((category, message),) = caught
    assert category is ResourceWarning and "unclosed running" in str(message)
    worker.join(PATIENCE)
    assert worker.exitcode is not None


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
def test_a_pool_whose_last_task_was_lost_is_collected(tmp_path: Path) -> None:
    pool, begun = fork.Pool(2), Gate(tmp_path)
    lost = pool.apply_async(set_and_wait, (begun, Gate(tmp_path)), callback=str)
    assert begun.wait()
    # It keeps the pool as long as there are tasks.
    assert pool.apply(square, (3,)) == 9
    (pid,) = eventually(lost.worker_pids)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        lost.get(PATIENCE)
    gone = weakref.ref(pool)
    del pool
    eventually(lambda: gc.collect() is not None and gone() is None)


def test_a_closed_pool_is_collected_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = fork.Pool(1)
        pool.close()
        del pool
        gc.collect()


def test_a_result_keeps_its_pool_until_it_is_there(tmp_path: Path) -> None:
    event = Gate(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fork.Pool(1).apply_async(wait_for, (event, 5))
        gc.collect()
        event.set()
        assert result.get(PATIENCE) == 5
        eventually(lambda: gc.collect() is not None and result._pool is None)
        it = fork.Pool(1).imap(square, range(5))
        assert list(it) == [0, 1, 4, 9, 16]
        gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
@pytest.mark.parametrize("limits", [{}, {"timeout": PATIENCE}])
def test_a_job_whose_results_nobody_can_take_any_more_is_forgotten(
    method: str, chunksize: int, limits: dict[str, float]
) -> None:
    pool = fork.Pool(1)
    for _ in range(3):
        iterator = getattr(pool, method)(
            square, itertools.count(), chunksize, buffersize=2, **limits
        )
        assert next(iterator) == 0
    gone = weakref.ref(pool)
    del pool
    time.sleep(0.1)  # all that has been read is done
    gc.collect()
    assert [next(iterator) for _ in range(10)] == [n * n for n in range(1, 11)]
    del iterator
    eventually(lambda: gc.collect() is not None and gone() is None)


def test_a_failure_that_is_kept_keeps_no_iterator() -> None:
    with pool_of(fork, 1) as pool:
        iterator = pool.imap(fail, itertools.count(), buffersize=2, timeout=PATIENCE)
        with pytest.raises(LookupError) as kept:
            next(iterator)
        del iterator
        assert not pool._cache
        assert kept.value.args == (0,)


def test_a_task_of_a_forgotten_job_is_not_begun(tmp_path: Path) -> None:
    """Its limits would be forgotten as well."""
    go_on = Gate(tmp_path)

    def slowly() -> Iterator[int]:
        yield 1
        go_on.wait()

    with pool_of(fork, 1) as pool:
        first = pool.imap(square, slowly(), timeout=PATIENCE)
        assert next(first) == 1
        iterator = pool.imap(forever, itertools.count(), buffersize=1, timeout=PATIENCE)
        del iterator
        go_on.set()
        assert pool.apply_async(square, (3,), callback=str).get(PATIENCE) == 9


def test_a_pool_is_drained_of_a_job_that_is_discarded_meanwhile(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with pool_of(fork, 1) as pool:
        job = pool.apply_async(wait_for, (gate,), callback=str)

        def discard() -> None:
            job.discard()
            gate.set()

        timer = threading.Timer(0.1, discard)
        timer.start()
        assert pool.drain() == []
        timer.join()


def test_a_closed_pool_does_not_read_on_for_who_has_gone() -> None:
    with pool_of(fork, 1) as pool:
        iterator = pool.imap(square, itertools.count(), buffersize=2, timeout=PATIENCE)
        assert next(iterator) == 0
        del iterator
        assert not pool._cache
        pool.close()
        assert pool.join(PATIENCE)


def test_a_worker_has_nothing_of_other_workers(ctx: Any) -> None:
    with pool_of(ctx, 1) as one, pool_of(ctx, 5) as five:
        alone = one.apply(descriptors)
        for found in five.map(descriptors, range(10), 1):
            pipes = [what for what in found.values() if what.startswith("pipe:")]
            others = [what for what in alone.values() if what.startswith("pipe:")]
            assert len(pipes) == len(others), (alone, found)
            # Those that this process was given by its own parent.
            mine = set(descriptors().values())
            assert not (set(pipes) - mine) & set(others), (alone, found)
