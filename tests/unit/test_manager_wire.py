"""Managers across implementations: ours and the multiprocessing of real CPythons, over TCP.

The peers are interpreters that have no billiard: what we send must be readable without it.
"""

from __future__ import annotations

import gc
import queue
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from scripts import interpreters

from billiard import _manager_wire
from billiard.exceptions import AuthenticationError
from billiard.managers import DictProxy, ListProxy, RemoteError, SyncManager, Token


def cpythons() -> list[str]:
    """One interpreter of each version there is, 3.11 and newer; of ours, the one that runs us."""
    ours = {sys.version_info[:2]: getattr(sys, "_base_executable", sys.executable)}
    found = interpreters() | ours
    return [found[version] for version in sorted(found) if version >= (3, 11)]


SHARED = """
import multiprocessing, queue, sys
from multiprocessing.managers import BaseManager, ListProxy, DictProxy, RemoteError, SyncManager

class Counter:
    def __init__(self, n=0):
        self.n = n
    def add(self, k=1):
        self.n += k
        return self.n
    def numbers(self, n):
        yield from range(n)
    def fail(self):
        raise LookupError('no such thing')

class Manager(SyncManager):
    pass

Manager.register('Counter', Counter, method_to_typeid={'numbers': 'Iterator'})
"""

SERVER = """
server = Manager(('127.0.0.1', 0), b'secret').get_server()
print(server.address[1], flush=True)
server.serve_forever()
"""

CLIENT = """
# Proxies that arrive inside others use this key there.
multiprocessing.current_process().authkey = b'secret'
manager = Manager(('127.0.0.1', int(sys.argv[1])), b'secret')
manager.connect()

counter = manager.Counter(5)
assert counter.add(2) == 7 and list(counter.numbers(3)) == [0, 1, 2]
try:
    counter.fail()
except LookupError as exc:
    assert exc.args == ('no such thing',)
try:
    counter._callmethod('secret')
except RemoteError as exc:
    assert 'not in exposed' in str(exc)
table = manager.dict(a=1)
table['b'] = 2
assert list(table) == ['a', 'b'] and table.copy() == {'a': 1, 'b': 2}
jobs = manager.Queue()
jobs.put(table)
outer = manager.list([jobs.get(), manager.Queue()])
assert type(outer[0]) is DictProxy, type(outer[0])
outer[0]['c'] = 3
assert table['c'] == 3
last = outer.pop()
last.put('x')
assert last.get() == 'x'
try:
    last.get_nowait()
except queue.Empty:
    pass
with manager.Lock():
    pass
try:
    Manager(('127.0.0.1', int(sys.argv[1])), b'wrong').connect()
except multiprocessing.AuthenticationError:
    pass
else:
    raise AssertionError
assert 'billiard' not in sys.modules
del counter, table, jobs, outer, last
import gc; gc.collect()
assert manager._number_of_objects() == 0, manager._debug_info()
"""


class Counter:
    def __init__(self, n: int = 0) -> None:
        self.n = n

    def add(self, k: int = 1) -> int:
        self.n += k
        return self.n

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    def fail(self) -> None:
        raise LookupError("no such thing")


class Manager(SyncManager):
    pass


Manager.register("Counter", Counter, method_to_typeid={"numbers": "Iterator"})


@pytest.fixture(params=cpythons(), ids=lambda path: path.split("/")[-3])
def cpython(request: pytest.FixtureRequest) -> str:
    path: str = request.param
    return path


def test_cpython_s_clients_use_our_manager(cpython: str) -> None:
    with Manager(("127.0.0.1", 0), b"secret") as manager:
        done = subprocess.run(
            [cpython, "-I", "-c", SHARED + CLIENT, str(manager.address[1])],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert manager._number_of_objects() == 0


def test_our_clients_use_cpython_s_manager(cpython: str) -> None:
    server = subprocess.Popen(
        [cpython, "-I", "-c", SHARED + SERVER], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    with server.stdout:
        address = ("127.0.0.1", int(server.stdout.readline()))
        manager = Manager(address, b"secret")
        manager.connect()
        use(manager)
        with pytest.raises(AuthenticationError):
            Manager(address, b"wrong").connect()
        gc.collect()
        assert manager._number_of_objects() == 0, manager._debug_info()
        manager._request("shutdown")
        assert server.wait(60) == 0


def use(manager: Any) -> None:
    counter = manager.Counter(5)
    assert counter.add(2) == 7 and list(counter.numbers(3)) == [0, 1, 2]
    with pytest.raises(LookupError, match="no such thing"):
        counter.fail()
    with pytest.raises(RemoteError, match="not in exposed"):
        counter._callmethod("secret")
    table = manager.dict(a=1)
    table["b"] = 2
    assert list(table) == ["a", "b"] and table.copy() == {"a": 1, "b": 2}
    jobs = manager.Queue()
    jobs.put(table)
    outer = manager.list([jobs.get(), manager.Queue()])
    assert type(outer[0]) is DictProxy
    outer[0]["c"] = 3
    assert table["c"] == 3
    with pytest.raises(queue.Empty):
        outer[1].get_nowait()
    with manager.Lock():
        pass


def test_what_goes_to_other_peers_names_nothing_of_ours() -> None:
    class Own(ListProxy):  # type: ignore[misc, valid-type]
        """A type of proxy that no peer has."""

    token = Token("list", ("127.0.0.1", 1), "abc")
    for thing in (token, *(kind(token, "pickle", incref=False) for kind in (ListProxy, Own))):
        data = _manager_wire.dumps([{1: thing}])
        assert b"multiprocessing.managers" in data
        assert b"billiard" not in data and b"Own" not in data


def test_multiprocessing_s_classes_are_read_as_ours() -> None:
    token = Token("list", ("127.0.0.1", 1), "abc")
    back = _manager_wire.loads(_manager_wire.dumps(token))
    assert type(back) is Token and back.__getstate__() == token.__getstate__()
    assert _manager_wire.loads(_manager_wire.dumps([1, "x"])) == [1, "x"]
