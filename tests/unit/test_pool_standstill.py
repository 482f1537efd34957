"""billiard.pool under fork: what other threads are in the middle of when a worker is replaced.

In every test a thread takes a lock, kills the only worker, and lets go when the next worker has
been made or after a while. In a worker that has been forked meanwhile the lock is held for ever.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import PATIENCE, eventually, pid, pool_of

import billiard
from billiard._pool import standstill, supervision

fork: Any = billiard.get_context("fork")

#: Seconds for a replacement to be made that does not wait. Only a fault is noticed less often if it
#: takes longer.
A_WHILE = 0.3


class Middle:
    """Something that cannot be done by two threads at once, in the middle of which workers die."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.replaced = threading.Event()
        self.owner = os.getpid()
        self.pool: Any = None
        self.patience = A_WHILE

    def __call__(self, *args: Any) -> None:
        assert self.lock.acquire(timeout=PATIENCE), "held by a thread that is not there"
        try:
            if self.pool is not None and os.getpid() == self.owner and not self.replaced.is_set():
                os.kill(self.pool._pool[0].pid, signal.SIGKILL)
                self.replaced.wait(self.patience)
        finally:
            self.lock.release()

    def on_process_up(self, worker: Any) -> None:
        if self.pool is not None:
            self.replaced.set()


@pytest.fixture
def middle() -> Iterator[Middle]:
    """With a pool of one forked worker."""
    global MIDDLE
    MIDDLE = Middle()
    with pool_of(fork, 1, on_process_up=MIDDLE.on_process_up) as pool:
        pool.apply(pid)
        MIDDLE.pool = pool
        yield MIDDLE
        MIDDLE.pool = None


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a moment is no reason to give up."""
    monkeypatch.setattr(standstill, "PATIENCE", PATIENCE)
    monkeypatch.setattr(standstill, "IMPORT_PATIENCE", PATIENCE)


def in_the_middle() -> None:
    MIDDLE()


def served_by_the_next(middle: Middle, task: Any) -> Any:
    """What the task returns in the worker that has been made meanwhile."""
    assert middle.replaced.wait(PATIENCE)
    return middle.pool.apply_async(task).get(2 * PATIENCE)


def test_a_callback(middle: Middle, patient: None) -> None:
    middle.pool.apply_async(pid, callback=middle)
    served_by_the_next(middle, in_the_middle)


def test_the_callback_of_a_hard_limit(patient: None) -> None:
    global MIDDLE
    middle = MIDDLE = Middle()

    def on_timeout(soft: bool, timeout: float) -> None:
        # The worker has been killed already.
        with middle.lock:
            middle.replaced.wait(A_WHILE)

    with pool_of(fork, 1, on_process_up=middle.on_process_up) as pool:
        middle.pool = pool
        late = pool.apply_async(signal.pause, timeout=0.05, timeout_callback=on_timeout)
        with pytest.raises(billiard.TimeLimitExceeded):
            late.get(PATIENCE)
        served_by_the_next(middle, in_the_middle)
        middle.pool = None


class Ear(logging.Handler):
    """A handler whose records go through the middle."""

    def emit(self, record: logging.LogRecord) -> None:
        MIDDLE()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("billiard-tests-standstill")
    logger.propagate = False
    logger.addHandler(Ear())
    yield logger
    logger.handlers.clear()


def log() -> None:
    logging.getLogger("billiard-tests-standstill").error("text")


def test_a_log_record(middle: Middle, logger: logging.Logger, patient: None) -> None:
    logger.error("text")
    served_by_the_next(middle, log)


class Narrow(io.RawIOBase):
    """A file that is written to through the middle."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        MIDDLE()
        return len(data)


def print_to(name: str) -> None:
    print("text", file=getattr(sys, name))


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_standard_streams(name: str, middle: Middle, monkeypatch: pytest.MonkeyPatch) -> None:
    # A buffered writer holds a lock while it writes; that lock is the one in the child.
    stream = io.TextIOWrapper(io.BufferedWriter(Narrow()), line_buffering=True)
    monkeypatch.setattr(sys, name, stream)
    stream.write("text\n")
    served_by_the_next(middle, partial(print_to, name))


def import_it() -> str:
    return importlib.import_module("billiard_tests_slow_module").__name__


def test_an_import(
    middle: Middle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    module = tmp_path / "billiard_tests_slow_module.py"
    module.write_text("import test_pool_standstill\ntest_pool_standstill.in_the_middle()\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert import_it() == served_by_the_next(middle, import_it)
    finally:
        sys.modules.pop("billiard_tests_slow_module", None)


def test_what_follows_terminate_job(middle: Middle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "TERMINATED_GRACE", PATIENCE)
    late = middle.pool.apply_async(signal.pause)
    eventually(late.accepted)
    middle.pool.terminate_job(middle.pool._pool[0].pid)
    with middle.lock:
        assert not middle.replaced.wait(A_WHILE)
    middle.pool._drive._start_again_at = None
    middle.pool._drive.change()
    served_by_the_next(middle, in_the_middle)


# ---- what takes too long is not waited for ---------------------------------------------------


@pytest.mark.parametrize("where", ["a callback", "a log record"])
def test_a_worker_is_replaced_although_a_thread_stays_in(
    where: str, middle: Middle, logger: logging.Logger
) -> None:
    middle.patience = PATIENCE
    if where == "a callback":
        middle.pool.apply_async(pid, callback=middle)
    else:
        logger.error("text")
    assert served_by_the_next(middle, pid) != os.getpid()


def test_forks_have_their_turn_however_many_callbacks_are_to_come() -> None:
    callbacks = standstill.Callbacks()
    count, ends = 0, False

    def call() -> None:
        nonlocal count
        while not ends:
            with callbacks:
                count += 1

    thread = threading.Thread(target=call)
    thread.start()
    try:
        for _ in range(20):
            callbacks.suspend(PATIENCE)
            before = count
            sum(range(1000))
            assert count == before
            callbacks.resume()
            eventually(lambda before=before: count > before)  # type: ignore[misc]
    finally:
        ends = True
        thread.join()


def test_a_callback_may_have_workers_started() -> None:
    callbacks = standstill.Callbacks()
    with callbacks:
        callbacks.suspend(PATIENCE)
        callbacks.resume()
    with callbacks:
        pass
