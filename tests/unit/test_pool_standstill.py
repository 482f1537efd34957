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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pool_tasks import PATIENCE, eventually, pid, pool_of

import billiard
from billiard._pool import handlers, standstill

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


def test_what_follows_terminate_job(middle: Middle, patient: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(standstill, "TERMINATED_GRACE", PATIENCE)
    late = middle.pool.apply_async(signal.pause)
    eventually(late.accepted)
    middle.pool.terminate_job(middle.pool._pool[0].pid)
    with middle.lock:
        assert not middle.replaced.wait(A_WHILE)
    middle.pool._drive.standstill.is_over = True  # waits no longer
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


def test_forks_are_next_however_many_callbacks_are_to_come(middle: Middle, patient: None) -> None:
    middle.pool.grow(1)
    results = [
        middle.pool.apply_async(pid, callback=lambda _: time.sleep(0.005)) for _ in range(2000)
    ]
    for _ in range(5):
        before = list(middle.pool._pool)
        os.kill(before[0].pid, signal.SIGKILL)
        eventually(lambda before=before: set(middle.pool._pool) - set(before))
    assert not results[-1].ready()
    for result in results:
        result.discard()


@pytest.mark.parametrize("where", ["a callback", "a log record"])
def test_who_stays_in_is_waited_for_once(
    where: str, middle: Middle, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standstill, "PATIENCE", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    def stay_in(*args: Any) -> None:
        begun.set()
        go_on.wait(PATIENCE)

    ear = Ear()
    ear.emit = stay_in  # type: ignore[method-assign]
    logger.addHandler(ear)
    thread = threading.Thread(target=logger.error, args=("text",))
    try:
        if where == "a callback":
            middle.pool.apply_async(pid, callback=stay_in)
        else:
            thread.start()
        assert begun.wait(PATIENCE)
        for _ in range(3):
            os.kill(middle.pool._pool[0].pid, signal.SIGKILL)
            middle.pool.apply_async(pid).get(PATIENCE)
            # Whoever waits again comes too late.
            monkeypatch.setattr(standstill, "PATIENCE", 2 * PATIENCE)
    finally:
        go_on.set()
        if thread.ident:
            thread.join()


def test_jobs_may_be_terminated_again_and_again(middle: Middle) -> None:
    began, ends = threading.Event(), threading.Event()

    def terminate() -> None:
        while not ends.wait(standstill.TERMINATED_GRACE / 5):
            middle.pool._drive.standstill.note_termination()
            began.set()

    thread = threading.Thread(target=terminate)
    thread.start()
    try:
        assert began.wait(PATIENCE)
        os.kill(middle.pool._pool[0].pid, signal.SIGKILL)
        assert middle.replaced.wait(PATIENCE / 2)
    finally:
        ends.set()
        thread.join()


# ---- nobody waits for who waits for him ------------------------------------------------------


def test_a_callback_can_shrink_the_pool_whose_workers_are_being_replaced(patient: None) -> None:
    ended = threading.Event()
    with pool_of(fork, 3) as pool:

        def callback(_: Any) -> None:
            for worker in pool._pool[:2]:
                os.kill(worker.pid, signal.SIGKILL)
            eventually(lambda: pool._drive.standstill.turn.is_wanted)
            pool.shrink()
            ended.set()

        pool.apply_async(pid, callback=callback)
        assert ended.wait(PATIENCE / 2)


class Tee:
    """A stream that logs what is written, with a lock around both."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waits = threading.Event()

    def write(self, text: str) -> int:
        with self.lock:
            self.waits.wait(A_WHILE)
            log()
        return len(text)

    def flush(self) -> None:
        self.waits.set()
        with self.lock:
            pass


def test_a_stream_whose_user_logs(
    middle: Middle, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    middle.replaced.set()  # nobody else is to be killed
    tee = Tee()
    monkeypatch.setattr(sys, "stdout", tee)
    os.kill(middle.pool._pool[0].pid, signal.SIGKILL)
    tee.write("text")
    assert middle.pool.apply_async(pid).get(PATIENCE) != os.getpid()


def test_a_stream_whose_user_waits_for_a_callback(
    middle: Middle, monkeypatch: pytest.MonkeyPatch
) -> None:
    middle.replaced.set()  # nobody else is to be killed
    middle.pool.grow(1)
    eventually(lambda: len([worker for worker in middle.pool._pool if worker.pid]) == 2)
    tee, told = Tee(), threading.Event()
    monkeypatch.setattr(sys, "stdout", tee)
    with tee.lock:
        os.kill(middle.pool._pool[0].pid, signal.SIGKILL)
        assert tee.waits.wait(PATIENCE)
        middle.pool.apply_async(pid, callback=lambda _: told.set())
        assert told.wait(PATIENCE)


@pytest.mark.parametrize("first", ["billiard, logging", "logging"])
def test_a_hook_that_wants_what_the_writer_of_a_record_holds(first: str, tmp_path: Path) -> None:
    """In a process of its own: hooks are for ever."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import {first}, os, signal, threading\n"
        "lock, wanted = threading.Lock(), threading.Event()\n"
        "def before():\n"
        "    wanted.set()\n"
        "    lock.acquire()\n"
        "os.register_at_fork(\n"
        "    before=before, after_in_parent=lock.release, after_in_child=lock.release\n"
        ")\n"
        "import billiard\n"
        "logging.basicConfig(filename=os.devnull)\n"
        "pool = billiard.get_context('fork').Pool(1)\n"
        "first = pool.apply(os.getpid)\n"
        "wanted.clear()\n"
        "with lock:\n"
        "    os.kill(first, signal.SIGKILL)\n"
        "    assert wanted.wait(60)\n"
        "    logging.error('text')\n"
        "assert pool.apply_async(os.getpid).get(60) != first\n"
        "pool.terminate()\n"
    )
    subprocess.run([sys.executable, script], check=True, timeout=2 * PATIENCE)


# the supervisor leaves by SystemExit
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_restarts_in_place_of_terminated_workers_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, send = threading.Event(), handlers.send_signal

    def send_to_others(number: int, sig: int) -> None:
        if number == os.getpid():
            told.set()
        else:
            send(number, sig)

    monkeypatch.setattr(handlers, "send_signal", send_to_others)
    with pool_of(fork, 1, max_restarts=2, max_restart_freq=PATIENCE) as pool:

        def workers() -> set[int]:
            return {worker.pid for worker in pool._pool if worker.pid}

        terminated: set[int] = set()
        while len(terminated) < 5 and not told.is_set():
            eventually(lambda: told.is_set() or workers() - terminated)
            for number in workers() - terminated:
                terminated.add(number)
                pool.terminate_job(number, signal.SIGKILL)
        assert told.is_set()
