"""billiard.managers: errors that come back, and clients and servers that misbehave or die."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from alarms import alarm
from manager_types import Manager

import billiard
from billiard import managers, process
from billiard.exceptions import AuthenticationError
from billiard.managers import BaseManager, RemoteError

# ---- errors that come back ----


def test_exceptions_of_methods_come_back(manager: Manager) -> None:
    counter = manager.Counter(3)
    with pytest.raises(LookupError) as caught:
        counter.fail()
    assert caught.value.args == ("no such thing", 3)


def test_what_is_no_exception_comes_back_too(manager: Manager) -> None:
    counter = manager.Counter()
    with pytest.raises(asyncio.CancelledError, match="not now"):
        counter.cancel()
    numbers = counter.numbers(3)
    for kind in (GeneratorExit, KeyboardInterrupt, SystemExit):
        with pytest.raises(kind):
            numbers.throw(kind())
    with pytest.raises(RemoteError, match="SystemExit: 3"):
        manager.leave(3)
    assert counter.add() == 1


def test_exception_that_cannot_be_rebuilt_comes_back_as_its_traceback(manager: Manager) -> None:
    counter = manager.Counter()
    with pytest.raises(RemoteError, match="7: because"):
        counter.fail_oddly()
    assert counter.add() == 1


def test_result_that_cannot_be_pickled_is_a_remote_error(manager: Manager) -> None:
    counter = manager.Counter()
    with pytest.raises(RemoteError, match="Unserializable message"):
        counter.unpicklable()
    assert counter.add() == 1


def test_argument_that_cannot_be_pickled_leaves_the_proxy_usable(manager: Manager) -> None:
    shared = manager.list()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        shared.append(threading.Lock())
    assert shared[:] == []


def test_method_that_is_not_exposed_is_a_remote_error(manager: Manager) -> None:
    counter = manager.Counter()
    with pytest.raises(RemoteError, match="not in exposed"):
        counter._callmethod("_hidden")


def test_unknown_type_and_unknown_request_are_remote_errors(manager: Manager) -> None:
    with pytest.raises(RemoteError, match="KeyError: 'nothing'"):
        manager._create("nothing")
    with pytest.raises(RemoteError, match="unrecognized"):
        manager._request("serve_forever")


def test_released_object_is_a_remote_error(manager: Manager) -> None:
    shared = manager.list()
    token = shared._token
    del shared
    with pytest.raises(RemoteError, match="released"):
        managers.ListProxy(token, "pickle", manager=manager)


# ---- servers that are not there ----


def test_manager_that_has_gone_is_an_error_at_once() -> None:
    manager = Manager()
    manager.start()
    shared = manager.list()
    shared.append(1)
    other = manager.dict()
    manager._process.kill()
    manager._process.join()
    with pytest.raises((EOFError, OSError)) as caught:
        shared.append(2)
    said = [*map(str, caught.value.args), *getattr(caught.value, "__notes__", [])]
    assert any(manager.address in text for text in said)
    with pytest.raises(ConnectionRefusedError) as refused:
        other["a"] = 1
    assert refused.value.errno == 111 and manager.address in refused.value.__notes__[0]
    with pytest.raises(ConnectionRefusedError):
        manager.dict()
    assert "'__str__()' failed" in str(shared)
    manager.shutdown()
    assert not os.path.exists(os.path.dirname(manager.address))
    with pytest.raises(FileNotFoundError):
        shared.append(3)


def test_server_that_dies_while_it_answers_is_an_error() -> None:
    with Manager() as manager:
        counter = manager.Counter()
        with pytest.raises(EOFError, match="gone"):
            counter.die()


def test_connecting_to_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        BaseManager(str(tmp_path / "nothing"), b"x").connect()
    assert "cannot be reached" in caught.value.__notes__[0]


def test_server_without_descriptors_serves_again_when_it_has_some() -> None:
    import resource

    with Manager() as manager:
        shared = manager.list([1])
        assert shared[0] == 1
        pid = manager._process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # The standard streams have these three.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
        seen: list[int] = []
        # The accept that waits already has its descriptor; the next one gets none.
        others = [threading.Thread(target=lambda: seen.append(shared[0])) for _ in range(2)]
        for other in others:
            other.start()
        others[0].join(0.2)
        others[1].join(0.2)
        assert len(seen) < 2
        assert shared[0] == 1  # those that are connected are served
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for other in others:
            other.join(30)
        assert seen == [1, 1]


# ---- clients that misbehave or die ----


def test_wrong_authkey_is_refused(manager: Manager) -> None:
    with pytest.raises(AuthenticationError):
        Manager(manager.address, b"wrong").connect()
    with pytest.raises(AuthenticationError):
        managers.ListProxy(managers.Token("list", manager.address, "0"), "pickle", authkey=b"no")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, billiard.SoftTimeLimitExceeded])
def test_request_that_was_interrupted_does_not_confuse_the_next(
    manager: Manager, kind: type[BaseException]
) -> None:
    event, numbers = manager.Event(), manager.list([1, 2])

    def interrupt() -> None:
        raise kind

    with pytest.raises(kind), alarm(interrupt):
        event.wait(30)
    assert numbers[:] == [1, 2]
    event.set()


def test_signal_handler_may_use_the_manager_that_is_being_waited_for(manager: Manager) -> None:
    queue, numbers, lock = manager.Queue(), manager.list([1]), manager.RLock()

    def handler() -> None:
        numbers.append(2)
        queue.put(numbers[:])

    with lock:
        with alarm(handler):
            assert queue.get(True, 30) == [1, 2]
        assert numbers[:] == [1, 2]
        # What was acquired before the signal still is.
        seen: list[bool] = []
        other = threading.Thread(target=lambda: seen.append(lock.acquire(False)))
        other.start()
        other.join()
        assert seen == [False]


def take(lock: Any, taken: Any) -> None:
    lock.acquire()
    lock.acquire()
    taken.set()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["RLock", "Condition"])
def test_client_killed_with_a_lock_hangs_nobody(manager: Manager, kind: str) -> None:
    lock, taken = getattr(manager, kind)(), manager.Event()
    child = billiard.get_context("fork").Process(target=take, args=(lock, taken))
    child.start()
    assert taken.wait(30)
    assert lock.acquire(True, 30)
    lock.release()
    child.join()
    # What a killed client owned stays counted until the manager ends.
    for proxy in (lock, taken):
        proxy._request("decref", (proxy._id,))


def ask_and_die(proxy: Any, method: str) -> None:
    if method == "wait":
        proxy.acquire()
        conn = proxy._tls.connection
    else:
        conn = proxy._connect()
    conn.send((proxy._id, method, (), {}))
    os.kill(os.getpid(), signal.SIGKILL)


def kill_waiting(ctx: Any, proxy: Any, method: str) -> None:
    child = ctx.Process(target=ask_and_die, args=(proxy, method))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    proxy._request("decref", (proxy._id,))  # what a killed client owned stays counted


def test_client_killed_while_it_gets_from_a_queue_takes_nothing(ctx: Any, manager: Manager) -> None:
    queue = manager.Queue()
    kill_waiting(ctx, queue, "get")
    for item in range(3):
        queue.put(item)
    assert sorted(queue.get(True, 30) for _ in range(3)) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["Lock", "Semaphore", "BoundedSemaphore", "RLock"])
def test_client_killed_while_it_acquires_hangs_nobody(
    ctx: Any, manager: Manager, kind: str
) -> None:
    lock = getattr(manager, kind)()
    lock.acquire()
    kill_waiting(ctx, lock, "acquire")
    for _ in range(3):
        lock.release()
        assert lock.acquire(True, 30)
    lock.release()


def test_client_killed_while_it_waits_is_notified_in_nobodys_place(
    ctx: Any, manager: Manager
) -> None:
    condition = manager.Condition()
    kill_waiting(ctx, condition, "wait")
    waits, notified = threading.Event(), []

    def wait() -> None:
        with condition:
            waits.set()
            notified.append(condition.wait(30))

    other = threading.Thread(target=wait)
    other.start()
    assert waits.wait(30)
    with condition:  # only once they both wait
        condition.notify()
    other.join()
    assert notified == [True]


def test_a_client_that_never_authenticates_holds_up_nobody(manager: Manager) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(manager.address)
        assert manager.list([1])[:] == [1]


def test_a_client_with_a_wrong_answer_hears_nothing_but_failure(manager: Manager) -> None:
    import socket
    import struct

    with socket.socket(socket.AF_UNIX) as forger:
        forger.connect(manager.address)
        assert b"#CHALLENGE#" in forger.recv(1000)
        forger.sendall(struct.pack("!i", 40) + b"{sha256}" + bytes(32))
        heard = b""
        while data := forger.recv(1000):
            heard += data
    assert heard == struct.pack("!i", 9) + b"#FAILURE#"


def test_forged_messages_do_not_end_the_server(manager: Manager) -> None:
    from billiard.connection import Client

    for message in (b"", b"nonsense", pickle.dumps(None), pickle.dumps(("0", "append", (), {}))):
        with Client(manager.address, authkey=process.current_process().authkey) as conn:
            conn.send_bytes(message)
            assert conn.recv()[0] == "#TRACEBACK"
        with Client(manager.address, authkey=process.current_process().authkey) as conn:
            conn.send((None, "accept_connection", ("forger",), {}))
            assert conn.recv()[0] == "#RETURN"
            conn.send_bytes(message or b"\x80")
            assert conn.recv()[0] == "#TRACEBACK"
            conn.send(("0", "#GETVALUE", (), {}))  # and the connection goes on
            assert conn.recv() == ("#RETURN", None)
    assert manager.list([1])[:] == [1]


def churn(table: Any, numbers: Any, jobs: Any, lock: Any) -> None:
    while True:
        with lock:
            table["n"] = table.get("n", 0) + 1
        numbers.append(table)
        numbers.pop()["x"] = numbers
        jobs.put(table)
        jobs.get()


@pytest.mark.stress
def test_clients_killed_at_any_instant_leave_a_server_that_serves() -> None:
    import random

    fork = billiard.get_context("fork")
    with Manager() as manager:
        shared = (manager.dict(), manager.list(), manager.Queue(), manager.RLock())
        for _ in range(40):
            children = [fork.Process(target=churn, args=shared) for _ in range(2)]
            for child in children:
                child.start()
            for child in children:
                child.join(random.random() / 20)
                child.kill()
            for child in children:
                child.join()
        with shared[3]:
            shared[0]["n"] = 1
        assert shared[0].copy()["n"] == 1
        shared[1].append(1)
        shared[2].put(1)
        del shared
