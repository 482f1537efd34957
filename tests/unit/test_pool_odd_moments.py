"""billiard.pool: starts, ends and failures at odd moments, and what must not be left waiting."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pool_tasks import (
    PATIENCE,
    Gate,
    die,
    eventually,
    forever,
    initialize,
    initialized,
    leave,
    nap,
    pid,
    pool_of,
    square,
    wait_for,
)

import billiard
from billiard._pool import native
from billiard._pool.supervision import STILLBORN_LIMIT, Supervision
from billiard.exceptions import Terminated, WorkerLostError
from billiard.pool import Pool, ThreadPool

fork: Any = billiard.get_context("fork")

# ---- slots ----


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_nobody_waits_for_a_slot_of_a_pool_that_ends(end: str, tmp_path: Path) -> None:
    with pool_of(fork, 1, putlocks=True) as pool:
        pool.apply_async(wait_for, (Gate(tmp_path),))
        errors = []

        def submit() -> None:
            try:
                pool.apply_async(square, (2,))
            except ValueError as exc:
                errors.append(exc)

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: not pool._putlock.acquire(blocking=False))
        getattr(pool, end)()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert errors


def test_nobody_waits_for_a_slot_of_a_pool_that_has_failed() -> None:
    def hook(worker: Any) -> None:
        raise KeyError(worker.pid)

    in_callback, leave_it, outcomes = threading.Event(), threading.Event(), []

    def callback(_: Any) -> None:
        in_callback.set()
        leave_it.wait(PATIENCE)

    def submit() -> None:
        with pytest.raises((KeyError, Terminated)) as caught:
            pool.apply_async(square, (3,)).get(PATIENCE)
        outcomes.append(caught.value)

    pool = fork.Pool(1, putlocks=True, on_process_down=hook)
    try:
        pool.apply_async(pid, callback=callback)
        assert in_callback.wait(PATIENCE)
        running = pool.apply_async(forever)
        waiting = threading.Thread(target=submit, daemon=True)
        waiting.start()
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        with pytest.raises(KeyError):
            running.get(PATIENCE)
        leave_it.set()
        waiting.join(PATIENCE)
        assert outcomes
    finally:
        leave_it.set()
        pool.terminate()
        pool.join()


class Interrupting:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_a_job_that_could_not_be_submitted_gives_its_slot_back() -> None:
    with pool_of(fork, 1, putlocks=True) as pool:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                pool.apply_async(pid, (Interrupting(),))
        assert pool.apply_async(square, (3,)).get(PATIENCE) == 9


# ---- iterables and callbacks that end the pool ----


@pytest.mark.parametrize("end", ["close", "terminate"])
@pytest.mark.parametrize("kind", [fork.Pool, ThreadPool])
def test_an_iterable_may_end_the_pool_that_it_is_for(kind: Any, end: str) -> None:
    with pool_of(fork, 1) if kind is fork.Pool else ThreadPool(1) as pool:

        def items() -> Iterator[int]:
            yield 1
            getattr(pool, end)()
            pool.join()

        with pytest.raises(ValueError, match="not running"):
            pool.map(square, items())


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_what_is_submitted_to_a_pool_that_is_ending_does_not_wait_for_ever(end: str) -> None:
    with pool_of(fork, 1) as pool:

        class Items(list[int]):
            def __len__(self) -> int:
                # Past all checks.
                getattr(pool, end)()
                pool.join()
                return super().__len__()

        with pytest.raises((ValueError, Terminated)):
            pool.map_async(square, Items([1, 2])).get(PATIENCE)


def test_a_forked_child_cannot_wait_for_results_of_its_parent(tmp_path: Path) -> None:
    with pool_of(fork, 1) as pool:
        gate = Gate(tmp_path)
        waits = [
            pool.apply_async(wait_for, (gate, 2)).get,
            pool.apply_async(wait_for, (gate, 2), callback=str).get,
            pool.map_async(wait_for, [gate]).get,
            pool.imap(wait_for, [gate]).next,
            pool.imap(wait_for, [gate], timeout=PATIENCE).next,
        ]

        def try_all() -> None:
            for wait in waits:
                with pytest.raises(RuntimeError, match="process that made it"):
                    wait(PATIENCE)

        child = fork.Process(target=try_all)
        child.start()
        child.join(PATIENCE)
        gate.set()
        assert child.exitcode == 0


def test_a_pool_cannot_be_drained_in_a_callback() -> None:
    with pool_of(fork, 1) as pool:
        raised: list[BaseException] = []

        def drain(value: Any) -> None:
            try:
                pool.drain()
            except RuntimeError as exc:
                raised.append(exc)

        pool.apply_async(square, (2,), callback=drain).get(PATIENCE)
        eventually(lambda: raised)


@pytest.mark.parametrize("limits", [{}, {"timeout": 60}])
def test_what_is_drained_while_its_input_is_read_has_ended(limits: dict[str, Any]) -> None:
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        go_on.wait()

    with pool_of(fork, 1) as pool:
        results = pool.imap(square, items(), **limits)
        assert next(results) == 1
        cpu = time.process_time()
        assert pool.drain(0.5) == [results]
        assert time.process_time() - cpu < 0.4, "it waits without looking"
        with pytest.raises(Terminated):
            results.next(PATIENCE)
        go_on.set()


def test_a_callback_that_exits_when_a_worker_was_lost_costs_nobody_else() -> None:
    def leave_too(exc: BaseException) -> None:
        raise SystemExit("from the callback")

    with pool_of(fork, 2) as pool:
        other = pool.apply_async(nap, (0.5,))
        lost = pool.apply_async(os._exit, (3,), error_callback=leave_too)
        with pytest.raises(WorkerLostError):
            lost.get(PATIENCE)
        assert other.get(PATIENCE) == 0.5
        assert pool.apply(square, (4,)) == 16


# ---- starts that fail ----


class Careless(Pool):
    """Its hook fails."""

    def on_job_process_down(self, job: Any, pid_gone: int) -> None:
        raise KeyError(pid_gone)


@pytest.mark.parametrize("options", [{}, {"callback": str}], ids=["direct", "book"])
def test_a_hook_that_fails_when_a_worker_was_lost_costs_nothing(options: Any) -> None:
    with Careless(1, putlocks=bool(options)) as pool:
        lost = pool.apply_async(die, **options)
        with pytest.raises(WorkerLostError):
            lost.get(PATIENCE)
        assert pool.apply_async(square, (3,)).get(PATIENCE) == 9


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_a_hook_that_fails_for_every_worker_keeps_no_pool_from_ending(end: str) -> None:
    def hook(worker: Any) -> None:
        raise KeyError(worker.pid)

    pool = fork.Pool(3, on_process_down=hook)
    if end == "close":
        with pytest.raises((WorkerLostError, KeyError)):
            pool.apply_async(die).get(PATIENCE)
    getattr(pool, end)()
    assert pool.join(PATIENCE)
    assert not pool._pool


def test_workers_that_could_be_made_are_started_although_the_next_could_not() -> None:
    queues, calls = Supervision.queues, []

    def out_of_descriptors(self: Supervision) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return queues(self)

    with pool_of(fork, 1) as pool:
        pool.apply(pid)
        with patch.object(Supervision, "queues", out_of_descriptors):
            pool.grow(4)
            eventually(lambda: len(pool._drive.members) == 5)
        assert len({worker.pid for worker in pool._pool}) == 5
        pool.close()
        assert pool.join(PATIENCE)


def test_one_worker_that_cannot_be_watched_is_started_again_and_the_others_are_not() -> None:
    attach, calls = Supervision._take_in, []

    def unwatched(self: Supervision, worker: Any) -> None:
        calls.append(worker)
        if len(calls) == 1:
            worker._popen._send_signal(signal.SIGKILL)
            worker.join()
            self.workers.remove(worker)
            worker.inq.let_go()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        attach(self, worker)

    with pool_of(fork, 1) as pool:
        pool.apply(pid)
        with patch.object(Supervision, "_take_in", unwatched):
            pool.grow(3)
            eventually(lambda: len(pool._poolctrl) == 4)
        assert sorted(pool._poolctrl) == sorted(worker.pid for worker in pool._pool)
        pool.close()
        assert pool.join(PATIENCE)


def test_a_log_that_fails_ends_no_thread_of_the_pool() -> None:
    with (
        pool_of(fork, 1) as pool,
        patch("billiard.util.get_logger", side_effect=OSError(errno.EMFILE, "no descriptor")),
    ):
        with pytest.raises(WorkerLostError):
            pool.apply_async(os._exit, (3,)).get(PATIENCE)
        with pytest.raises(SystemExit):
            pool.apply_async(leave, (3,)).get(PATIENCE)
        assert pool.apply_async(square, (5,)).get(PATIENCE) == 25


def test_workers_that_ignore_sigterm_do_not_keep_a_pool_from_failing() -> None:
    def hook(worker: Any) -> None:
        raise ValueError("hook")

    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(ValueError, match="hook"):
            Pool(2, on_process_up=hook, context=fork)
    finally:
        signal.signal(signal.SIGTERM, handler)


# ---- replacements ----


def initialize_unless(path: Path) -> None:
    if path.exists():
        raise LookupError(path)


def ready(pool: Any) -> int:
    return sum(worker.inq.shared.is_up for worker in list(pool._pool))


def test_a_pool_with_workers_recovers_when_the_initializer_works_again(tmp_path: Path) -> None:
    down = tmp_path / "down"
    with pool_of(fork, 2, initialize_unless, (down,)) as pool:
        eventually(lambda: ready(pool) == 2)
        down.touch()
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        eventually(lambda: pool._drive.starts.stillborn > STILLBORN_LIMIT)
        assert pool.apply(square, (3,)) == 9
        down.unlink()
        eventually(lambda: ready(pool) == 2)


def test_arguments_of_the_initializer_may_come_from_an_iterator(ctx: Any) -> None:
    with pool_of(ctx, 1, initialize, iter(["value"]), maxtasksperchild=1) as pool:
        assert [pool.apply(initialized) for _ in range(3)] == [["value"]] * 3


def test_a_pool_of_threads_that_shrank_to_nothing_can_grow_again() -> None:
    with ThreadPool(1) as pool:
        pool.shrink(1)
        pool.grow(1)
        assert pool.apply_async(square, (3,)).get(PATIENCE) == 9


@pytest.mark.parametrize("where", ["debug", "captured"])
def test_terminate_that_was_interrupted_can_be_called_again(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    pool = fork.Pool(1)
    monkeypatch.setattr(native, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.terminate()
    pool.terminate()
    assert pool.join(PATIENCE)
