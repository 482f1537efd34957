"""Start method forkserver: the template, its clients, its children."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import process_tasks
import pytest
from connection_helpers import running
from scripts import environment, run_file

import billiard
from billiard import _core, forkserver, popen_forkserver, process, reduction, spawn
from billiard.connection import Connection, wait

CTX = billiard.get_context("forkserver")
SERVER = forkserver._forkserver


def nothing() -> None:
    pass


def until_told(conn: Connection) -> None:
    conn.recv()


@contextlib.contextmanager
def staying(ctx: Any = CTX) -> Iterator[Any]:
    ours, its = billiard.Pipe()
    child = ctx.Process(target=until_told, args=(its,))
    child.start()
    its.close()
    try:
        yield child
    finally:
        with contextlib.suppress(ConnectionError):
            ours.send("go")
        ours.close()
        child.join(60)


def ask(target: Callable[..., object], *args: object, ctx: Any = CTX) -> Any:
    return process_tasks.ask(ctx, target, *args)


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[forkserver.ForkServer]:
    """A server of the test's own, in the place of the program's."""
    server = forkserver.ForkServer()
    monkeypatch.setattr(forkserver, "_forkserver", server)
    yield server
    server._stop()


def tell_parent(conn: Connection) -> None:
    with open("/proc/self/stat") as file:
        ppid = int(file.read().rpartition(")")[2].split()[1])
    conn.send(ppid)


# ---- the template ----


def test_children_are_forks_of_one_template() -> None:
    first, second = ask(tell_parent), ask(tell_parent)
    assert first == second == SERVER._forkserver_pid != os.getpid()


def test_the_template_has_one_thread_and_no_descriptors_of_ours() -> None:
    forkserver.ensure_running()
    threads = os.listdir(f"/proc/{SERVER._forkserver_pid}/task")
    assert threads == [str(SERVER._forkserver_pid)]
    folder = f"/proc/{SERVER._forkserver_pid}/fd"
    kinds = {int(fd): os.readlink(f"{folder}/{fd}").split(":")[0] for fd in os.listdir(folder)}
    others = [kind for fd, kind in sorted(kinds.items()) if fd > 2 and kind != os.devnull]
    assert sorted(others) == ["anon_inode", "socket"]  # SIGCHLD, requests


def test_a_template_that_died_is_replaced(own_server: forkserver.ForkServer) -> None:
    first = ask(tell_parent)
    assert own_server._forkserver is not None
    os.kill(first, signal.SIGKILL)
    own_server._forkserver.wait(60)
    second = ask(tell_parent)
    assert second == own_server._forkserver_pid != first


@pytest.mark.parametrize("attempt", range(3))
def test_a_template_that_dies_at_any_moment(
    own_server: forkserver.ForkServer, attempt: int
) -> None:
    own_server.ensure_running()
    assert own_server._forkserver_pid is not None
    os.kill(own_server._forkserver_pid, signal.SIGKILL)  # perhaps it is not gone yet
    child = CTX.Process(target=nothing)
    child.start()
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize("attempt", range(3))
def test_a_template_that_dies_while_threads_ask_it(
    own_server: forkserver.ForkServer, attempt: int
) -> None:
    count = 8
    ready, outcomes = threading.Barrier(count + 1), []
    own_server.ensure_running()
    assert own_server._forkserver_pid is not None

    def start() -> None:
        child = CTX.Process(target=nothing)
        ready.wait(60)
        try:
            child.start()
            child.join(60)
            outcomes.append(child.exitcode)
        except Exception as exc:
            outcomes.append(exc)

    with contextlib.ExitStack() as threads:
        for _ in range(count):
            threads.enter_context(running(start))
        ready.wait(60)
        os.kill(own_server._forkserver_pid, signal.SIGKILL)
    # 255: it was forked by the one that died, and nobody knows.
    assert [outcome for outcome in outcomes if outcome not in (0, 255)] == []
    assert len(outcomes) == count


def test_a_child_outlives_its_template(own_server: forkserver.ForkServer) -> None:
    with staying() as child:
        assert own_server._forkserver_pid is not None
        os.kill(own_server._forkserver_pid, signal.SIGKILL)
        child.join(0.05)
        assert child.is_alive()
        assert child.exitcode is None
    # Nobody is left who could know its exit code.
    assert child.exitcode == 255


def test_a_closed_socket_is_noticed(own_server: forkserver.ForkServer) -> None:
    first = ask(tell_parent)
    number = own_server._forkserver_alive_fd
    assert number is not None
    # Closed, and its number given to another file.
    with open(os.devnull) as other:
        os.dup2(other.fileno(), number)
    second = ask(tell_parent)
    assert first != second
    assert os.readlink(f"/proc/self/fd/{number}") == os.devnull
    os.close(number)


def interrupt_yourself(conn: Connection) -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        conn.send("interrupted")


def test_interrupts_are_for_the_children(own_server: forkserver.ForkServer) -> None:
    with staying():
        assert own_server._forkserver_pid is not None
        os.kill(own_server._forkserver_pid, signal.SIGINT)
        assert ask(tell_parent) == own_server._forkserver_pid
        assert ask(interrupt_yourself) == "interrupted"


def test_the_template_ends_with_its_last_client(tmp_path: Path) -> None:
    source = """
        import os, sys, time, billiard, billiard.forkserver
        def target(conn):
            conn.send(os.getpid())
            time.sleep(600)
        if __name__ == "__main__":
            reader, writer = billiard.Pipe(False)
            child = billiard.get_context("forkserver").Process(target=target, args=(writer,))
            child.start()
            with open(sys.argv[1], "w") as file:
                print(billiard.forkserver._forkserver._forkserver_pid, reader.recv(), file=file)
            os._exit(0)
    """
    script, told = tmp_path / "program.py", tmp_path / "told"
    script.write_text(textwrap.dedent(source))
    # Without a pipe, which the survivors would hold open.
    subprocess.run([sys.executable, script, told], env=environment(), timeout=60, check=True)
    template, child = map(int, told.read_text().split())
    watch = [_core.watch_process(pid, _core.process_start_time(pid)) for pid in (template, child)]
    assert wait(watch, 0) == []  # the child is a client
    os.kill(child, signal.SIGKILL)
    for fd in watch:
        assert wait([fd], 60) == [fd]
        os.close(fd)


# ---- children ----


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_the_signal_that_killed_a_child_is_told(signum: int) -> None:
    with staying() as child:
        os.kill(child.pid, signum)
        child.join(60)
        assert child.exitcode == -signum
    assert ask(tell_parent) == SERVER._forkserver_pid


def test_many_children_at_once() -> None:
    codes = []

    def start(code: int) -> None:
        child = CTX.Process(target=sys.exit, args=(code,))
        child.start()
        child.join(60)
        codes.append(child.exitcode)

    threads = [threading.Thread(target=start, args=(code,)) for code in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(code for code in codes if code is not None) == list(range(20))


def ask_further(conn: Connection, method: str) -> None:
    ctx = billiard.get_context(method)
    if ctx is CTX:
        conn.send(ask(tell_parent))
    else:
        conn.send(ask(ask_further, "forkserver", ctx=ctx))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_children_of_children_use_the_same_template(method: str) -> None:
    assert ask(ask_further, method) == ask(tell_parent) == SERVER._forkserver_pid


def test_spawned_children_start_their_own_template() -> None:
    assert ask(ask_further, "spawn") != SERVER._forkserver_pid


def inherited(conn: Connection) -> None:
    fds = forkserver.get_inherited_fds()
    assert fds is not None
    conn.send((fds, conn.fileno(), [os.get_inheritable(fd) for fd in fds]))


def test_inherited_descriptors() -> None:
    assert forkserver.get_inherited_fds() is None
    fds, number, flags = ask(inherited)
    trackers = [spawn._tracker_fd(name) for name in ("resource_tracker", "semaphore_tracker")]
    assert fds[0] == number
    assert flags == [False] * (1 + sum(fd is not None for fd in trackers))


# ---- several at once ----


def test_processes_that_start_together() -> None:
    children = [CTX.Process(target=sys.exit, args=(code,)) for code in range(40)]
    process.start_all(children)
    assert len({child.pid for child in children}) == 40
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == list(range(40))


def test_processes_of_different_methods_start_together() -> None:
    methods = ["fork", "forkserver", "spawn", "forkserver"]
    children = [billiard.get_context(method).Process(target=nothing) for method in methods]
    process.start_all(children)
    for child, method in zip(children, methods, strict=True):
        child.join(60)
        assert (child._popen.method, child.exitcode) == (method, 0)
    with pytest.raises(AssertionError, match="cannot start a process twice"):
        process.start_all(children)


def test_one_that_cannot_start_does_not_keep_the_others(executable: Any) -> None:
    executable("/no/such/python")
    bad = billiard.get_context("spawn").Process(target=nothing)
    good = [CTX.Process(target=nothing) for _ in range(3)]
    with pytest.raises(FileNotFoundError):
        process.start_all([bad, *good])
    assert bad.pid is None
    for child in good:
        child.join(60)
        assert child.exitcode == 0


@pytest.fixture
def executable() -> Iterator[Any]:
    before = spawn.get_executable()
    yield billiard.set_executable
    billiard.set_executable(before)


def test_a_template_that_dies_under_many_requests(own_server: forkserver.ForkServer) -> None:
    """Every process runs once, whoever forks it."""
    reader, writer = billiard.Pipe(False)
    first = ask(tell_parent)
    children = [CTX.Process(target=tell_number, args=(writer, n)) for n in range(30)]
    os.kill(first, signal.SIGSTOP)  # the requests pile up
    killer = threading.Timer(0.2, os.kill, args=(first, signal.SIGKILL))
    killer.start()
    process.start_all(children)
    killer.join()
    for child in children:
        child.join(60)
    assert sorted(reader.recv() for _ in children) == list(range(30))
    assert not reader.poll()
    reader.close()
    writer.close()


def tell_number(conn: Connection, number: int) -> None:
    conn.send(number)


# ---- requests ----


def test_as_many_descriptors_as_a_message_takes_and_no_more() -> None:
    popen = _Spawning()
    message = spawn._message(popen, _Empty())
    readers = [os.open(os.devnull, os.O_RDONLY)] * (_core.MAX_REQUEST_FDS - 2 - len(popen._fds))
    [child] = SERVER._start_children([(message, [*popen._fds, *readers])])
    assert isinstance(child, _core.Child)
    assert child.wait(60) == 0
    child.close()
    with pytest.raises(ValueError, match=r"too many fds: .* 250 at most .* not 251"):
        SERVER._start_children([(message, [*popen._fds, *readers, 0])])
    with pytest.raises(ValueError, match="too many fds"):
        forkserver.connect_to_new_process([*popen._fds, *readers, 0])
    os.close(readers[0])


class _Empty(CTX.Process):  # type: ignore[name-defined, misc]
    def __init__(self) -> None:
        super().__init__()


def test_requests_as_multiprocessing_makes_them() -> None:
    """The public protocol: two descriptors, numbers over one, pickles over the other."""
    reader, writer = os.pipe()
    status, data = forkserver.connect_to_new_process([writer])
    child = CTX.Process(target=sys.exit, args=(7,))
    with open(data, "wb") as file:
        billiard.context.set_spawning_popen(_Spawning())
        try:
            reduction.dump(spawn.get_preparation_data("child"), file)
            reduction.dump(child, file)
        finally:
            billiard.context.set_spawning_popen(None)
    assert forkserver.read_signed(status) > 1
    assert forkserver.read_signed(status) == 7
    for fd in (status, reader, writer):
        os.close(fd)


class _Spawning(popen_forkserver.Popen):
    def __init__(self) -> None:
        self._fds = []


@pytest.mark.parametrize(
    ("read", "write", "number"),
    [
        (forkserver.read_signed, forkserver.write_signed, -11),
        (forkserver.read_unsigned, forkserver.write_unsigned, (1 << 64) - 1),
    ],
)
def test_numbers(read: Any, write: Any, number: int) -> None:
    reader, writer = os.pipe()
    write(writer, number)
    assert read(reader) == number
    os.write(writer, b"abc")
    os.close(writer)
    with pytest.raises(EOFError, match="unexpected EOF"):
        read(reader)
    os.close(reader)


def test_a_template_without_descriptors_is_an_error_of_start(
    own_server: forkserver.ForkServer,
) -> None:
    pid = ask(tell_parent)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    with pytest.raises(OSError, match="fork server has no descriptors left") as caught:
        CTX.Process(target=nothing).start()
    assert caught.value.errno == errno.EMFILE
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert ask(tell_parent) == pid


def test_a_template_that_cannot_start_is_an_error_of_start(
    own_server: forkserver.ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "_python_exe", "/bin/false")
    with pytest.raises(ConnectionResetError, match="fork server has ended") as caught:
        CTX.Process(target=nothing).start()
    assert caught.value.errno == errno.ECONNRESET
    monkeypatch.setattr(spawn, "_python_exe", "/no/such/python")
    with pytest.raises(FileNotFoundError, match="/no/such/python"):
        CTX.Process(target=nothing).start()


@pytest.mark.skipif(os.getuid() != 0, reason="has to become another user")
def test_a_template_without_processes_left_is_an_error_of_start(tmp_path: Path) -> None:
    (tmp_path / "become_another.py").write_text(
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "os.setgroups([])\nos.setgid(64321)\nos.setuid(64321)\n"
    )
    source = """
        import errno, os, billiard
        if __name__ == "__main__":
            ctx = billiard.get_context("forkserver")
            ctx.set_forkserver_preload(["become_another"])
            for _ in range(2):
                try:
                    ctx.Process(target=print).start()
                except OSError as exc:
                    print(errno.errorcode[exc.errno], billiard.active_children())
    """
    assert run_file(tmp_path, source).stdout == "EAGAIN []\nEAGAIN []\n"


def test_a_template_whose_environment_is_too_large_is_an_error_of_start(
    own_server: forkserver.ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("HUGE", "x" * 200_000)
        with pytest.raises(OSError) as caught:
            CTX.Process(target=nothing).start()
        assert caught.value.errno == errno.E2BIG
    assert ask(tell_parent) == own_server._forkserver_pid


# ---- preloading ----


@pytest.mark.parametrize("names", ["module", b"module", ["a", 3], [b"a"], 5, None])
def test_what_is_no_list_of_names_is_refused(names: Any) -> None:
    before = SERVER._preload_modules
    with pytest.raises(TypeError):
        billiard.set_forkserver_preload(names)
    assert SERVER._preload_modules is before


PRELOAD = """
    import os, sys, billiard
    main_imported_in = os.getpid()
    def target():
        import preloaded
        print(preloaded.imported_in == os.getppid(), main_imported_in == os.getppid())
    if __name__ == "__main__":
        ctx = billiard.get_context("forkserver")
        ctx.set_forkserver_preload(eval(sys.argv[1]))
        process = ctx.Process(target=target)
        process.start()
        process.join()
        assert process.exitcode == 0
"""
MODULE = "import os, billiard; imported_in = os.getpid(); billiard.set_start_method('spawn')"


def preload(tmp_path: Path, names: str, module: str = MODULE) -> subprocess.CompletedProcess[str]:
    (tmp_path / "preloaded.py").write_text(textwrap.dedent(module))
    return run_file(tmp_path, PRELOAD, names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("['__main__', 'preloaded']", "True True"),
        ("['preloaded']", "True False"),
        ("('__main__',)", "False True"),
        ("[]", "False False"),
    ],
)
def test_preloading(tmp_path: Path, names: str, expected: str) -> None:
    module = MODULE if "preloaded" in names else MODULE.partition("; billiard.set")[0]
    done = preload(tmp_path, names, module)
    assert (done.stdout, done.stderr) == (expected + "\n", "")


def test_a_module_that_cannot_be_preloaded_is_named(tmp_path: Path) -> None:
    done = preload(tmp_path, "['no_such_module', 'preloaded']")
    assert done.stdout == "True False\n"
    assert "RuntimeWarning: the fork server could not preload 'no_such_module'" in done.stderr


def test_what_cannot_be_preloaded_may_be_ignored_or_fail(tmp_path: Path) -> None:
    source = """
        import errno, sys, billiard
        if __name__ == "__main__":
            ctx = billiard.get_context("forkserver")
            ctx.set_forkserver_preload(["no_such_module"], on_error=sys.argv[1])
            process = ctx.Process(target=print, args=("started",), kwargs={"flush": True})
            try:
                process.start()
            except OSError as exc:
                print(errno.errorcode[exc.errno], exc, billiard.active_children())
            else:
                process.join()
    """
    done = run_file(tmp_path, source, "ignore")
    assert (done.stdout, done.stderr) == ("started\n", "")
    done = run_file(tmp_path, source, "fail")
    assert done.stdout.startswith("ECONNRESET [Errno 104] The fork server has ended")
    assert done.stdout.endswith(" []\n")
    assert "ModuleNotFoundError: No module named 'no_such_module'" in done.stderr
    with pytest.raises(ValueError, match="'ignore', 'warn' or 'fail', not 'explode'"):
        billiard.set_forkserver_preload([], on_error="explode")


def test_a_main_module_that_cannot_be_preloaded_is_imported_by_the_children(
    tmp_path: Path,
) -> None:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PRELOAD) + "1 / (__name__ == '__main__')")
    done = subprocess.run(
        [sys.executable, script, "['__main__']"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "could not preload '__main__': ZeroDivisionError" in done.stderr
    assert done.stderr.count("ZeroDivisionError: division by zero") == 2  # the child's own


def test_what_the_template_has_is_not_collected_by_its_children() -> None:
    assert ask(frozen) > 0


def frozen(conn: Connection) -> None:
    import gc

    conn.send(gc.get_freeze_count())
