"""billiard.process: process objects, from their creation to the exit code of their process."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alarms import Interrupt, alarm, alarms, interrupt
from process_tasks import ask, ended, leave, nothing, staying, until_told
from scripts import run_file

import billiard
from billiard import Pipe, process
from billiard.connection import Connection, wait


def send(conn: Connection, *values: object) -> None:
    conn.send(values)
    conn.close()


# ---- the object ----


def test_a_process_from_its_creation_to_its_end(ctx: Any) -> None:
    ours, its = Pipe()
    child = ctx.Process(target=until_told, args=(its,), name="worker")
    assert (child.name, child.daemon, child.ident, child.pid) == ("worker", False, None, None)
    assert (child.exitcode, child.is_alive()) == (None, False)
    assert repr(child) == f"<{type(child).__name__}(worker, initial)>"
    with pytest.raises(ValueError, match="process not started"):
        _ = child.sentinel
    child.start()
    its.close()
    assert child.pid == child.ident != os.getpid()
    assert (child.exitcode, child.is_alive()) == (None, True)
    assert repr(child) == f"<{type(child).__name__}(worker, started)>"
    assert child in billiard.active_children()
    child.join(0)
    child.join(0.01)
    assert child.exitcode is None
    ours.send("go")
    ours.close()
    child.join(60)
    assert (child.exitcode, child.is_alive()) == (0, False)
    assert repr(child) == f"<{type(child).__name__}(worker, stopped)>"
    assert child not in billiard.active_children()
    child.join()
    child.close()
    assert repr(child) == f"<{type(child).__name__}(worker, closed)>"
    child.close()


def test_default_names_count(ctx: Any) -> None:
    first, second = ctx.Process(), ctx.Process(daemon=True)
    number = first._identity[-1]
    assert first.name == f"{type(first).__name__}-{number}"
    assert second._identity == (number + 1,)
    assert repr(second).endswith("initial daemon)>")


def test_the_target_gets_its_arguments(ctx: Any) -> None:
    ours, its = Pipe()
    child = ctx.Process(target=send, args=(its, 1), kwargs={})
    child.start()
    assert ours.recv() == (1,)
    child.join()
    ours.close()
    its.close()


def test_a_target_is_let_go_after_the_start() -> None:
    class Target:
        def __call__(self) -> None:
            pass

    target = Target()
    gone = weakref.ref(target)
    child = billiard.get_context("fork").Process(target=target, args=(target,))
    child.start()
    del target
    assert gone() is None
    child.join()


def test_states_that_forbid_things_say_so(ctx: Any) -> None:
    child = ctx.Process(target=nothing)
    for verb in ("join", "terminate", "kill"):
        with pytest.raises(AssertionError, match=f"can only {verb} a started process"):
            getattr(child, verb)()
    child.start()
    with pytest.raises(AssertionError, match="cannot start a process twice"):
        child.start()
    with pytest.raises(AssertionError, match="process has already started"):
        child.daemon = True
    child.join()
    with pytest.raises(AssertionError, match="name must be a string"):
        child.name = 3
    with pytest.raises(AssertionError, match="group argument must be None"):
        ctx.Process(group=1)
    child.close()
    uses: list[Callable[[], object]] = [
        child.start,
        child.join,
        child.is_alive,
        child.terminate,
        child.kill,
        lambda: child.exitcode,
        lambda: child.pid,
        lambda: child.sentinel,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="process object is closed"):
            use()


def test_a_running_process_cannot_be_closed(ctx: Any) -> None:
    with staying(ctx) as child:
        with pytest.raises(ValueError, match="still running"):
            child.close()
        assert child.is_alive()
    child.close()


def use_inherited(conn: Connection, other: Any, fresh: Any) -> None:
    said = []
    for use in (other.join, other.is_alive, fresh.start):
        try:
            use()
        except AssertionError as exc:
            said.append(str(exc))
    conn.send((said, repr(other)))


def test_a_process_object_belongs_to_the_process_that_made_it() -> None:
    ctx = billiard.get_context("fork")
    fresh = ctx.Process(target=nothing)
    with staying(ctx) as other:
        said, text = ask(ctx, use_inherited, other, fresh)
    assert said == [
        "can only join a child process",
        "can only test a child process",
        "can only start a process object created by current process",
    ]
    assert "unknown" in text


def test_base_process_says_that_it_cannot_start() -> None:
    with pytest.raises(NotImplementedError, match="Process of a context"):
        process.BaseProcess(target=nothing).start()


def test_process_objects_that_are_alive_can_be_found() -> None:
    one, two = billiard.Process(target=nothing), billiard.Process(target=nothing)
    found = process._dangling
    assert {one, two} <= set(found)
    assert two in found.copy()
    gone = id(two)
    del two
    gc.collect()
    assert gone not in {id(thing) for thing in process._dangling}


def test_an_authkey_travels_to_children_only() -> None:
    import pickle

    key = billiard.current_process().authkey
    with pytest.raises(TypeError, match="disallowed for security reasons"):
        pickle.dumps(key)
    me = billiard.current_process()
    before = me.authkey
    try:
        me.authkey = b"changed"
        assert isinstance(me.authkey, process.AuthenticationString)
        assert me._authkey == b"changed"
        assert billiard.Process().authkey == b"changed"
    finally:
        me.authkey = before


# ---- the end ----


@pytest.mark.parametrize(
    ("args", "code"),
    [((), 0), ((None,), 0), ((0,), 0), ((3,), 3), ((True,), 1), (("why",), 1), (([1],), 1)],
)
def test_system_exit(args: tuple[Any, ...], code: int, capfd: Any) -> None:
    assert ended(billiard.get_context("fork"), leave, *args) == code
    text = f"{args[0]}\n" if args in (("why",), ([1],)) else ""
    assert capfd.readouterr().err == text


def test_exit_codes_of_all_start_methods(ctx: Any) -> None:
    assert ended(ctx, leave, 7) == 7


@pytest.mark.parametrize("code", [-1, 256 + 9, 1 << 70])
def test_exit_codes_that_no_process_can_have_are_cut(code: int) -> None:
    assert ended(billiard.get_context("fork"), leave, code) == code & 0xFF


def test_what_ends_a_process_is_printed(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        def fail(kind, text):
            raise kind(text)
        if __name__ == "__main__":
            for kind in (SystemExit, KeyError, KeyboardInterrupt):
                process = billiard.get_context(sys.argv[1]).Process(
                    target=fail, args=(kind, "what happened"), name="failing")
                process.start()
                process.join()
                assert process.exitcode == 1
    """
    for method in billiard.get_all_start_methods():
        lines = run_file(tmp_path, source, method).stderr.splitlines()
        first = lines.index("Process failing:")
        assert lines[:first] == ["what happened"]
        assert lines[first + 1] == "Traceback (most recent call last):"
        assert "KeyError: 'what happened'" in lines
        assert lines[-1] == "KeyboardInterrupt: what happened"


@pytest.mark.parametrize(("verb", "signum"), [("terminate", signal.SIGTERM), ("kill", 9)])
def test_terminate_and_kill(ctx: Any, verb: str, signum: int) -> None:
    with staying(ctx) as child:
        getattr(child, verb)()
        child.join(60)
        assert child.exitcode == -signum
        name = signal.Signals(signum).name
        assert repr(child) == f"<{type(child).__name__}({child.name}, stopped[{name}])>"
        getattr(child, verb)()  # nobody there: nothing happens


def test_terminate_controlled_is_remembered(ctx: Any) -> None:
    with staying(ctx) as child:
        assert child._controlled_termination is False
        child.terminate_controlled()
        child.join()
        assert child._controlled_termination is True


def test_real_time_signals_have_numbers(ctx: Any) -> None:
    with staying(ctx) as child:
        os.kill(child.pid, signal.SIGRTMIN + 2)
        child.join(60)
        assert child.exitcode == -(signal.SIGRTMIN + 2)


def start_a_thread(conn: Connection) -> None:
    def late() -> None:
        # Ends after the main thread has: it waits for that.
        threading.main_thread().join()
        conn.send("from the thread")

    threading.Thread(target=late).start()


def test_children_wait_for_their_threads(ctx: Any) -> None:
    if sys.version_info >= (3, 13):
        assert ask(ctx, start_a_sleeping_thread) == "from the thread"
    else:
        assert ask(ctx, start_a_thread) == "from the thread"


def start_a_sleeping_thread(conn: Connection) -> None:
    timer = threading.Timer(0.2, conn.send, args=("from the thread",))
    timer.daemon = False
    timer.start()


# ---- waiting ----


def test_the_sentinel_is_readable_when_the_process_has_ended(ctx: Any) -> None:
    with staying(ctx) as child, select.epoll() as epoll:
        sentinel = child.sentinel
        poll = select.poll()
        poll.register(sentinel, select.POLLIN)
        epoll.register(sentinel, select.EPOLLIN)
        assert select.select([sentinel], [], [], 0)[0] == []
        assert poll.poll(0) == epoll.poll(0) == wait([sentinel], 0) == []
        child.kill()
        assert wait([sentinel], 60) == [sentinel]
        assert select.select([sentinel], [], [], 60)[0] == [sentinel]
        assert poll.poll(60_000)[0][0] == epoll.poll(60)[0][0] == sentinel
        # What is readable has an exit code.
        assert child.exitcode == -signal.SIGKILL


def test_a_sentinel_that_somebody_has_outlives_join(ctx: Any) -> None:
    with staying(ctx) as child:
        sentinel = child.sentinel
        child.kill()
        child.join()
        assert child.sentinel == sentinel
        assert wait([sentinel], 0) == [sentinel]


def test_a_joined_process_holds_no_descriptor_until_its_sentinel_is_asked_for(ctx: Any) -> None:
    with staying(ctx) as child:
        child.kill()
        child.join()
        assert child._popen.sentinel is None
        assert wait([child.sentinel], 0) == [child.sentinel]
        assert child.exitcode == -signal.SIGKILL


def test_many_threads_get_one_exit_code(ctx: Any) -> None:
    codes = []
    with staying(ctx) as child:

        def join() -> None:
            child.join(60)
            codes.append(child.exitcode)

        threads = [threading.Thread(target=join) for _ in range(8)]
        for thread in threads:
            thread.start()
        child.kill()
        for thread in threads:
            thread.join()
    assert codes == [-signal.SIGKILL] * 8


@contextlib.contextmanager
def handler(signum: int, function: Any) -> Iterator[None]:
    old = signal.signal(signum, function)
    try:
        yield
    finally:
        signal.signal(signum, old)


def test_join_runs_signal_handlers_and_goes_on(ctx: Any) -> None:
    ran = []

    def ring() -> None:
        ran.append(child.is_alive())
        child.kill()

    with staying(ctx) as child:
        with alarm(ring):
            child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert ran == [True]


def test_join_keeps_its_deadline_under_signals() -> None:
    with staying(billiard.get_context("fork")) as child:
        with alarms(0.01):
            before = time.monotonic()
            child.join(0.2)
            assert 0.19 < time.monotonic() - before < 20
        assert child.is_alive()


def test_a_signal_handler_may_end_the_wait(ctx: Any) -> None:
    with staying(ctx) as child:
        with pytest.raises(Interrupt), alarm(interrupt):
            child.join()
        assert child.is_alive()


def test_a_child_that_other_code_has_reaped_has_no_exit_code() -> None:
    child = billiard.get_context("fork").Process(target=nothing)
    child.start()
    os.waitpid(child.pid, 0)
    child.join()
    assert (child.exitcode, child.is_alive()) == (None, True)
    child.terminate()  # reaches nobody
    process._children.discard(child)


def test_join_returns_where_children_are_not_to_be_reaped() -> None:
    with handler(signal.SIGCHLD, signal.SIG_IGN):
        child = billiard.get_context("fork").Process(target=nothing)
        child.start()
        child.join()
    assert child.exitcode is None
    process._children.discard(child)


def test_popen_polls_and_waits(ctx: Any) -> None:
    with staying(ctx) as child:
        popen = child._popen
        assert (popen.method, popen.pid) == (ctx.get_start_method(), child.pid)
        assert (popen.poll(), popen.wait(0), popen.wait(timeout=0.01)) == (None, None, None)
        popen.kill()
        assert popen.poll(0) == popen.poll() == popen.wait() == popen.returncode == -9
        popen.close()
        popen.close()
        assert popen.poll() == -9
