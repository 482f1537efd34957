"""Starting processes under bad conditions, and many of them; each start method from one body."""

from __future__ import annotations

import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from scripts import run, run_file

import billiard
from billiard import spawn
from billiard.connection import wait


def nothing(*args: object) -> None:
    pass


# ---- arguments ----


class Refusing:
    """What cannot be pickled, after something that has put descriptors into the message."""

    def __reduce__(self) -> Any:
        raise ZeroDivisionError("not this one")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_arguments_that_cannot_be_pickled_start_nothing(method: str) -> None:
    """The fixture sees that no child lingers, and that the pipe's copies are closed."""
    ctx = billiard.get_context(method)
    ours, its = billiard.Pipe()
    for argument, error in ((Refusing(), ZeroDivisionError), (threading.Lock(), TypeError)):
        child = ctx.Process(target=nothing, args=(its, argument))
        with pytest.raises(error):
            child.start()
        assert (child.pid, child.exitcode) == (None, None)
        assert child not in billiard.active_children()
    its.close()
    with ours, pytest.raises(EOFError):
        ours.recv()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_arguments_that_cannot_be_unpickled_end_the_child(method: str, tmp_path: Path) -> None:
    source = """
        import sys, billiard
        def refuse():
            raise ZeroDivisionError("not here")
        class Unwelcome:
            def __reduce__(self):
                return refuse, ()
        if __name__ == "__main__":
            child = billiard.get_context(sys.argv[1]).Process(target=print, args=(Unwelcome(),))
            child.start()
            child.join()
            print(child.exitcode)
    """
    done = run_file(tmp_path, source, method)
    assert done.stdout == "1\n"
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: not here"


# ---- the interpreter ----


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_executable_that_does_not_run(method: str, tmp_path: Path) -> None:
    """The error is the caller's, at once; nothing is left, and the next start is none the worse."""
    (tmp_path / "script").write_text("no program at all")
    (tmp_path / "script").chmod(0o755)
    (tmp_path / "plain").write_text("")
    source = """
        import errno, os, sys, billiard
        if __name__ == "__main__":
            ctx, usual = billiard.get_context(sys.argv[1]), sys.executable
            os.environ["PATH"] = ""
            for executable in ("/no/such", "plain", "/", "script"):
                billiard.set_executable(executable)
                before = os.listdir("/proc/self/fd")
                try:
                    ctx.Process(target=print).start()
                except OSError as exc:
                    print(errno.errorcode[exc.errno], exc.filename, billiard.active_children())
                assert os.listdir("/proc/self/fd") == before
            billiard.set_executable(usual)
            child = ctx.Process(target=print, args=("started",), kwargs={"flush": True})
            child.start()
            child.join()
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("no zombie")
    """
    done = run_file_in(tmp_path, source, method)
    expected = ["ENOENT /no/such []", "EACCES plain []", "EACCES / []", "ENOEXEC script []"]
    lines = done.splitlines()
    assert lines[:4] == expected
    assert lines[4] == "started"
    # The fork server is a child, and lives.
    assert lines[5:] == (["no zombie"] if method == "spawn" else [])


def run_file_in(tmp_path: Path, source: str, *args: str) -> str:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(source))
    done = run(script, *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_executable_that_is_not_python_ends_its_child_and_the_fork_server() -> None:
    before = spawn.get_executable()
    spawn.set_executable("/bin/false")
    try:
        child = billiard.get_context("spawn").Process(target=nothing)
        child.start()
        child.join(60)
        assert child.exitcode == 1
    finally:
        spawn.set_executable(before)


# ---- many ----


def test_sixteen_forks_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """No child gets further than the fork before all have been started, alone and in a pool."""
    source = """
        import os, billiard
        reader, writer = os.pipe()
        parent = os.getpid()
        os.register_at_fork(after_in_child=lambda: os.read(reader, 1))
        ctx = billiard.get_context("fork")
        children = [ctx.Process(target=os.write, args=(1, b"ran\\n")) for _ in range(16)]
        for child in children:
            child.start()
        os.write(writer, b"x" * 16)
        for child in children:
            child.join()
        print({child.exitcode for child in children}, flush=True)
        pool = ctx.Pool(16)
        os.write(writer, b"x" * 1000)
        print(sum(pool.map(abs, range(100), 1)))
        pool.close()
        pool.join()
    """
    assert run_file(tmp_path, source).stdout.splitlines() == ["ran"] * 16 + ["{0}", "4950"]


def test_processes_start_together(ctx: Any) -> None:
    from billiard.process import start_all

    children = [ctx.Process(target=nothing) for _ in range(16)]
    start_all(children)
    assert len({child.pid for child in children}) == 16
    left = [child.sentinel for child in children]
    while left:
        ready = wait(left, 60)
        assert ready
        left = [sentinel for sentinel in left if sentinel not in ready]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 16


@pytest.mark.timeout(240)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_two_hundred_recycles_in_a_parent_with_eight_busy_threads(
    method: str, tmp_path: Path
) -> None:
    """Warnings are errors. At every fork some thread is likely to hold the lock of a stream, of
    logging, or of the allocator."""
    script = tmp_path / "program.py"
    source = """
        import logging, os, sys, threading, time
        import billiard

        def work():
            log = logging.getLogger("work")
            while going:
                log.warning("%s", [0] * 1000)
                print("text")
                time.sleep(0.001)

        def pid(_):
            logging.getLogger("work").warning("in a worker")
            print("text")
            return os.getpid()

        logging.basicConfig(stream=sys.stdout)
        going = True
        if __name__ == "__main__":
            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            with billiard.get_context(sys.argv[1]).Pool(4, maxtasksperchild=1) as pool:
                count = len(set(pool.map(pid, range(200), 1)))
            pool.join()
            going = False
            for thread in threads:
                thread.join()
            print("pids:", count)
    """
    script.write_text(textwrap.dedent(source))
    done = run("-W", "error", script, method, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("pids: 200\n")
