"""Spare interpreters (billiard.spawn.set_spares): when they are used, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import process_tasks
import pytest
from scripts import run

import billiard
from billiard import _core, _spares, spawn
from billiard.connection import Connection, wait

SPAWN = billiard.get_context("spawn")


@pytest.fixture(autouse=True)
def no_spares_before_and_after() -> Iterator[None]:
    spawn.set_spares(0)
    yield
    spawn.set_spares(0)


def pids() -> list[int]:
    with _spares._lock:
        return [spare.child.pid for spare in _spares._spares]


def tell(conn: Connection) -> None:
    with open(os.devnull) as something:  # a number that is free
        conn.send((os.getpid(), sys.argv, os.getcwd(), os.environ.get("SPARE"), something.fileno()))


def ask(target: Callable[..., object] = tell, *args: object) -> Any:
    return process_tasks.ask(SPAWN, target, *args)


def test_a_spare_takes_over_and_is_replaced() -> None:
    spawn.set_spares(2)
    first, second = pids()
    assert first != second
    pid, argv, cwd, _, _ = ask()
    assert (pid, argv, cwd) == (first, sys.argv, os.getcwd())
    assert pids()[0] == second
    assert len(pids()) == 2
    assert ask()[0] == second


def test_there_are_never_more_than_were_asked_for() -> None:
    for count in (1, 3, 2, 0):
        spawn.set_spares(count)
        assert len(pids()) == count
    assert ask()[0] not in pids()
    assert pids() == []


def test_customers_share_the_spares() -> None:
    spawn.set_spares(1)
    _spares.want("pool", 3)
    assert len(pids()) == 3
    _spares.want("other", 2)
    _spares.want("pool", 0)
    assert len(pids()) == 2
    _spares.want("other", 0)
    assert len(pids()) == 1


@pytest.mark.parametrize("value", [None, 1.0, "1", True, -1])
def test_what_is_no_number_of_spares(value: Any) -> None:
    with pytest.raises(ValueError if value == -1 else TypeError, match="spare interpreters"):
        spawn.set_spares(value)


def test_a_spare_of_another_environment_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn.set_spares(2)
    before = pids()
    monkeypatch.setenv("SPARE", "changed")
    pid, _, _, value, _ = ask()
    assert pid not in before
    assert value == "changed"
    after = pids()
    assert len(after) == 2
    assert not set(after) & set(before)
    assert ask()[0] == after[0]


def test_a_spare_of_another_directory_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn.set_spares(1)
    before = pids()
    monkeypatch.chdir(tmp_path)
    pid, _, cwd, _, _ = ask()
    assert pid not in before
    assert cwd == str(tmp_path)


def test_a_spare_of_another_executable_is_thrown_away() -> None:
    spawn.set_spares(1)
    before, executable = pids(), spawn.get_executable()
    spawn.set_executable(os.path.realpath(sys.executable))
    try:
        child = SPAWN.Process(target=int)
        child.start()
        child.join()
        assert child.pid not in before
    finally:
        spawn.set_executable(executable)


def test_a_spare_of_other_standard_streams_is_thrown_away(tmp_path: Path) -> None:
    spawn.set_spares(1)
    before = pids()
    kept = os.dup(1)
    with (tmp_path / "out").open("w") as out:
        os.dup2(out.fileno(), 1)
        try:
            child = SPAWN.Process(target=os.write, args=(1, b"to the file"))
            child.start()
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    child.join()
    assert child.pid not in before
    assert (tmp_path / "out").read_text() == "to the file"


def test_a_spare_that_was_killed_is_passed_over() -> None:
    spawn.set_spares(2)
    first, second = pids()
    os.kill(first, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert ask()[0] == second


def echo(conn: Connection, connections: list[Connection], files: list[Any]) -> None:
    conn.send([connection.recv() for connection in connections])


def test_descriptors_have_their_places() -> None:
    """Whatever numbers the spare uses itself."""
    spawn.set_spares(1)
    pairs = [billiard.Pipe() for _ in range(40)]
    for number, (ours, _) in enumerate(pairs):
        ours.send(number)
    assert ask(echo, [its for _, its in pairs], []) == list(range(40))
    for ours, its in pairs:
        ours.close()
        its.close()


def test_interrupts_do_not_reach_spares_but_what_they_become() -> None:
    spawn.set_spares(1)
    [pid] = pids()
    os.kill(pid, signal.SIGINT)
    ours, its = billiard.Pipe()
    child = SPAWN.Process(target=wait_for_interrupt, args=(its,))
    child.start()
    its.close()
    assert child.pid == pid
    with ours:
        assert ours.recv() == "ready"
        os.kill(pid, signal.SIGINT)
        assert ours.recv() == "interrupted"
    child.join(60)
    assert child.exitcode == 0


def wait_for_interrupt(conn: Connection) -> None:
    try:
        conn.send("ready")
        time.sleep(60)
    except KeyboardInterrupt:
        conn.send("interrupted")


def hold(conn: Connection) -> None:
    conn.send(_spares._spares)
    conn.recv()


def test_a_forked_child_has_no_spares_and_keeps_none_alive() -> None:
    spawn.set_spares(1)
    [spare] = _spares._spares
    ours, its = billiard.Pipe()
    child = billiard.get_context("fork").Process(target=hold, args=(its,))
    child.start()
    its.close()
    assert ours.recv() == []
    # The end of our socket is all that a spare waits for.
    os.close(spare.socket)
    assert spare.child.wait(60) == 0
    _spares._spares.clear()
    spare.child.close()
    with ours:
        ours.send("go")
    child.join()


def test_spares_are_gone_with_the_parent(tmp_path: Path) -> None:
    source = """
        import os, sys, billiard.spawn, billiard._spares
        if __name__ == "__main__":
            billiard.spawn.set_spares(2)
            with open("spares", "w") as file:
                print(*(spare.child.pid for spare in billiard._spares._spares), file=file)
            if sys.argv[1] == "suddenly":
                os._exit(0)
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(source))
    for how in ("suddenly", "in order"):
        assert run(script, how, cwd=tmp_path).returncode == 0
        for pid in map(int, (tmp_path / "spares").read_text().split()):
            start = _core.process_start_time(pid)
            if start is not None:
                fd = _core.watch_process(pid, start)
                assert wait([fd], 60) == [fd]
                os.close(fd)


def test_an_executable_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "_python_exe", "/no/such/python")
    with pytest.raises(FileNotFoundError):
        spawn.set_spares(1)
    assert pids() == []
    assert _spares._wanted == {}


def test_a_start_does_not_fail_because_its_spare_cannot_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(conditions: Any) -> Any:
        raise OSError(11, "no processes left")

    spawn.set_spares(1)
    [first] = pids()
    with monkeypatch.context() as patch:
        patch.setattr(_spares, "_start", fail)
        assert ask()[0] == first
        assert pids() == []
    ask()
    assert len(pids()) == 1


# ---- pools ----


def test_a_pool_that_replaces_workers_keeps_spares_and_gives_them_up() -> None:
    for end in ("terminate", "close"):
        pool = SPAWN.Pool(1, maxtasksperchild=1)
        assert len({pool.apply(os.getpid) for _ in range(5)}) == 5
        assert len(pids()) == 1
        getattr(pool, end)()
        pool.join()
        assert pids() == []
        assert _spares._wanted == {}


def test_a_pool_has_no_more_spares_than_workers_or_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def keep_for(owner: object, count: int) -> Callable[[], object]:
        counts.append(count)
        return kept(owner, count)

    kept = _spares.keep_for
    monkeypatch.setattr(_spares, "keep_for", keep_for)
    for workers, cpus in ((1, 8), (3, 2)):
        with SPAWN.Pool(workers, maxtasksperchild=1) as pool:
            monkeypatch.setattr(pool, "cpu_count", lambda cpus=cpus: cpus)
            pool.map(abs, range(6), 1)
            pool.apply(abs, (1,))
        pool.join()
    assert counts == [1, 2]


def test_workers_that_come_from_spares_are_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    take = _spares.take

    def counting(message: int, fds: list[int]) -> _core.Child | None:
        child = take(message, fds)
        if child is not None:
            taken.append(child.pid)
        return child

    monkeypatch.setattr(_spares, "take", counting)
    with SPAWN.Pool(2, maxtasksperchild=2) as pool:
        found = set(pool.map(pid_of_worker, range(20), 1))
    pool.join()
    assert len(found) >= 10
    assert found & set(taken)


def pid_of_worker(_: object) -> int:
    return os.getpid()


def test_a_pool_that_is_not_recycled_or_not_spawned_has_none() -> None:
    for context, limit in ((SPAWN, None), (billiard.get_context("fork"), 1)):
        with context.Pool(1, maxtasksperchild=limit) as pool:
            for _ in range(3):
                pool.apply(os.getpid)
            assert pids() == []
        pool.join()


def test_a_pool_that_is_forgotten_has_no_spares_left() -> None:
    class Owner:
        pass

    owner = Owner()
    _spares.keep_for(owner, 2)
    assert len(pids()) == 2
    del owner
    assert pids() == []


def test_threads_may_start_and_set_at_the_same_time() -> None:
    spawn.set_spares(2)

    def start() -> None:
        for _ in range(4):
            child = SPAWN.Process(target=int)
            child.start()
            child.join(60)
            codes.append(child.exitcode)

    codes: list[int | None] = []
    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for count in (3, 1, 2):
        spawn.set_spares(count)
        assert len(pids()) <= 3
    for thread in threads:
        thread.join()
    assert codes == [0] * 12
    assert len(pids()) == 2


def test_a_fork_while_a_spare_is_being_started() -> None:
    spawn.set_spares(1)
    for _ in range(5):
        child = SPAWN.Process(target=int)
        child.start()  # its successor is on the way
        ours, its = billiard.Pipe()
        forked = billiard.get_context("fork").Process(target=hold, args=(its,))
        forked.start()
        its.close()
        with ours:
            assert ours.recv() == []
            ours.send("go")
        child.join(60)
        forked.join(60)
        assert (child.exitcode, forked.exitcode) == (0, 0)
    assert len(pids()) == 1


def test_a_spare_that_could_not_be_started_is_passed_over() -> None:
    spawn.set_spares(1)
    with _spares._lock:
        [spare] = _spares._spares
        ours, its = _core.request_sockets()
        starting = _core.Starting(b"/no/such/python", [b"python"], [its])
        _spares._spares.insert(0, _spares._Spare(starting, ours, spare.conditions))
    assert ask()[0] == spare.child.pid
    assert len(pids()) == 1
    with pytest.raises(FileNotFoundError, match="/no/such/python"):
        _core.Starting(b"/no/such/python", [b"python"], []).child()
    starting = _core.Starting(b"/bin/true", [b"true"], [])
    child = starting.child()
    assert child.wait(60) == 0
    child.close()
    with pytest.raises(ValueError, match="has been taken"):
        starting.child()
