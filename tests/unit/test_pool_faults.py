"""billiard.pool: what goes wrong, and what it must not take with it."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pool_tasks import (
    PATIENCE,
    ExitsWhenUnpickled,
    Gate,
    PicklesOnly,
    TwoArguments,
    Unpicklable,
    catch_soft_limit,
    die,
    eventually,
    fail_twice,
    fail_unpicklable,
    forever,
    ignore_terminate,
    initialize_badly,
    initialize_once,
    leave,
    make,
    nap,
    pid,
    pool_of,
    set_and_wait,
    square,
    square_unless,
    wait_for,
)

import billiard
from billiard.einfo import RemoteTraceback
from billiard.exceptions import (
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from billiard.pool import MaybeEncodingError

fork: Any = billiard.get_context("fork")


def run(code: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """A program of its own, which must end."""
    tests = str(Path(__file__).parent)
    package = str(Path(billiard.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package, tests])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        **kwargs,
    )


# ---- what cannot be sent back ----


@pytest.mark.parametrize("kind", [Unpicklable, PicklesOnly, ExitsWhenUnpickled, threading.Lock])
def test_a_result_that_does_not_arrive_fails_its_own_job(ctx: Any, kind: Any) -> None:
    with pool_of(ctx, 1) as pool:
        worker = pool.apply(pid)
        for _ in range(3):
            with pytest.raises(MaybeEncodingError) as caught:
                pool.apply(make, (kind,))
            assert isinstance(caught.value.exc, str) and isinstance(caught.value.value, str)
        with pytest.raises(MaybeEncodingError):
            pool.map(make, [int, kind])
        it = pool.imap(make, [int, kind, int], 1)
        assert next(it) == 0
        with pytest.raises(MaybeEncodingError):
            next(it)
        assert next(it) == 0
        assert pool.apply(pid) == worker


@pytest.mark.parametrize("task", [fail_twice, fail_unpicklable])
def test_an_exception_that_does_not_arrive_fails_its_own_job(ctx: Any, task: Any) -> None:
    with pool_of(ctx, 1) as pool:
        worker = pool.apply(pid)
        errors: list[Any] = []
        result = pool.apply_async(task, error_callback=errors.append)
        with pytest.raises(MaybeEncodingError) as caught:
            result.get(PATIENCE)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert f"in {task.__name__}" in str(caught.value.__cause__)
        eventually(lambda: errors)
        assert f"in {task.__name__}" in errors[0].traceback
        assert pool.apply(pid) == worker


def test_an_encoding_error_travels_and_says_what_and_why() -> None:
    import pickle

    error = MaybeEncodingError(ValueError("why"), TwoArguments(1, 2))
    for it in (error, pickle.loads(pickle.dumps(error))):
        assert it.exc == "ValueError('why')" and it.value == "TwoArguments(1)"
        assert str(it) == "Error sending result: 'TwoArguments(1)'. Reason: 'ValueError('why')'"
        assert it.args == (it.exc, it.value)


# ---- workers that die ----


def test_a_killed_worker_fails_the_task_that_it_had_begun(ctx: Any) -> None:
    with pool_of(ctx, 2, lost_worker_timeout=PATIENCE) as pool:
        pool.map(square, range(4), 1)
        began = time.monotonic()
        errors: list[Any] = []
        result = pool.apply_async(die, error_callback=errors.append)
        with pytest.raises(WorkerLostError, match=r"signal 9 \(SIGKILL\)"):
            result.get(PATIENCE)
        # Not after lost_worker_timeout.
        assert time.monotonic() - began < PATIENCE / 2
        eventually(lambda: errors)
        assert errors[0].type is WorkerLostError
        assert pool.map(square, range(10), 1) == [x * x for x in range(10)]
        eventually(lambda: len(pool._pool) == 2)


@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
def test_a_killed_worker_fails_its_part_of_many(method: str) -> None:
    with pool_of(fork, 2) as pool:
        with pytest.raises(WorkerLostError):
            list(getattr(pool, method)(lambda x: x if x != 5 else die(), range(20), 1))
        assert pool.apply(square, (3,)) == 9


def test_imap_goes_on_after_a_lost_task() -> None:
    with pool_of(fork, 2) as pool:
        it = pool.imap(lambda x: x if x != 5 else die(), range(20))
        got: list[Any] = []
        while True:
            try:
                got.append(next(it))
            except StopIteration:
                break
            except WorkerLostError:
                got.append("lost")
        assert got == [x if x != 5 else "lost" for x in range(20)]


@pytest.mark.stress
def test_no_task_is_lost_but_those_that_dying_workers_had_begun() -> None:
    with pool_of(fork, 3) as pool:
        dice = random.Random(7)
        results = [pool.apply_async(nap_a_little, (i,)) for i in range(600)]
        kills = 0
        while not all(r.ready() for r in results):
            time.sleep(dice.random() * 0.02)
            workers = [w for w in list(pool._pool) if w.pid]
            if workers and kills < 60:
                kills += 1
                with suppress(ProcessLookupError):  # it may just have been reaped
                    os.kill(dice.choice(workers).pid, signal.SIGKILL)
        lost = 0
        for i, result in enumerate(results):
            try:
                assert result.get(PATIENCE) == i
            except WorkerLostError:
                lost += 1
        assert lost <= kills
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def nap_a_little(i: int) -> int:
    time.sleep(0.002)
    return i


@pytest.mark.stress
def test_a_worker_that_is_killed_while_it_writes_spoils_nothing_else() -> None:
    with pool_of(fork, 2) as pool:
        for _ in range(15):
            big = pool.apply_async(bytes, (8 << 20,))
            other = pool.apply_async(square, (4,))
            eventually(lambda big=big: big.accepted() or big.ready())
            for victim in big.worker_pids():
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            # The other may have been the victim's next.
            for result, value in ((other, 16), (big, bytes(8 << 20))):
                with suppress(WorkerLostError):
                    assert result.get(PATIENCE) == value
            assert pool.apply(square, (5,)) == 25


def test_a_stopped_worker_holds_up_nobody_else(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with pool_of(fork, 2) as pool:
        pool.map(square, range(1000), 1)
        stopped = pool._pool[0].pid
        os.kill(stopped, signal.SIGSTOP)
        results = [pool.apply_async(square, (i,)) for i in range(100)]
        eventually(lambda: sum(r.ready() for r in results) >= 98)
        os.kill(stopped, signal.SIGCONT)
        assert [r.get(PATIENCE) for r in results] == [i * i for i in range(100)]
        gate.set()


def test_exit_from_a_task_reaches_the_caller_and_replaces_the_worker(ctx: Any) -> None:
    with pool_of(ctx, 1) as pool:
        before = pool.apply(pid)
        for status in (0, 3):
            with pytest.raises(SystemExit) as caught:
                pool.apply(leave, (status,))
            assert caught.value.code == status
        assert pool.apply(pid) != before


def test_a_worker_told_to_terminate_has_lost_its_task(tmp_path: Path) -> None:
    begun = Gate(tmp_path)
    with pool_of(fork, 1) as pool:
        result = pool.apply_async(set_and_wait, (begun, Gate(tmp_path)))
        assert begun.wait()
        os.kill(pool._pool[0].pid, signal.SIGTERM)
        with pytest.raises(WorkerLostError):
            result.get(PATIENCE)


def test_a_job_can_be_terminated(tmp_path: Path) -> None:
    begun = Gate(tmp_path)
    with pool_of(fork, 2) as pool:
        for sig, number in ((None, 15), (signal.SIGKILL, 9)):
            result = pool.apply_async(set_and_wait, (begun, Gate(tmp_path)))
            (worker,) = eventually(result.worker_pids)
            pool.terminate_job(worker, sig)
            with pytest.raises(Terminated) as caught:
                result.get(PATIENCE)
            assert abs(caught.value.args[0]) == number
        pool.terminate_job(2**22 + 1)
        assert pool.apply(square, (3,)) == 9


@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_stopped_worker_whose_job_was_terminated_can_still_be_ended(limit: float | None) -> None:
    """By `cancel` or its hard limit: the signal of `terminate_job` does nothing to it."""
    with pool_of(fork, 1) as pool:
        result = pool.apply_async(stop_here, callback=str, timeout=limit)
        (worker,) = eventually(result.worker_pids)
        eventually(lambda: is_stopped(worker))
        pool.terminate_job(worker)
        with pytest.raises(billiard.TimeoutError):
            result.get(0.1)
        if limit is None:
            assert result.cancel()
        with pytest.raises(Terminated):
            result.get(PATIENCE)
        assert pool.apply(square, (3,)) == 9


def stop_here() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def come_back(how: object) -> int:
    """The exit code of a child that comes back from this task, too."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if isinstance(how, BaseException):
        raise how
    return 0


@pytest.mark.parametrize(
    ("how", "exitcode"), [(None, 0), (LookupError(), 1), (SystemExit(3), 3), (SystemExit(), 0)]
)
def test_a_child_that_comes_back_from_a_task_is_no_worker(
    ctx: Any, how: object, exitcode: int
) -> None:
    with pool_of(ctx, 1) as pool:
        assert pool.apply(come_back, (how,)) == exitcode
        (worker,) = pool._pool
        assert set(pool.map(pid, range(20), 1)) == {worker.pid}


def come_back_with_a_full_disk() -> int:
    sys.stdout = open("/dev/full", "w")  # noqa: SIM115  (it cannot be closed either)
    try:
        print("this cannot be written")
        return come_back(None)
    finally:
        with suppress(OSError):
            sys.stdout.close()
        sys.stdout = sys.__stdout__


def test_a_child_that_cannot_write_what_it_has_printed_is_no_worker_either() -> None:
    with pool_of(fork, 1) as pool:
        assert pool.apply(come_back_with_a_full_disk) in (0, 1)
        (worker,) = pool._pool
        assert set(pool.map(pid, range(20), 1)) == {worker.pid}


def test_a_child_that_comes_back_from_an_initializer_is_no_worker(ctx: Any) -> None:
    with pool_of(ctx, 1, come_back, (None,)) as pool:
        (worker,) = pool._pool
        assert set(pool.map(pid, range(20), 1)) == {worker.pid}


def test_workers_are_gone_when_their_parent_is() -> None:
    done = run(
        "import billiard, os, signal\n"
        "from pool_tasks import pid\n"
        "pool = billiard.Pool(2)\n"
        "print(*{w.pid for w in pool._pool}, flush=True)\n"
        "pool.map(pid, range(10), 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert done.returncode == -signal.SIGKILL
    workers = [int(word) for word in done.stdout.split()]
    eventually(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in workers))


# ---- workers that cannot begin ----


def test_a_failing_initializer_is_the_answer_to_every_job(ctx: Any) -> None:
    pool = ctx.Pool(2, initialize_badly, ("not today",))
    try:
        errors: list[Any] = []
        first = pool.apply_async(square, (1,), error_callback=errors.append)
        with pytest.raises(LookupError, match="not today") as caught:
            first.get(PATIENCE)
        assert "in initialize_badly" in str(caught.value.__cause__)
        with pytest.raises(LookupError, match="not today"):
            pool.map(square, range(10), 1)
        with pytest.raises(LookupError, match="not today"):
            next(pool.imap(square, itertools.count()))
        eventually(lambda: errors)
        # No replacements.
        assert not pool._pool
        pool.close()
        pool.join()
    finally:
        pool.terminate()


def test_a_worker_that_dies_before_it_is_ready_is_not_replaced_for_ever() -> None:
    with pool_of(fork, 2, die) as pool:
        with pytest.raises(WorkerLostError, match="before it was ready"):
            pool.apply(square, (1,))
        assert not pool._pool


def test_one_worker_that_is_ready_is_enough() -> None:
    counter = fork.Value("i", 0)
    with pool_of(fork, 3, initialize_once, (counter,)) as pool:
        assert pool.map(square, range(20), 1) == [x * x for x in range(20)]
        settled = -1
        while settled != counter.value:
            settled = counter.value
            time.sleep(0.2)
        assert counter.value < 12


def test_a_spawned_worker_that_cannot_begin_says_so(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        "import billiard, sys\n"
        "if __name__ != '__main__':\n"
        "    raise LookupError('only as a script')\n"
        "if __name__ == '__main__':\n"
        "    with billiard.get_context('spawn').Pool(2) as pool:\n"
        "        try: pool.apply(abs, (-1,))\n"
        "        except Exception as exc: print(type(exc).__name__, exc)\n"
    )
    package = str(Path(billiard.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.startswith("WorkerLostError Worker exited before it was ready"), done
    assert "only as a script" in done.stderr


def test_without_processes_to_be_had_the_pool_waits_for_better_times() -> None:
    with pool_of(fork, 1) as pool:
        start, failures = fork.Process.start, []

        def refuse(process: Any) -> None:
            if len(failures) < 3:
                failures.append(process)
                raise BlockingIOError(11, "Resource temporarily unavailable")
            start(process)

        with patch.object(fork.Process, "start", refuse):
            with pytest.raises(WorkerLostError):
                pool.apply(die)
            assert pool.apply(square, (3,)) == 9
        assert len(failures) == 3


def test_a_pool_that_cannot_be_made_leaves_nothing_behind() -> None:
    start, started = fork.Process.start, []

    def refuse(process: Any) -> None:
        if len(started) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(process)
        start(process)

    with (
        patch.object(fork.Process, "start", refuse),
        pytest.raises(BlockingIOError) as caught,
    ):
        fork.Pool(4)
    assert caught.value.errno == 11
    assert len(started) == 2 and not any(process.is_alive() for process in started)


# ---- time limits ----


def test_a_soft_limit_is_raised_in_the_task(ctx: Any, tmp_path: Path) -> None:
    begun = Gate(tmp_path)
    with pool_of(ctx, 1) as pool:
        pool.apply(pid)  # what a task needs has been imported
        result = pool.apply_async(catch_soft_limit, (begun,), soft_timeout=1)
        assert result.get(PATIENCE) == "cleaned up"
        with pytest.raises(SoftTimeLimitExceeded):
            pool.apply_async(forever, soft_timeout=0.1).get(PATIENCE)
        assert pool.map(square, range(10), 1) == [x * x for x in range(10)]


def test_a_hard_limit_ends_the_worker(ctx: Any) -> None:
    with pool_of(ctx, 1) as pool:
        worker = pool.apply(pid)
        began = time.monotonic()
        with pytest.raises(TimeLimitExceeded) as caught:
            pool.apply_async(forever, timeout=0.3).get(PATIENCE)
        assert time.monotonic() - began >= 0.3
        assert caught.value.args == (0.3,)
        assert pool.apply(pid) != worker


def test_a_hard_limit_ends_a_worker_that_ignores_it(tmp_path: Path) -> None:
    begun = Gate(tmp_path)
    with pool_of(fork, 1) as pool:
        worker = pool.apply(pid)
        with pytest.raises(TimeLimitExceeded):
            pool.apply_async(ignore_terminate, (begun,), timeout=0.3).get(PATIENCE)
        assert pool.apply(pid) != worker


def test_limits_of_the_pool_hold_for_every_task() -> None:
    with pool_of(fork, 2, soft_timeout=0.2, timeout=PATIENCE) as pool:
        for call in (
            lambda: pool.apply(forever),
            lambda: pool.map(forever, [1]),
            lambda: next(pool.imap(forever, [1])),
        ):
            with pytest.raises(SoftTimeLimitExceeded):
                call()
        # Not for all of them together; a job's own go before.
        naps = pool.map_async(nap, [0.2] * 12, 1, soft_timeout=1)
        assert naps.get(PATIENCE) == [0.2] * 12
    with pool_of(fork, 2, timeout=0.2) as pool:
        with pytest.raises(TimeLimitExceeded):
            list(pool.imap_unordered(forever, [1, 2]))
        assert pool.apply_async(square, (3,), timeout=PATIENCE).get(PATIENCE) == 9


def test_time_that_a_task_waits_does_not_count(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with pool_of(fork, 1) as pool:
        blocked = pool.apply_async(wait_for, (gate,))
        limited = pool.apply_async(nap, (0.05,), timeout=1.5)
        time.sleep(1.7)
        gate.set()
        blocked.get(PATIENCE)
        assert limited.get(PATIENCE) == 0.05


def test_timeout_callbacks_say_which_limit(tmp_path: Path) -> None:
    log: list[Any] = []
    with pool_of(fork, 1) as pool:
        pool.apply(pid)
        result = pool.apply_async(
            ignore_soft_limit,
            (Gate(tmp_path),),
            soft_timeout=0.5,
            timeout=1.5,
            timeout_callback=lambda soft, timeout: log.append((soft, timeout)),
        )
        with pytest.raises(TimeLimitExceeded):
            result.get(PATIENCE)
        eventually(lambda: len(log) == 2)
        assert log == [(True, 0.5), (False, 1.5)]


def ignore_soft_limit(gate: Gate) -> None:
    while True:
        with suppress(SoftTimeLimitExceeded):
            gate.wait()


def test_limits_are_told_when_they_begin_and_end() -> None:
    log: list[Any] = []
    with pool_of(
        fork,
        1,
        on_timeout_set=lambda job, soft, hard: log.append((job, soft, hard)),
        on_timeout_cancel=lambda job: log.append((job,)),
    ) as pool:
        result = pool.apply_async(square, (3,), soft_timeout=50, timeout=60)
        assert result.get(PATIENCE) == 9
        eventually(lambda: len(log) == 2)
        assert log == [(result, 50, 60), (result,)]


@pytest.mark.stress
def test_a_soft_limit_never_hits_another_task() -> None:
    with pool_of(fork, 2) as pool:
        pool.map(square, range(2000), 1)
        for _ in range(60):
            # Ends just when its limit passes.
            limited = [pool.apply_async(nap, (0.01,), soft_timeout=0.01) for _ in range(2)]
            others = [pool.apply_async(nap, (0.0,)) for _ in range(10)]
            assert [r.get(PATIENCE) for r in others] == [0.0] * 10
            for result in limited:
                with suppress(SoftTimeLimitExceeded):
                    assert result.get(PATIENCE) == 0.01
        assert pool.map(square, range(100), 1) == [x * x for x in range(100)]


# ---- ends ----


def test_close_after_a_failed_map(ctx: Any) -> None:
    pool = ctx.Pool(2)
    with pytest.raises(LookupError):
        pool.map(square_unless, range(100), 1)
    pool.close()
    pool.join()


def test_close_after_something_that_could_not_be_pickled() -> None:
    pool = fork.Pool(2)
    with pytest.raises(RuntimeError):
        pool.map(square, [Unpicklable()] * 10)
    with pytest.raises(RuntimeError):
        pool.apply(square, (Unpicklable(),))
    pool.close()
    pool.join()


def test_close_lets_every_task_finish(ctx: Any) -> None:
    pool = ctx.Pool(2, maxtasksperchild=2)
    results = [pool.apply_async(square, (i,)) for i in range(9)]
    mapped = pool.map_async(square, range(9), 1)
    iterated = pool.imap(square, range(9))
    pool.close()
    pool.join()
    assert [r.get(0) for r in results] == mapped.get(0) == list(iterated)


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_terminate_while_an_endless_imap_runs(method: str) -> None:
    pool = fork.Pool(2)
    it = getattr(pool, method)(square, itertools.count())
    for _ in range(1000):
        next(it)
    pool.terminate()
    pool.join()
    with pytest.raises((Terminated, WorkerLostError)):
        for _ in it:
            pass


def test_terminate_with_many_tasks_waiting(tmp_path: Path) -> None:
    for _ in range(5):
        pool = fork.Pool(2)
        log: list[Any] = []
        running = [pool.apply_async(wait_for, (Gate(tmp_path),)) for _ in range(2)]
        waiting = [
            pool.apply_async(square, (i,), callback=log.append, error_callback=log.append)
            for i in range(3000)
        ]
        mapped = pool.map_async(square, range(10_000), 1)
        eventually(lambda running=running: all(r.accepted() for r in running))
        pool.terminate()
        pool.join()
        for result in running:
            with pytest.raises(WorkerLostError):
                result.get(0)
        for result in (*waiting, mapped):
            with pytest.raises(Terminated):
                result.get(0)
        # Who redelivers what was not begun (Celery) must not be told that it has failed.
        assert not log


def test_terminate_lets_go_who_waits(tmp_path: Path) -> None:
    pool = fork.Pool(1)
    blocked = pool.apply_async(wait_for, (Gate(tmp_path),))
    waiting = pool.apply_async(square, (2,))
    caught: list[BaseException] = []

    def wait(result: Any) -> None:
        try:
            result.get()
        except Exception as exc:
            caught.append(exc)

    threads = [threading.Thread(target=wait, args=(r,)) for r in (blocked, waiting)]
    for thread in threads:
        thread.start()
    eventually(blocked.accepted)
    pool.terminate()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(type(exc).__name__ for exc in caught) == ["Terminated", "WorkerLostError"]
    pool.join()


def test_terminate_while_the_iterable_blocks() -> None:
    pool = fork.Pool(1)
    release = threading.Event()

    def blocking() -> Any:
        yield 1
        release.wait(PATIENCE)
        yield 2

    it = pool.imap(square, blocking())
    assert next(it) == 1
    terminating = threading.Thread(target=pool.terminate)
    terminating.start()
    time.sleep(0.05)
    release.set()
    terminating.join(PATIENCE)
    assert not terminating.is_alive()
    pool.join()


def test_terminate_in_a_callback(tmp_path: Path) -> None:
    pool = fork.Pool(2)
    blocked = pool.apply_async(wait_for, (Gate(tmp_path),))
    eventually(blocked.accepted)
    pool.apply_async(square, (2,), callback=lambda value: pool.terminate())
    with pytest.raises(WorkerLostError):
        blocked.get(PATIENCE)
    pool.join()


def test_a_pool_cannot_be_joined_in_a_callback(tmp_path: Path) -> None:
    with pool_of(fork, 1) as pool:
        gate, caught = Gate(tmp_path), []

        def callback(value: Any) -> None:
            pool.close()
            try:
                pool.join()
            except RuntimeError as exc:
                caught.append(exc)

        pool.apply_async(wait_for, (gate,), callback=callback)
        gate.set()
        eventually(lambda: caught)
        pool.join()


def test_terminate_in_a_signal_handler() -> None:
    for call in ("pool.map(nap, [100])", "[pool.apply_async(pid) for _ in iter(int, 1)]"):
        done = run(
            "import billiard, os, signal, sys, threading, time\n"
            "from pool_tasks import nap, pid\n"
            "pool = billiard.Pool(2)\n"
            "pool.apply(pid)\n"
            "def handler(*args):\n"
            "    signal.setitimer(signal.ITIMER_REAL, 0)\n"
            "    pool.terminate(); pool.join(); print('over', flush=True); os._exit(0)\n"
            "signal.signal(signal.SIGALRM, handler)\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)\n"
            f"{call}\n"
        )
        assert (done.returncode, done.stdout) == (0, "over\n"), done


def test_a_program_may_end_without_closing_its_pools() -> None:
    done = run(
        "import billiard\n"
        "from pool_tasks import nap, pid\n"
        "pool = billiard.Pool(2)\n"
        "pool.map(pid, range(10))\n"
        "pool.apply_async(nap, (1000,)); pool.imap(nap, iter(int, 1))\n"
        "print('end', flush=True)\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_workers_that_ignore_terminate_are_killed(tmp_path: Path) -> None:
    from billiard._pool import supervision

    begun = Gate(tmp_path)
    with patch.object(supervision, "TERMINATE_GRACE", 0.5):
        pool = fork.Pool(1)
        pool.apply_async(ignore_terminate, (begun,))
        assert begun.wait()
        pool.terminate()
        pool.join()
    assert not pool._pool


def test_too_many_restarts_end_the_program() -> None:
    # Each word in one write: the signal's handler may come in the middle of a print.
    done = run(
        "import billiard, os, signal, sys, time\n"
        "from pool_tasks import pid\n"
        "def say(word): os.write(1, word.encode() + b'\\n')\n"
        "signal.signal(signal.SIGTERM, lambda *a: (say('told'), os._exit(0)))\n"
        "counter = billiard.Value('i')\n"
        "def initializer():\n"
        "    counter.value += 1\n"
        "    if counter.value > 1: os._exit(3)\n"
        "pool = billiard.Pool(1, initializer, max_restarts=2, max_restart_freq=60)\n"
        "pool.apply(pid)\n"
        "os.kill(pool._pool[0].pid, signal.SIGKILL)\n"
        "try: pool.apply(pid)\n"
        "except Exception as exc: say(type(exc).__name__)\n"
        "time.sleep(30)\n"
    )
    assert done.returncode == 0, done
    assert set(done.stdout.split()) <= {"told", "RestartFreqExceeded"}, done
    assert "told" in done.stdout
