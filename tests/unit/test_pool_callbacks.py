"""billiard.pool: what callbacks may do, and whom they must not hold up."""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from pool_tasks import PATIENCE, Gate, die, eventually, pid, pool_of, set_and_wait, square

import billiard
import billiard.pool
from billiard.exceptions import WorkerLostError

fork: Any = billiard.get_context("fork")


class Held:
    """A callback that takes its time."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, *args: Any) -> None:
        self.begun.set()
        self.go_on.wait(PATIENCE)


def test_the_callback_of_a_lost_job_can_use_the_pool(ctx: Any) -> None:
    with pool_of(ctx, 1) as pool:
        squares: list[int] = []
        lost = pool.apply_async(
            die, error_callback=lambda _: squares.append(pool.apply(square, (3,)))
        )
        with pytest.raises(WorkerLostError):
            lost.get(PATIENCE)
        assert eventually(lambda: squares) == [9]


def test_a_callback_does_not_hold_up_the_replacement_of_workers(ctx: Any, tmp_path: Any) -> None:
    with pool_of(ctx, 1) as pool:
        held, begun = Held(), Gate(tmp_path)
        pool.apply_async(pid, callback=held)
        assert held.begun.wait(PATIENCE)
        lost = pool.apply_async(set_and_wait, (begun, Gate(tmp_path)))
        assert begun.wait()
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            lost.get(PATIENCE)
        assert pool.apply_async(square, (3,)).get(PATIENCE) == 9
        assert not held.go_on.is_set()
        held.go_on.set()


def test_nothing_is_kept_of_workers_that_died_while_a_callback_was_held_up(tmp_path: Any) -> None:
    with pool_of(fork, 1) as pool:
        held, begun = Held(), Gate(tmp_path)
        pool.apply_async(pid, callback=held)
        assert held.begun.wait(PATIENCE)
        worker = pool._pool[0]
        lost = pool.apply_async(set_and_wait, (begun, Gate(tmp_path)), callback=str)
        assert begun.wait()
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: pool._pool and worker not in pool._pool)
        held.go_on.set()
        with pytest.raises(WorkerLostError):
            lost.get(PATIENCE)
        kept = inspect.getclosurevars(pool._result_handler.on_worker_exit).nonlocals
        assert not any(kept.values())


def test_a_callback_can_use_the_pool_although_the_worker_dies(ctx: Any) -> None:
    with pool_of(ctx, 1) as pool:
        outcomes: list[Any] = []

        def callback(_: Any) -> None:
            try:
                pool.apply(die)
            except WorkerLostError as exc:
                outcomes.append(exc)
            outcomes.append(pool.apply(square, (3,)))

        pool.apply_async(pid, callback=callback)
        eventually(lambda: len(outcomes) == 2)
        assert outcomes[1] == 9


@pytest.mark.parametrize("kind", [fork.Pool, billiard.pool.ThreadPool])
def test_a_callback_that_would_wait_for_its_own_thread_is_told_so(kind: Any) -> None:
    with kind(1) as pool:
        errors: list[Any] = []

        def wait(_: Any) -> None:
            for method in (pool.map, pool.starmap):
                try:
                    method(square, [(1,), (2,)])
                except RuntimeError as exc:
                    errors.append(exc)

        pool.apply_async(pid, callback=wait)
        eventually(lambda: len(errors) == 2)
        assert "callback" in str(errors[0])
        assert pool.apply_async(square, (3,), callback=str).get(PATIENCE) == 9


def test_a_callback_that_would_wait_for_its_own_map_is_told_so() -> None:
    with pool_of(fork, 1) as pool:
        held, errors = Held(), []

        def wait(_: Any) -> None:
            held()
            with pytest.raises(RuntimeError) as caught:
                mapped.get()
            errors.append(caught.value)

        mapped = pool.map_async(square, range(3), callback=wait)
        assert held.begun.wait(PATIENCE)
        held.go_on.set()
        assert mapped.get(PATIENCE) == [0, 1, 4]
        assert len(errors) == 1


class Failing:
    """Three items, of which there is only one."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[int]:
        yield 1
        raise KeyError


def test_the_callback_of_an_iterable_that_fails_can_use_the_pool() -> None:
    with pool_of(fork, 1) as pool:
        squares: list[int] = []
        mapped = pool.map_async(
            square,
            Failing(),
            1,
            error_callback=lambda _: squares.append(pool.apply(square, (3,))),
        )
        with pytest.raises(KeyError):
            mapped.get(PATIENCE)
        assert squares == [9]


def test_a_callback_can_use_the_pool_while_an_iterable_is_read() -> None:
    with pool_of(fork, 1) as pool:
        go_on, squares = threading.Event(), []

        def nothing() -> Iterator[int]:
            go_on.wait(PATIENCE)
            yield from ()

        # It is submitted first; to be read it may wait as long as it likes.
        held = Held()
        first = pool.apply_async(
            pid, callback=lambda _: (held(), squares.append(pool.apply(square, (3,))))
        )
        assert held.begun.wait(PATIENCE)
        fed = pool.imap(square, nothing())
        held.go_on.set()
        first.get(PATIENCE)
        assert eventually(lambda: squares) == [9]
        assert not go_on.is_set()
        go_on.set()
        assert list(fed) == []


def test_a_callback_can_shrink_a_pool_whose_slots_are_taken() -> None:
    with pool_of(fork, 2, putlocks=True) as pool:
        shrunk = threading.Event()

        def shrink(_: Any) -> None:
            # It cannot while both workers are at a task.
            with suppress(ValueError):
                if not shrunk.is_set():
                    pool.shrink(1)
                    shrunk.set()

        # Callers take the slots that come free as fast as they do.
        jobs = []
        while not shrunk.is_set() and len(jobs) < 10_000:
            jobs.append(pool.apply_async(square, (3,), callback=shrink))
        assert [job.get(PATIENCE) for job in jobs] == [9] * len(jobs)
        assert shrunk.is_set() and pool._processes == 1
        eventually(lambda: pool._putlock._value == pool._putlock._initial_value == 1)
