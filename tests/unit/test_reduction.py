"""billiard.reduction and resource_sharer: what can be sent to other processes, and how."""

from __future__ import annotations

import functools
import io
import os
import pickle
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import run_file

import billiard
from billiard import connection, reduction, resource_sharer
from billiard.connection import Connection
from billiard.reduction import ForkingPickler


def again(obj: Any) -> Any:
    """What another process would get."""
    return ForkingPickler.loads(ForkingPickler.dumps(obj))


class Thing:
    """A class with a name that can be imported."""

    def __init__(self, value: object = None) -> None:
        self.value = value

    def get(self) -> object:
        return self.value


# ---- reducers ----


def test_dumps_gives_a_buffer_that_loads_takes() -> None:
    data = ForkingPickler.dumps({"a": 1})
    assert isinstance(data, memoryview)
    assert pickle.loads(data) == ForkingPickler.loads(data) == {"a": 1}
    assert ForkingPickler.dumps(1, 2)[1] == 2
    assert ForkingPickler.loadbuf(io.BytesIO(data)) == {"a": 1}


def test_dump_writes_into_a_file() -> None:
    file = io.BytesIO()
    reduction.dump([1], file)
    reduction.dump([2], file, 2)
    file.seek(0)
    assert (pickle.load(file), pickle.load(file)) == ([1], [2])


def test_a_pickler_can_be_used_as_multiprocessing_s() -> None:
    file = io.BytesIO()
    ForkingPickler(file, 4).dump("text")
    assert pickle.loads(file.getvalue()) == "text"


def test_methods_descriptors_and_partials() -> None:
    assert again(Thing(3).get)() == 3
    assert again(list.append) is list.append
    assert again(int.__add__) == int.__add__
    partial = again(functools.partial(int, "11", base=2))
    assert partial() == 3
    assert partial.keywords == {"base": 2}


def test_a_registered_reducer_is_used() -> None:
    class Local:
        pass

    reduction.register(Local, lambda obj: (str, ("reduced",)))
    try:
        assert again([Local()]) == ["reduced"]
        assert ForkingPickler._extra_reducers[Local]
    finally:
        del ForkingPickler._extra_reducers[Local]


# ---- by value ----


def test_functions_without_a_name_travel_by_value() -> None:
    offset = 10

    def local(x: int) -> int:
        return x + offset

    assert again(lambda: 5)() == 5
    assert again(local)(1) == 11
    assert again([functools.partial(local, 2)])[0]() == 12


def test_local_classes_travel_by_value() -> None:
    class Local(Thing):
        def double(self) -> object:
            return self.value * 2  # type: ignore[operator]

    found = again(Local(4))
    assert found.double() == 8
    assert again(Local(4).double)() == 8
    assert isinstance(found, Thing)


def test_what_has_a_name_goes_by_name_beside_what_has_none() -> None:
    kind, function, local = again((Thing, run_file, lambda: 1))
    assert kind is Thing
    assert function is run_file
    assert local() == 1


def test_registered_reducers_work_inside_what_travels_by_value() -> None:
    reduction.register(Thing, lambda obj: (str, ("reduced",)))
    try:
        assert again((Thing(), lambda: 1))[0] == "reduced"
    finally:
        del ForkingPickler._extra_reducers[Thing]


@pytest.mark.parametrize("extra", [(), (lambda: 1,)])
def test_what_cannot_be_sent_is_refused_with_the_plain_pickler_s_error(
    extra: tuple[Callable[[], int], ...],
) -> None:
    lock = threading.Lock()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)) as caught:
        ForkingPickler.dumps([*extra, lock])
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)) as plain:
        pickle.dumps([*extra, lock])
    assert (type(caught.value), str(caught.value)) == (type(plain.value), str(plain.value))


def test_an_open_file_does_not_become_a_copy(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+") as file:
        for obj in (file, (file, lambda: 1)):
            with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
                ForkingPickler.dumps(obj)


def test_errors_of_reducers_are_not_hidden() -> None:
    class Bad:
        def __reduce__(self) -> Any:
            raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError):
        ForkingPickler.dumps(Bad())
    with pytest.raises(ZeroDivisionError):
        ForkingPickler.dumps([lambda: 1, Bad()][1:])


def call(function: Callable[[int], int], conn: Connection) -> None:
    conn.send(function(20))
    conn.close()


def test_targets_and_arguments_travel_by_value(ctx: Any) -> None:
    offset = 22
    ours, its = billiard.Pipe()

    def target(function: Callable[[int], int], conn: Connection) -> None:
        call(function, conn)

    process = ctx.Process(target=target, args=(lambda x: x + offset, its))
    process.start()
    its.close()
    with ours:
        assert ours.recv() == 42
    process.join()
    assert process.exitcode == 0


def test_a_refused_argument_leaves_nothing_behind(ctx: Any) -> None:
    if ctx.get_start_method() == "fork":
        pytest.skip("nothing is pickled")
    ours, its = billiard.Pipe()
    process = ctx.Process(target=call, args=(lambda: 1, its, threading.Lock()))
    with ours, its, pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        process.start()
    assert process.pid is None
    assert process not in billiard.active_children()
    assert billiard.context.get_spawning_popen() is None


def test_descriptors_are_passed_once_when_pickling_takes_two_attempts() -> None:
    class Popen:
        def __init__(self) -> None:
            self._fds: list[int] = []

        def duplicate_for_child(self, fd: int) -> int:
            self._fds.append(fd)
            return fd

        DupFd = staticmethod(str)

    popen: Any = Popen()
    popen._fds.append(77)
    billiard.context.set_spawning_popen(popen)
    ours, its = billiard.Pipe()
    try:
        ForkingPickler.dumps((ours, its, lambda: 1))
        assert popen._fds == [77, ours.fileno(), its.fileno()]
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            ForkingPickler.dumps((ours, its, lambda: 1, threading.Lock()))
        assert popen._fds == [77, ours.fileno(), its.fileno()]
    finally:
        billiard.context.set_spawning_popen(None)
        ours.close()
        its.close()


def test_functions_of_the_main_module_go_by_name(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        from billiard.reduction import ForkingPickler
        def named(x):
            return x + 1
        class Named:
            pass
        def show(first, function, kind):
            import __mp_main__
            assert first() == 1
            assert function is __mp_main__.named and kind is __mp_main__.Named
            print("by name")
        if __name__ == "__main__":
            data = bytes(ForkingPickler.dumps((lambda: 1, named, Named)))
            assert b"named" in data and b"x + 1" not in data
            for method in ("spawn", "forkserver"):
                process = billiard.get_context(method).Process(
                    target=show, args=(lambda: 1, named, Named))
                process.start()
                process.join()
    """
    assert run_file(tmp_path, source).stdout == "by name\n" * 2


def test_cloudpickle_is_imported_only_when_it_is_needed(tmp_path: Path) -> None:
    source = """
        import sys, billiard
        def target(function):
            function()
            print("cloudpickle" in sys.modules)
        if __name__ == "__main__":
            for function in (int, lambda: 1):
                process = billiard.get_context("spawn").Process(target=target, args=(function,))
                process.start()
                process.join()
                print("cloudpickle" in sys.modules)
    """
    assert run_file(tmp_path, source).stdout.split() == ["False", "False", "True", "True"]


# ---- descriptors ----


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair(socket.AF_UNIX)
    with first, second:
        yield first, second


def test_descriptors_over_a_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    reader, writer = os.pipe()
    reduction.sendfds(pair[0], [reader, writer])
    found = reduction.recvfds(pair[1], 2)
    assert len(found) == 2
    assert not any(os.get_inheritable(fd) for fd in found)
    os.write(found[1], b"x")
    assert os.read(reader, 5) == b"x"
    for fd in (reader, writer, *found):
        os.close(fd)


def test_what_is_not_descriptors_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].send(b"\x01")
    with pytest.raises(RuntimeError, match="something other than descriptors"):
        reduction.recvfds(pair[1], 1)
    reader, writer = os.pipe()
    socket.send_fds(pair[0], [b"\x07"], [reader, writer])
    with pytest.raises(RuntimeError, match="something other than descriptors"):
        reduction.recvfds(pair[1], 5)  # and none of them stays open
    os.close(reader)
    os.close(writer)
    pair[0].close()
    with pytest.raises(EOFError):
        reduction.recvfds(pair[1], 1)


def receive(conn: Connection) -> None:
    with open(reduction.recv_handle(conn), "wb") as file:
        file.write(b"from afar")
    conn.close()


def test_handles_over_a_connection(ctx: Any) -> None:
    ours, its = billiard.Pipe()
    process = ctx.Process(target=receive, args=(its,))
    process.start()
    its.close()
    reader, writer = os.pipe()
    with ours:
        reduction.send_handle(ours, writer, process.pid)
        os.close(writer)
        assert os.read(reader, 100) == b"from afar"
    os.close(reader)
    process.join()
    assert process.exitcode == 0


def echo(sock: socket.socket) -> None:
    with sock:
        sock.sendall(sock.recv(100).upper())


def test_sockets_are_inherited(ctx: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    process = ctx.Process(target=echo, args=(pair[1],))
    process.start()
    pair[0].sendall(b"hello")
    assert pair[0].recv(100) == b"HELLO"
    process.join()
    assert process.exitcode == 0


def echo_what_comes(conn: Connection) -> None:
    echo(conn.recv())
    conn.close()


def test_sockets_travel_to_running_processes(
    ctx: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, its = billiard.Pipe()
    process = ctx.Process(target=echo_what_comes, args=(its,))
    process.start()
    its.close()
    with ours:
        ours.send(pair[1])
        pair[0].sendall(b"hello")
        assert pair[0].recv(100) == b"HELLO"
    process.join()
    assert process.exitcode == 0
    resource_sharer.stop(30)


def test_a_shared_descriptor_is_fetched_once() -> None:
    reader, writer = os.pipe()
    shared = again(reduction.DupFd(writer))
    os.close(writer)
    found = shared.detach()
    os.write(found, b"x")
    os.close(found)
    assert os.read(reader, 5) == b"x"
    assert os.read(reader, 5) == b""
    os.close(reader)
    resource_sharer.stop(30)


@pytest.fixture
def shared() -> Iterator[Any]:
    """A descriptor that is shared, and can be fetched again."""
    with socket.socket() as made:
        yield again(reduction.DupFd(made.fileno()))
    resource_sharer.stop(30)


def test_a_process_that_stops_before_it_has_asked_holds_up_nobody(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECTION_TIMEOUT", 1.0)
    address, _ = shared._id
    with connection.Client(address, authkey=billiard.current_process().authkey):
        os.close(shared.detach())


def test_without_descriptors_sharing_waits_until_there_are_some(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Any] = []
    too_many = threading.Event()

    def excepthook(*exc_info: Any) -> None:
        errors.append(exc_info[0])
        if len(errors) > 1:
            too_many.set()

    monkeypatch.setattr(sys, "excepthook", excepthook)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as hangs_up:
        hangs_up.connect(shared._id[0])
        try:
            # An accept that waits already has its descriptor, and finds that nobody is there; the
            # next one gets none.
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
            hangs_up.shutdown(socket.SHUT_RDWR)
            assert not too_many.wait(4 * connection._BREATH), errors
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    os.close(shared.detach())


def test_stop_closes_what_nobody_has_fetched() -> None:
    reader, writer = os.pipe()
    reduction.DupFd(writer)
    os.close(writer)
    resource_sharer.stop(30)
    assert os.read(reader, 5) == b""
    os.close(reader)
    resource_sharer.stop()  # nothing to stop


def number_of_shared() -> int:
    return len(resource_sharer._resource_sharer._cache)


def a_closure(value: object) -> Callable[[], object]:
    return lambda: value


@pytest.mark.parametrize("bad", [threading.Lock(), a_closure(threading.Lock())])
@pytest.mark.parametrize("kind", ["connection", "queue"])
def test_what_cannot_be_sent_leaves_no_descriptor(kind: str, bad: object) -> None:
    reader, writer = billiard.Pipe()
    queue: Any = billiard.Queue()
    queue._on_queue_feeder_error = lambda exc, obj: None
    with reader, writer:
        if kind == "queue":
            queue.put([reader, bad])
        else:
            with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
                writer.send([reader, bad])
    assert number_of_shared() == 0
    queue.close()
    queue.join_thread()
    resource_sharer.stop(30)


def use_what_comes(conn: Connection) -> None:
    message, fd, function = conn.recv()
    message.send(function())
    message.close()
    os.write(fd.detach(), b"x")
    conn.close()


def test_descriptors_beside_what_goes_by_value_are_shared_once(ctx: Any) -> None:
    ours, its = billiard.Pipe()
    result, goes = billiard.Pipe()
    reader, writer = os.pipe()
    process = ctx.Process(target=use_what_comes, args=(its,))
    process.start()
    its.close()
    with ours, result, goes:
        ours.send([goes, reduction.DupFd(writer), a_closure(3)])
        goes.close()
        assert result.recv() == 3
        os.close(writer)
        assert os.read(reader, 5) == b"x"
    os.close(reader)
    process.join()
    assert process.exitcode == 0
    assert number_of_shared() == 0
    resource_sharer.stop(30)


def test_sharing_what_is_not_open() -> None:
    with pytest.raises(OSError):
        reduction.DupFd(987_654)


def keeps_nothing(conn: Connection) -> None:
    sharer = resource_sharer._resource_sharer
    conn.send((sharer._address, len(sharer._cache), sharer._lock.acquire(False)))
    conn.close()


def test_a_forked_child_has_nothing_to_share() -> None:
    reader, writer = os.pipe()
    reduction.DupFd(writer)
    ours, its = billiard.Pipe()
    with resource_sharer._resource_sharer._lock:  # as another thread might
        process = billiard.get_context("fork").Process(target=keeps_nothing, args=(its,))
        process.start()
    its.close()
    with ours:
        assert ours.recv() == (None, 0, True)
    process.join()
    for fd in (reader, writer):
        os.close(fd)
    resource_sharer.stop(30)


def test_socket_is_not_imported_for_pickling() -> None:
    assert "socket" in sys.modules  # here it is; elsewhere it need not be
    assert ForkingPickler._dispatch_table()[socket.socket] is reduction._reduce_socket
