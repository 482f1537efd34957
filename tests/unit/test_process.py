"""billiard.process: process objects, and what their processes are like inside."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import select
import signal
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import run, run_file

import billiard
from billiard import Pipe, process, util
from billiard.connection import Connection, wait


def nothing() -> None:
    pass


def send(conn: Connection, *values: object) -> None:
    conn.send(values)
    conn.close()


def until_told(conn: Connection) -> None:
    """Stay until a message comes."""
    conn.recv()


@contextlib.contextmanager
def staying(ctx: Any, **kwargs: Any) -> Iterator[Any]:
    """A process that runs until the block is left, or until it is killed there."""
    ours, its = Pipe()
    child = ctx.Process(target=until_told, args=(its,), **kwargs)
    child.start()
    its.close()
    try:
        yield child
    finally:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            ours.send("go")
        ours.close()
        child.join(60)


def ask(ctx: Any, target: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
    """What a process sends that is given a connection and `args`."""
    ours, its = Pipe()
    child = ctx.Process(target=target, args=(its, *args), **kwargs)
    child.start()
    its.close()
    with ours:
        answer = ours.recv()
        child.join(60)
    assert child.exitcode == 0
    return answer


def ended(ctx: Any, target: Callable[..., object], *args: Any, **kwargs: Any) -> int | None:
    """The exit code of a process."""
    child = ctx.Process(target=target, args=args, **kwargs)
    child.start()
    child.join(60)
    code: int | None = child.exitcode
    return code


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


# ---- the end ----


def leave(*args: Any) -> None:
    sys.exit(*args)


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

    def ring(*_: object) -> None:
        ran.append(child.is_alive())
        child.kill()

    with staying(ctx) as child, handler(signal.SIGALRM, ring):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert ran == [True]


def test_join_keeps_its_deadline_under_signals() -> None:
    with (
        staying(billiard.get_context("fork")) as child,
        handler(signal.SIGALRM, lambda *_: None),
    ):
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            before = time.monotonic()
            child.join(0.2)
            assert 0.19 < time.monotonic() - before < 20
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert child.is_alive()


class Stop(Exception):
    pass


def stop(*_: object) -> None:
    raise Stop


def test_a_signal_handler_may_end_the_wait(ctx: Any) -> None:
    with staying(ctx) as child, handler(signal.SIGALRM, stop):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Stop):
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


# ---- inside ----


def tell_about_itself(conn: Connection) -> None:
    me = billiard.current_process()
    grandchild = billiard.Process()
    conn.send(
        {
            "pid": (me.pid, me.ident, os.getpid()),
            "name": me.name,
            "alive": me.is_alive(),
            "repr": repr(me),
            "children": billiard.active_children(),
            "grandchild": grandchild._identity,
            "authkey": bytes(me.authkey),
            "daemon": (me.daemon, grandchild.daemon),
            "config": sorted(me._config),
            "method": billiard.get_start_method(),
            "native_id": threading.main_thread().native_id,
            "stdin": sys.stdin.read(),
        }
    )


def test_what_a_process_knows_of_itself(ctx: Any) -> None:
    with staying(ctx):  # a sibling that it does not know of
        ours, its = Pipe()
        child = ctx.Process(target=tell_about_itself, args=(its,), name="me", daemon=True)
        child.start()
        its.close()
        with ours:
            told = ours.recv()
        child.join()
    assert told == {
        "pid": (child.pid,) * 3,
        "name": "me",
        "alive": True,
        "repr": f"<{type(child).__name__}(me, started daemon)>",
        "children": [],
        "grandchild": (*child._identity, 1),
        "authkey": bytes(billiard.current_process().authkey),
        "daemon": (True, True),
        "config": sorted(child._config),
        "method": ctx.get_start_method(),
        "native_id": child.pid,
        "stdin": "",
    }


def have_a_child(conn: Connection, method: str) -> None:
    child = billiard.get_context(method).Process(target=leave, args=(5,))
    child.start()
    child.join()
    conn.send(child.exitcode)


@pytest.mark.parametrize("inner", ["fork", "spawn", "forkserver"])
def test_daemonic_processes_may_have_children(ctx: Any, inner: str) -> None:
    assert ask(ctx, have_a_child, inner, daemon=True) == 5


def tell_about_parent(conn: Connection) -> None:
    parent = billiard.parent_process()
    assert parent is not None
    conn.send((parent.pid, parent.ident, parent.name, parent.is_alive()))


def test_a_child_knows_its_parent(ctx: Any) -> None:
    assert billiard.parent_process() is None
    me = (os.getpid(), os.getpid(), billiard.current_process().name, True)
    assert ask(ctx, tell_about_parent) == me


def wait_for_parent(conn: Connection) -> None:
    parent = billiard.parent_process()
    assert parent is not None
    parent.join(0)
    conn.send(parent.is_alive())
    parent.join()
    conn.send(parent.is_alive())


def die_before_the_child(conn: Connection, method: str) -> None:
    billiard.get_context(method).Process(target=wait_for_parent, args=(conn,)).start()
    until_told(conn)


def test_a_child_sees_its_parent_end(ctx: Any) -> None:
    ours, its = Pipe()
    parent = ctx.Process(target=die_before_the_child, args=(its, ctx.get_start_method()))
    parent.start()
    its.close()
    with ours:
        assert ours.recv() is True
        parent.kill()
        parent.join()
        assert ours.recv() is False
        with pytest.raises(EOFError):
            ours.recv()


def test_finalizers_of_the_child_run_and_those_of_the_parent_do_not(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def note(text: str) -> None:
        with log.open("a") as file:
            file.write(text + "\n")

    def target() -> None:
        util.Finalize(None, note, args=("child's",), exitpriority=1)
        note("run")

    class Thing:
        pass

    thing = Thing()
    util.register_after_fork(thing, lambda _: note("after fork"))
    finalizer = util.Finalize(thing, note, args=("parent's",), exitpriority=1)
    assert ended(billiard.get_context("fork"), target) == 0
    finalizer.cancel()
    assert log.read_text().split("\n") == ["after fork", "run", "child's", ""]


def test_hooks_of_os_fork_run_once_each() -> None:
    ran: list[str] = []
    armed = [True]

    def hook(name: str) -> Callable[[], None]:
        return lambda: ran.append(name) if armed else None

    os.register_at_fork(
        before=hook("before"), after_in_parent=hook("parent"), after_in_child=hook("child")
    )
    try:
        assert ask(billiard.get_context("fork"), lambda conn: conn.send(list(ran))) == [
            "before",
            "child",
        ]
    finally:
        armed.clear()
    assert ran == ["before", "parent"]


def test_what_is_buffered_is_written_once(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        def target():
            sys.stdout.write("of the child, ")
        if __name__ == "__main__":
            for method in billiard.get_all_start_methods():
                sys.stdout.write("of the parent, ")
                process = billiard.get_context(method).Process(target=target)
                process.start()
                process.join()
    """
    assert run_file(tmp_path, source).stdout == "of the parent, of the child, " * 3


def test_programs_without_standard_streams(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        def target():
            sys.exit(6)
        if __name__ == "__main__":
            out, codes = sys.stdout, []
            sys.stdin = sys.stdout = sys.stderr = None
            for method in billiard.get_all_start_methods():
                process = billiard.get_context(method).Process(target=target)
                process.start()
                process.join()
                codes.append(process.exitcode)
            out.write(repr(codes))
    """
    assert run_file(tmp_path, source).stdout == "[6, 6, 6]"


def test_programs_whose_standard_descriptors_are_closed(tmp_path: Path) -> None:
    source = """
        import os, sys, billiard
        def target():
            os.fstat(int(sys.argv[1]))  # the preparation data have come through
            sys.exit(6)
        if __name__ == "__main__":
            out = os.dup(1)
            sys.argv[1:] = [str(os.open(os.devnull, os.O_RDONLY))]
            os.set_inheritable(int(sys.argv[1]), True)
            for fd in (0, 1, 2):
                os.close(fd)
            codes = []
            for method in ("fork", "spawn"):
                process = billiard.get_context(method).Process(target=sys.exit, args=(6,))
                process.start()
                process.join()
                codes.append(process.exitcode)
            os.write(out, repr(codes).encode())
    """
    assert run_file(tmp_path, source).stdout == "[6, 6]"


def tell_who_logs(conn: Connection) -> None:
    import logging

    record = logging.LogRecord("n", logging.INFO, "p", 1, "m", None, None)
    import multiprocessing

    mine = multiprocessing.current_process() is billiard.current_process()
    import multiprocessing.process

    mine = mine and multiprocessing.process.current_process() is billiard.current_process()
    conn.send((record.processName, mine, multiprocessing.cpu_count() == os.cpu_count()))


def test_code_that_asks_multiprocessing_gets_billiard_s_process(ctx: Any) -> None:
    assert ask(ctx, tell_who_logs, name="worker-3") == ("worker-3", True, True)


def test_programs_that_do_not_use_multiprocessing_do_not_import_it(tmp_path: Path) -> None:
    source = """
        import logging, sys, threading, billiard
        logging.basicConfig(format="%(processName)s %(message)s")
        def target(first):
            logging.warning("%s", "multiprocessing.process" in sys.modules)
            if not first:
                from multiprocessing import Process, current_process
                import multiprocessing.context
                assert current_process() is billiard.current_process()
                logging.warning(multiprocessing.__name__)
        if __name__ == "__main__":
            for method in billiard.get_all_start_methods():
                for first in (True, False):
                    process = billiard.get_context(method).Process(target=target, args=(first,))
                    process.name = "child"
                    process.start()
                    process.join()
                    assert process.exitcode == 0
            assert "multiprocessing" not in sys.modules
    """
    expected = ["child False", "child False", "child multiprocessing"] * 3
    assert run_file(tmp_path, source).stderr.splitlines() == expected


@pytest.mark.parametrize("method", billiard.get_all_start_methods())
def test_the_standard_library_s_executor_runs_on_our_processes(tmp_path: Path, method: str) -> None:
    source = f"""
        import os, billiard
        from concurrent.futures import ProcessPoolExecutor
        def initialize(value):
            global known
            known = value
        def answer(number):
            return number + known, os.getppid(), type(billiard.current_process()).__module__
        if __name__ == "__main__":
            ctx = billiard.get_context("{method}")
            with ProcessPoolExecutor(2, ctx, initialize, (10,)) as executor:
                answers = list(executor.map(answer, range(20)))
            assert [number for number, *_ in answers] == list(range(10, 30))
            print({{module for *_, module in answers}})
    """
    done = run_file(tmp_path, source)
    assert (done.stdout, done.stderr) == ("{'billiard.context'}\n", "")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_objects_of_multiprocessing_can_be_given_to_our_children(
    tmp_path: Path, method: str
) -> None:
    source = f"""
        import ctypes, billiard, multiprocessing
        def change(queue, lock, end, theirs, ours, plain):
            with lock:
                theirs.value += 1
                ours.value += 1
                plain.value += 1
            end.send(plain.value)
            queue.put(theirs.value)
        if __name__ == "__main__":
            ctx = multiprocessing.get_context("{method}")
            queue, lock, theirs = ctx.Queue(), ctx.Lock(), ctx.Value("i", 1)
            near, far = ctx.Pipe()
            ours, plain = billiard.Value("i", 5), ctypes.c_int(7)
            process = billiard.get_context("{method}").Process(
                target=change, args=(queue, lock, far, theirs, ours, plain)
            )
            process.start()
            print(queue.get(timeout=30), near.recv(), theirs.value, ours.value, plain.value)
            process.join()
    """
    done = run_file(tmp_path, source)
    assert (done.stdout, done.stderr) == ("2 8 2 6 7\n", "")


@pytest.mark.parametrize("method", billiard.get_all_start_methods())
def test_programs_may_put_billiard_in_multiprocessing_s_place(tmp_path: Path, method: str) -> None:
    source = f"""
        import sys, billiard, billiard.pool, billiard.sharedctypes, billiard.util
        for name, module in list(sys.modules.items()):
            package, _, rest = name.partition(".")
            if package == "billiard":
                sys.modules["multiprocessing" + name[len(package):]] = module
        import multiprocessing
        from multiprocessing import util
        def target(end, value):
            util.Finalize(None, end.send, args=("finalized",), exitpriority=1)
            end.send(value.value)
        if __name__ == "__main__":
            ctx = multiprocessing.get_context("{method}")
            here, there = ctx.Pipe()
            process = ctx.Process(target=target, args=(there, ctx.Value("i", 3)))
            process.start()
            process.join()
            print(process.exitcode, here.recv(), here.recv())
            with ctx.Pool(1) as pool:
                print(pool.map(abs, [-1]))
            pool.join()
            print(issubclass(multiprocessing.TimeoutError, billiard.exceptions.ProcessError))
    """
    done = run_file(tmp_path, source)
    assert (done.stdout, done.stderr) == ("0 3 finalized\n[1]\nTrue\n", "")


# ---- keys ----


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


# ---- the system has no more ----


@contextlib.contextmanager
def limit(kind: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def test_no_descriptors_left_is_an_error_of_start(ctx: Any) -> None:
    ended(ctx, nothing)  # imports
    gc.collect()
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken = []
    with limit(resource.RLIMIT_NOFILE, highest + 2):
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        child = ctx.Process(target=nothing)
        try:
            with pytest.raises(OSError) as caught:
                child.start()
        finally:
            for fd in taken:
                os.close(fd)
    assert caught.value.errno == errno.EMFILE
    assert child not in billiard.active_children()
    assert (child.pid, child.exitcode) == (None, None)
    child.start()  # now there is room
    child.join()
    assert child.exitcode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="has to become another user")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_no_processes_left_is_an_error_of_start(method: str, tmp_path: Path) -> None:
    source = """
        import errno, os, resource, sys
        import billiard, billiard.popen_fork, billiard.popen_spawn_posix, billiard.reduction
        process = billiard.get_context("fork").Process(target=int)  # imports what is needed
        process.start()
        process.join()
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        os.setgroups([])
        os.setgid(64321)
        os.setuid(64321)
        before = os.listdir("/proc/self/fd")
        try:
            billiard.get_context(sys.argv[1]).Process(target=print).start()
        except OSError as exc:
            print(errno.errorcode[exc.errno])
        assert os.listdir("/proc/self/fd") == before
        assert billiard.active_children() == []
    """
    assert run_file(tmp_path, source, method).stdout == "EAGAIN\n"


# ---- kernels and interpreters ----


def test_a_kernel_without_pidfds(tmp_path: Path) -> None:
    """A seccomp filter answers ENOSYS to pidfd_open, as old kernels do."""
    if os.uname().machine != "x86_64":
        pytest.skip("the filter has the numbers of x86-64")
    source = """
        import ctypes, os, signal, struct, sys, threading, time
        load, equal, back = 0x20, 0x15, 0x06
        program = b"".join(struct.pack("HBBI", *line) for line in [
            (load, 0, 0, 0), (equal, 0, 1, 434), (back, 0, 0, 0x00050000 | 38),
            (back, 0, 0, 0x7FFF0000)])
        lines = ctypes.create_string_buffer(program)
        class Program(ctypes.Structure):
            _fields_ = [("len", ctypes.c_ushort), ("lines", ctypes.c_void_p)]
        libc = ctypes.CDLL(None, use_errno=True)
        def refuse():
            filter = Program(4, ctypes.addressof(lines))
            assert libc.prctl(38, 1, 0, 0, 0) == 0
            assert libc.prctl(22, 2, ctypes.byref(filter), 0, 0) == 0
        if __name__ == "__main__":
            refuse()
            import billiard
            from billiard.connection import wait
            for method in billiard.get_all_start_methods():
                ctx = billiard.get_context(method)
                one = ctx.Process(target=sys.exit, args=(3,))
                one.start()
                assert "pidfd" not in os.readlink(f"/proc/self/fd/{one.sentinel}")
                assert wait([one.sentinel], 30) == [one.sentinel]
                one.join()
                two = ctx.Process(target=time.sleep, args=(60,))
                two.start()
                two.join(0.05)
                assert two.exitcode is None and wait([two.sentinel], 0) == []
                two.kill()
                two.join(30)
                three = ctx.Process(target=time.sleep, args=(0.05,))
                three.start()
                three.join()
                print(method, one.exitcode, two.exitcode, three.exitcode, flush=True)
    """
    expected = [f"{method} 3 -9 0" for method in ("fork", "spawn", "forkserver")]
    assert run_file(tmp_path, source).stdout.splitlines() == expected


def test_a_parent_with_threads_starts_processes_without_hangs_and_warnings(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, threading, time, billiard
            going = True
            def work():
                while going:
                    print(sum(range(1000)), end="", file=null)
                    time.sleep(0.001)
            if __name__ == "__main__":
                null = open("/dev/null", "w")
                threads = [threading.Thread(target=work) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for method, count in (("fork", 100), ("forkserver", 100), ("spawn", 10)):
                    ctx = billiard.get_context(method)
                    for number in range(count):
                        process = ctx.Process(target=time.sleep, args=(number % 2 / 500,))
                        process.start()
                        if number % 3 == 0:
                            process.kill()
                        process.join(60)
                        assert process.exitcode in ((-9, 0) if number % 3 == 0 else (0,))
                going = False
                for thread in threads:
                    thread.join()
                null.close()
            """
        )
    )
    done = run("-W", "error", script)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_is_audited(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        events = []
        sys.addaudithook(lambda event, args: events.append(event) if event == "os.fork" else None)
        process = billiard.get_context("fork").Process(target=print)
        process.start()
        process.join()
        assert events == ["os.fork"]
    """
    run_file(tmp_path, source)


def test_process_objects_that_are_alive_can_be_found() -> None:
    one, two = billiard.Process(target=nothing), billiard.Process(target=nothing)
    found = process._dangling
    assert {one, two} <= set(found)
    assert two in found.copy()
    gone = id(two)
    del two
    gc.collect()
    assert gone not in {id(thing) for thing in process._dangling}


def read_input(conn: Connection) -> None:
    conn.send(sys.stdin.read())


def close_input_and_start(conn: Connection) -> None:
    sys.stdin.close()
    child = billiard.get_context("fork").Process(target=read_input, args=(conn,))
    child.start()
    child.join()


@pytest.mark.parametrize("target", [read_input, close_input_and_start])
def test_the_input_of_children_is_empty(ctx: Any, target: Callable[[Connection], None]) -> None:
    ours, its = billiard.Pipe()
    child = ctx.Process(target=target, args=(its,))
    child.start()
    its.close()
    with ours:
        assert ours.poll(60)
        assert ours.recv() == ""
    child.join()
    assert child.exitcode == 0


def test_the_program_s_input_is_closed_in_children(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        def target():
            print(sys.__stdin__.closed, sys.__stdin__.buffer.closed, sys.stdin.read() == "")
            try:
                sys.__stdin__.readline()
            except ValueError as exc:
                print(exc, flush=True)
        if __name__ == "__main__":
            for method in billiard.get_all_start_methods():
                child = billiard.get_context(method).Process(target=target)
                child.start()
                child.join()
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(source))
    done = run(script, stdin="a line that children do not see\n")
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["True True True", "I/O operation on closed file."] * 3
