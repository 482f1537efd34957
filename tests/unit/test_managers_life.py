"""billiard.managers: how servers start, serve others' children, and end."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from manager_types import Manager, Odd, in_child

import billiard
from billiard import managers
from billiard.managers import BaseManager, RemoteError, SyncManager

#: seconds after which something that should happen will not
PATIENCE = 60
ROOT = Path(billiard.__file__).parents[1]


def alive(pid: int, seconds: float) -> bool:
    """Whether a process that need not be ours still runs after up to `seconds`."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([fd], [], [], seconds)[0]
    finally:
        os.close(fd)


def test_manager_starts_and_shuts_down_leaving_nothing(ctx: Any) -> None:
    manager = SyncManager(ctx=ctx, shutdown_timeout=PATIENCE)
    manager.start()
    shared = manager.dict(a=1)
    directory = os.path.dirname(manager.address)
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert shared["a"] == 1
    manager.shutdown()
    assert manager._process.exitcode == 0
    assert not os.path.exists(directory)


def test_manager_is_a_context_manager_and_ends_once() -> None:
    with Manager() as manager:
        assert manager.list([1])[0] == 1
    manager.shutdown()
    with pytest.raises(billiard.ProcessError, match="shut down"):
        manager.start()
    with pytest.raises(billiard.ProcessError, match="shut down"):
        manager.get_server()
    with pytest.raises(billiard.ProcessError, match="shut down"), manager:
        pass
    with pytest.raises(AssertionError, match="shut down"):
        manager.list()
    manager.join()


def test_manager_cannot_be_started_twice(manager: Manager) -> None:
    with pytest.raises(billiard.ProcessError, match="Already started"):
        manager.start()
    with pytest.raises(billiard.ProcessError, match="Already started"):
        manager.get_server()


def test_bad_arguments_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="callable"):
        SyncManager().start(initializer=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="serializer"):
        SyncManager(serializer="json")
    with pytest.raises(AssertionError, match="not yet started"):
        SyncManager().list()
    with pytest.raises(TypeError, match="authkey"):
        managers.Server({}, None, "key", "pickle")  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="not a string"):
        SyncManager.register("x", method_to_typeid={"a": 1})  # type: ignore[dict-item]


def test_manager_collected_as_garbage_ends_its_server() -> None:
    manager = Manager()
    manager.start()
    server = manager._process
    del manager
    gc.collect()
    assert not server.is_alive()


def initialize(number: int) -> None:
    global initialized
    initialized = number


def get_initialized() -> int:
    return initialized


class InitializedManager(SyncManager):
    pass


InitializedManager.register("initialized", get_initialized)


def test_initializer_runs_in_the_server(ctx: Any) -> None:
    manager = InitializedManager(ctx=ctx)
    manager.start(initialize, (42,))
    with manager:
        assert manager.initialized()._getvalue() == 42


def fail(how: str) -> None:
    if how == "exit":
        os._exit(7)
    raise Odd(1, how) if how == "odd" else LookupError(how)


def test_failing_initializer_raises_in_start_with_its_traceback(ctx: Any) -> None:
    manager = SyncManager(ctx=ctx)
    with pytest.raises(LookupError, match="first") as caught:
        manager.start(fail, ("first",))
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(RemoteError, match="Odd"):
        manager.start(fail, ("odd",))
    with pytest.raises(EOFError, match="7"):
        manager.start(fail, ("exit",))
    manager.start()
    manager.shutdown()


def test_address_in_use_is_an_error_of_start(tmp_path: Path) -> None:
    address = str(tmp_path / "socket")
    with BaseManager(address), pytest.raises(OSError) as caught:
        BaseManager(address).start()
    assert caught.value.errno == 98
    assert not os.path.exists(address)


def ignore_sigterm_and_hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    managers.Server.shutdown = lambda self, c: None  # type: ignore[method-assign]


def hang_on_shutdown() -> None:
    managers.Server.shutdown = lambda self, c: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("initializer", "code", "timeout"),
    [(hang_on_shutdown, -signal.SIGTERM, 1), (ignore_sigterm_and_hang, -signal.SIGKILL, 0.1)],
)
def test_server_that_does_not_end_is_killed_and_tidied_up(
    initializer: Any, code: int, timeout: float
) -> None:
    manager = SyncManager(shutdown_timeout=timeout)
    manager.start(initializer)
    manager.shutdown()
    assert manager._process.exitcode == code
    assert not os.path.exists(os.path.dirname(manager.address))


def test_death_of_the_parent_ends_the_server(ctx: Any) -> None:
    code = (
        "import billiard, sys\n"
        "if __name__ == '__main__':\n"
        f"    m = billiard.get_context({ctx.get_start_method()!r}).Manager()\n"
        "    d = m.dict(); d[1] = 2\n"
        "    print(m._process.pid, m.address, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None and parent.stdout is not None
    with parent.stdin, parent.stdout:
        pid, address = parent.stdout.readline().split()
        assert os.path.exists(address)
        parent.kill()
        parent.wait()
        try:
            assert not alive(int(pid), PATIENCE)
        except AssertionError:
            os.kill(int(pid), signal.SIGKILL)
            raise
        assert not os.path.exists(os.path.dirname(address))


def send_and_wait(pid: int, signum: int) -> None:
    os.kill(pid, signum)
    signal.pause()


def test_start_that_is_interrupted_leaves_no_server(ctx: Any) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise billiard.SoftTimeLimitExceeded

    manager = Manager(ctx=ctx)
    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(billiard.SoftTimeLimitExceeded):
            manager.start(send_and_wait, (os.getpid(), signal.SIGALRM))
    finally:
        signal.signal(signal.SIGALRM, old)
    assert manager._process.exitcode == -signal.SIGKILL
    with manager:  # it can be started again
        assert manager.list([1])[:] == [1]


def serve_after_the_end() -> None:
    server = Manager().get_server()
    server.stop_event.set()
    server.serve_forever()


def test_server_whose_parent_dies_before_it_serves_ends(ctx: Any) -> None:
    server = ctx.Process(target=serve_after_the_end, daemon=True)
    server.start()
    server.join(PATIENCE)
    try:
        assert server.exitcode == 0
    finally:
        server.kill()
        server.join()


def test_program_that_is_a_server_serves_the_children_of_others(ctx: Any) -> None:
    code = (
        "import sys, manager_types\n"
        "m = manager_types.Manager(('127.0.0.1', 0), b'key')\n"
        "server = m.get_server()\n"
        "print(server.address[1], flush=True)\n"
        "server.serve_forever()\n"
    )
    path = f"{ROOT}:{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    with server.stdout:
        address = ("127.0.0.1", int(server.stdout.readline()))
        manager = Manager(address, b"key")
        manager.connect()
        with manager:
            counter, table, done = manager.Counter(1), manager.dict(), manager.Event()
            child = ctx.Process(target=in_child, args=(table, manager.list(), done, counter))
            child.start()
            child.join()
            assert child.exitcode == 0 and done.is_set()
        # Its block did not end a server that it only connected to.
        assert table["child"] == []
        del counter, table, done
        gc.collect()
        manager._request("shutdown")
        assert server.wait(PATIENCE) == 0
