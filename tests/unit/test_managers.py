"""billiard.managers: shared objects and their proxies, nesting and reference counts."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import threading
from typing import Any

import pytest
from manager_types import Counter, Manager, in_child

import billiard
from billiard import managers, process
from billiard.managers import RemoteError, SyncManager

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
    other = threading.Thread(target=barrier.wait, args=(60,))
    other.start()
    barrier.wait(60)
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
        assert condition.wait_for(lambda: state, 60) == [1]
    other.join()


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


# ---- odds and ends ----


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
        with pytest.raises(RemoteError, match="Empty"):
            shared.get_nowait()
        with pytest.raises(TypeError, match="cannot marshal"):
            shared.put(object())
        assert shared.empty()
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
