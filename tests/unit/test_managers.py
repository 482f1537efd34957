"""billiard.managers: servers, proxies, nesting, reference counts, and what goes wrong."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import billiard
from billiard import managers, process
from billiard.exceptions import AuthenticationError
from billiard.managers import BaseManager, RemoteError, SyncManager

ROOT = Path(billiard.__file__).parents[1]


class Odd(Exception):
    """Cannot be rebuilt from its `args`."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{code}: {why}")


class Counter:
    def __init__(self, start: int = 0, c: int = 0, typeid: str = "") -> None:
        self.n = start + c
        self._secret = typeid

    def add(self, k: int = 1) -> int:
        self.n += k
        return self.n

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    def fork(self) -> Counter:
        return Counter(self.n)

    def fail(self) -> None:
        raise LookupError("no such thing", self.n)

    def fail_oddly(self) -> None:
        raise Odd(7, "because")

    def unpicklable(self) -> object:
        return threading.Lock()

    def use(self, proxy: Any) -> Any:
        """Call back into the server that this runs in."""
        return proxy.copy()

    def die(self) -> None:
        os._exit(3)

    def _hidden(self) -> str:
        return "hidden"


def make_from(proxy: Any) -> list[Any]:
    """A callable that uses a proxy of the server that calls it."""
    return list(proxy.keys())


class Manager(SyncManager):
    pass


Manager.register("Counter", Counter, method_to_typeid={"numbers": "Iterator", "fork": "Twin"})
Manager.register("Twin", create_method=False)
Manager.register("Shy", Counter, exposed=("add", "_hidden"))
Manager.register("make_from", make_from)
Manager.register("collect", gc.collect)


@pytest.fixture(scope="module")
def module_manager() -> Iterator[Manager]:
    with Manager() as manager:
        yield manager


@pytest.fixture
def manager(module_manager: Manager) -> Iterator[Manager]:
    """A started manager, which must have no objects left afterwards."""
    # This thread's connection belongs to the test, so that the next one finds no new descriptor.
    yield module_manager
    gc.collect()
    assert module_manager._number_of_objects() == 0, module_manager._debug_info()


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


# ---- the life of a manager ----


def test_manager_starts_and_shuts_down_leaving_nothing(ctx: Any) -> None:
    manager = ctx.Manager()
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
    ("initializer", "code"),
    [(hang_on_shutdown, -signal.SIGTERM), (ignore_sigterm_and_hang, -signal.SIGKILL)],
)
def test_server_that_does_not_end_is_killed_and_tidied_up(initializer: Any, code: int) -> None:
    manager = SyncManager(shutdown_timeout=0.1)
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
            assert not alive(int(pid), 20)
        except AssertionError:
            os.kill(int(pid), signal.SIGKILL)
            raise
        assert not os.path.exists(os.path.dirname(address))


# ---- shared objects ----


def test_containers(manager: Manager) -> None:
    numbers = manager.list(range(5))
    numbers += [5]
    numbers *= 2
    numbers.append(9)
    assert numbers[:] == [*range(6), *range(6), 9]
    assert len(numbers) == 13 and numbers[-1] == 9 and 3 in numbers
    assert list(numbers) == numbers[:] and str(numbers) == str(numbers[:])
    assert numbers + [1] == [*range(6), *range(6), 9, 1]  # noqa: RUF005  the method's own
    del numbers[0]
    assert numbers.pop(0) == 1

    table = manager.dict({"a": 1}, b=2)
    table["c"] = 3
    assert sorted(table) == ["a", "b", "c"]  # 4.3.2 asked for table[0]
    assert table.copy() == {"a": 1, "b": 2, "c": 3}
    assert sorted(table.items()) == [("a", 1), ("b", 2), ("c", 3)]
    assert table.get("x") is None and "a" in table and table.setdefault("d", 4) == 4
    keys = iter(table)
    assert next(keys) == "a"
    table["e"] = 5
    with pytest.raises(RuntimeError, match="changed size"):
        next(keys)

    array = manager.Array("i", [1, 2, 3])
    array[1] = 5
    assert array[:].tolist() == [1, 5, 3] and len(array) == 3
    value = manager.Value("i", 1)
    value.value += 1
    assert value.get() == 2 and str(value) == "Value('i', 2)"
    names = manager.Namespace(x=1)
    names.y = 2
    names._local = 3
    assert names.x + names.y == 3 and str(names) == "Namespace(x=1, y=2)"
    del names.x
    assert not hasattr(names, "x") and names._local == 3


def test_queues(manager: Manager) -> None:
    for shared in (manager.Queue(2), manager.JoinableQueue(2)):
        shared.put("a")
        shared.put("b")
        with pytest.raises(queue.Full):
            shared.put_nowait("c")
        assert [shared.get(), shared.get()] == ["a", "b"]
        with pytest.raises(queue.Empty):
            shared.get(timeout=0.01)
        shared.task_done()
        shared.task_done()
        shared.join()


def test_synchronization_primitives(manager: Manager) -> None:
    lock, rlock = manager.Lock(), manager.RLock()
    with lock:
        assert not lock.acquire(False) and not lock.acquire(True, 0.01)
    with rlock, rlock:
        pass
    semaphore = manager.BoundedSemaphore(1)
    with semaphore:
        assert not semaphore.acquire(False)
    with pytest.raises(ValueError):
        semaphore.release()
    event = manager.Event()
    assert not event.wait(0.01)
    event.set()
    assert event.wait() and event.is_set()
    event.clear()
    barrier = manager.Barrier(2)
    other = threading.Thread(target=barrier.wait, args=(10,))
    other.start()
    barrier.wait(10)
    other.join()
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (2, 0, False)
    barrier.abort()
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    condition = manager.Condition()
    state: list[int] = []

    def change() -> None:
        with condition:
            state.append(1)
            condition.notify(1)
            condition.notify_all()

    with condition:
        assert not condition.wait_for(lambda: state, 0.01)
        other = threading.Thread(target=change)
        other.start()
        assert condition.wait_for(lambda: state, 10) == [1]
    other.join()


def in_child(table: Any, numbers: Any, done: Any, counter: Any) -> None:
    table["child"] = sorted(table)
    numbers.append(table)  # a proxy inside another, from here
    assert list(counter.numbers(3)) == [0, 1, 2]  # a result that stays in the server
    assert counter.fork().add(1) == counter.add(1)
    done.set()


def test_proxies_work_in_children(ctx: Any, manager: Manager) -> None:
    table, numbers, done = manager.dict(a=1), manager.list(), manager.Event()
    counter = manager.Counter(1)
    child = ctx.Process(target=in_child, args=(table, numbers, done, counter))
    child.start()
    child.join()
    assert child.exitcode == 0 and done.is_set()
    assert table["child"] == ["a"] and counter.add(0) == 2
    table["b"] = 2
    assert numbers[0]["b"] == 2


def with_manager(shared: Any) -> None:
    shared.Namespace()
    numbers = shared.list([1])
    assert numbers[:] == [1]


def test_a_manager_itself_can_be_given_to_a_child(ctx: Any, manager: Manager) -> None:
    child = ctx.Process(target=with_manager, args=(manager,))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_pool_of_a_manager(manager: Manager) -> None:
    with manager.Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
        assert pool.apply_async(abs, (-3,)).get(30) == 3
        assert list(pool.imap(abs, [-1, -2])) == [1, 2]
        assert sorted(pool.imap_unordered(abs, [-1, -2])) == [1, 2]
    del pool


def waits_for(event: Any) -> bool:
    return bool(event.wait(30))


def test_unfinished_job_of_a_managed_pool(manager: Manager) -> None:
    event = manager.Event()
    with manager.Pool(1) as pool:
        result = pool.apply_async(waits_for, (event,))
        with pytest.raises(billiard.TimeoutError):
            result.get(0)
        event.set()
        assert result.get(30)
        del result
    del pool


def test_custom_types(manager: Manager) -> None:
    counter = manager.Counter(5)
    assert counter.add(2) == 7
    twin = counter.fork()
    assert twin.add(1) == 8 and counter.add(0) == 7
    assert list(counter.numbers(2)) == [0, 1]
    assert not hasattr(counter, "_hidden")
    shy = manager.Shy()
    assert shy._hidden() == "hidden" and shy.add() == 1 and not hasattr(shy, "fail")
    # arguments that are called like the server's own
    assert manager.Counter(c=2, typeid="t").add(0) == 2


def test_callables_may_use_the_manager_they_run_in(manager: Manager) -> None:
    table = manager.dict(a=1)
    assert manager.make_from(table)._getvalue() == ["a"]
    assert manager.Counter().use(table) == {"a": 1}


# ---- nesting and reference counts ----


def test_referents_can_hold_proxies(manager: Manager) -> None:
    inner = manager.dict(a=1)
    outer = manager.list([inner, [1]])
    outer[0]["b"] = 2
    assert inner.copy() == {"a": 1, "b": 2}
    assert outer[1] == [1]
    del inner
    gc.collect()
    assert outer[0].copy() == {"a": 1, "b": 2}
    assert manager._number_of_objects() == 1
    taken = outer.pop(0)
    assert taken.copy() == {"a": 1, "b": 2}
    outer.append(taken)
    outer.append(manager.Queue())
    outer[-1].put(1)
    assert outer[-1].get() == 1


def test_what_is_nested_goes_with_the_last_that_refers_to_it(manager: Manager) -> None:
    witness = manager.Namespace()
    witness.inner = manager.list(range(3))
    witness.inner.append(witness.inner)  # and a cycle
    assert manager._number_of_objects() == 1
    inner = witness.inner
    assert manager._number_of_objects() == 2
    del witness.inner
    assert inner[:3] == [0, 1, 2] and inner[3][0] == 0
    token = inner._token
    del inner
    gc.collect()
    assert manager._number_of_objects() == 1
    # Nothing but the cycle refers to it: the server's own garbage collection finds it.
    assert managers.ListProxy(token, "pickle", manager=manager, incref=False)[0] == 0
    manager.collect()
    with pytest.raises(RemoteError, match="released"):
        managers.ListProxy(token, "pickle", manager=manager, incref=False)[0]


def test_proxies_copy_deeply_to_the_value(manager: Manager) -> None:
    import copy

    assert copy.deepcopy(manager.dict(a=[1])) == {"a": [1]}


def test_objects_are_counted(manager: Manager) -> None:
    assert manager._number_of_objects() == 0
    a = manager.list()
    b = pickle.loads(pickle.dumps(a))
    assert manager._number_of_objects() == 1
    assert "refcount=2" in manager._debug_info()
    del a
    assert b[:] == [] and manager._number_of_objects() == 1
    del b
    assert manager._number_of_objects() == 0


def test_repr_names_proxy_and_type(manager: Manager) -> None:
    shared = manager.dict(a=1)
    assert repr(shared).startswith("<DictProxy object, typeid 'dict' at 0x")
    assert str(shared) == "{'a': 1}"
    token = shared._token
    assert repr(token) == f"Token(typeid='dict', address={manager.address!r}, id={token.id!r})"
    assert repr(manager.Counter()).startswith("<AutoProxy[Counter] object, typeid 'Counter'")


def test_a_thread_has_one_connection_and_loses_it_when_it_ends(manager: Manager) -> None:
    shared = manager.list()
    shared.append(0)
    fds = len(os.listdir("/proc/self/fd"))
    seen: list[int] = []

    def use() -> None:
        for _ in range(3):
            shared.append(1)
        seen.append(len(os.listdir("/proc/self/fd")))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [fds + 1]
    assert len(os.listdir("/proc/self/fd")) == fds


# ---- errors ----


def test_exceptions_of_methods_come_back(manager: Manager) -> None:
    counter = manager.Counter(3)
    with pytest.raises(LookupError) as caught:
        counter.fail()
    assert caught.value.args == ("no such thing", 3)


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


def test_wrong_authkey_is_refused(manager: Manager) -> None:
    with pytest.raises(AuthenticationError):
        Manager(manager.address, b"wrong").connect()
    with pytest.raises(AuthenticationError):
        managers.ListProxy(managers.Token("list", manager.address, "0"), "pickle", authkey=b"no")


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


def test_request_that_was_interrupted_does_not_confuse_the_next(manager: Manager) -> None:
    event, numbers = manager.Event(), manager.list([1, 2])

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            event.wait(30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert numbers[:] == [1, 2]
    event.set()


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


# ---- odds and ends ----


def test_program_that_is_a_server_serves_the_children_of_others(ctx: Any) -> None:
    code = (
        "import sys, test_managers\n"
        "m = test_managers.Manager(('127.0.0.1', 0), b'key')\n"
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
        assert server.wait(20) == 0


def test_proxy_brings_the_key_of_its_manager_from_anywhere() -> None:
    """A nested proxy arrives without a key, and this process's own is another."""
    with Manager(authkey=b"another") as manager:
        assert process.current_process().authkey != b"another"
        outer = manager.list([manager.dict(a=1)])
        assert outer[0]["a"] == 1


def test_xmlrpc_serializer() -> None:
    manager = SyncManager(("127.0.0.1", 0), serializer="xmlrpclib")
    with manager:
        shared = manager.Queue()
        shared.put(["text", 1, 2.5, True, None])
        assert shared.get() == ["text", 1, 2.5, True, None]
        del shared


def test_views_of_dicts_and_arrays_pickle_between_processes(manager: Manager) -> None:
    import array

    shared = manager.list([{"a": 1}.items(), {"a": 1}.keys(), array.array("d", [1.5])])
    assert shared[:] == [[("a", 1)], ["a"], array.array("d", [1.5])]


def test_proxy_types_are_made_once() -> None:
    first = managers.MakeProxyType("Some", ("a", "b"))
    assert first is managers.MakeProxyType("Some", ["a", "b"])
    assert first is not managers.MakeProxyType("Some", ("a",))
    assert first.__module__ == "billiard.managers" and first._exposed_ == ("a", "b")
    assert isinstance(managers.ListProxy[int], type(list[int]))


def test_functions_for_the_protocol() -> None:
    error = LookupError("x")
    assert managers.convert_to_error("#ERROR", error) is error
    assert isinstance(managers.convert_to_error("#TRACEBACK", "text"), RemoteError)
    assert "text" in str(managers.convert_to_error("#UNSERIALIZABLE", "text"))
    assert isinstance(managers.convert_to_error("#NONSENSE", 1), ValueError)
    with pytest.raises(TypeError):
        managers.convert_to_error("#TRACEBACK", 1)
    assert "add" in managers.public_methods(Counter())
    assert "_hidden" in managers.all_methods(Counter())
    assert "_hidden" not in managers.public_methods(Counter())


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
