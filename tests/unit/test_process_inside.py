"""What a process is like inside: what it knows, what it runs, its streams, and multiprocessing."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_tasks import ask, ended, leave, staying, until_told
from scripts import run, run_file

import billiard
from billiard import Pipe, util
from billiard.connection import Connection

# ---- what it knows ----


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


# ---- what it runs ----


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


# ---- standard streams ----


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


# ---- multiprocessing beside billiard ----


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
