"""ctypes objects in shared memory, with and without locks."""

from __future__ import annotations

import array
import ctypes
import gc
import pickle
import threading
import tracemalloc
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from scripts import run_file

import billiard
from billiard import _core, heap, sharedctypes, synchronize
from billiard.exceptions import OwnerDiedError
from billiard.synchronize import Barrier, Condition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = "bBhHiIlLqQfd"


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_double))


class Point3(Point):
    _fields_ = (("z", ctypes.c_short),)


class Odd(ctypes.Structure):
    _fields_ = (("class", ctypes.c_int), ("two words", ctypes.c_int))


def run(ctx: Any, target: Any, *args: Any) -> None:
    process = ctx.Process(target=target, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0


def double(values: list[Any], arrays: list[Any]) -> None:
    for value in values:
        value.value *= 2
    for numbers in arrays:
        for i in range(len(numbers)):
            numbers[i] *= 2


def test_every_typecode_is_shared(ctx: Any) -> None:
    values = [ctx.Value(code, 3) for code in NUMBERS] + [ctx.RawValue(c, 3) for c in NUMBERS]
    arrays = [ctx.Array(code, [1, 2, 3]) for code in NUMBERS]
    arrays += [ctx.RawArray(code, 2) for code in NUMBERS]
    run(ctx, double, values, arrays)
    assert all(value.value == 6 for value in values)
    assert all(list(numbers) in ([2, 4, 6], [0, 0]) for numbers in arrays)


def test_the_typecodes_are_those_of_array() -> None:
    assert set(array.typecodes) <= set(sharedctypes.typecode_to_type)
    assert billiard.Value("q", -(2**62)).value == -(2**62)
    assert billiard.Value("Q", 2**63).value == 2**63
    assert billiard.Value("u", "x").value == billiard.Value("w", "x").value == "x"
    with pytest.raises(TypeError, match="typecode 'z'"):
        billiard.Value("z")


def edit(text: Any, point: Any) -> None:
    assert text.value == b"hello"
    text.value = b"bye"
    point.x += 1
    point.y = 0.5


def test_strings_and_structures_are_shared(ctx: Any) -> None:
    text, point = ctx.Array("c", b"hello\0\0\0"), ctx.Value(Point3, 4, 2.5, 9)
    run(ctx, edit, text, point)
    assert text.value == b"bye"
    assert text.raw == b"bye\0o\0\0\0"
    assert (point.x, point.y, point.z) == (5, 0.5, 9)
    assert repr(point).startswith("<SynchronizedPoint3 wrapper for <")


def test_arrays_of_structures_and_of_arrays(ctx: Any) -> None:
    points = billiard.Array(Point, [(1, 2.0), (3, 4.0)])
    points[1].x = 7
    assert [(p.x, p.y) for p in points] == [(1, 2.0), (7, 4.0)]
    rows = billiard.RawArray(ctypes.c_int * 3, 2)
    rows[1][2] = 5
    assert [list(row) for row in rows] == [[0, 0, 0], [0, 0, 5]]
    run(ctx, edit_row, rows, points)
    assert rows[0][0] == 1
    assert points[0].x == 8


def edit_row(rows: Any, points: Any) -> None:
    rows[0][0] = 1
    points[0].x = 8


def test_fields_may_have_any_name() -> None:
    odd = billiard.Value(Odd, 1, 2)
    setattr(odd, "class", 5)
    assert (getattr(odd, "class"), getattr(odd, "two words")) == (5, 2)


def test_an_array_is_indexed_and_sliced_as_ctypes_does() -> None:
    numbers = billiard.Array("i", range(10))
    assert (len(numbers), numbers[3], numbers[-1], numbers[2:5]) == (10, 3, 9, [2, 3, 4])
    numbers[:3] = [7, 8, 9]
    assert list(numbers)[:4] == [7, 8, 9, 3]
    assert numbers.__getslice__(0, 2) == [7, 8]
    numbers.__setslice__(0, 2, [1, 2])
    assert list(numbers.get_obj())[:3] == [1, 2, 9]
    with pytest.raises(IndexError):
        numbers[10]


@pytest.mark.parametrize("bad", [-1, "x", 1.5, None])
def test_a_length_that_is_none_is_an_error(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        billiard.RawArray("i", bad)


def test_the_lock_is_a_new_rlock_or_the_one_given_or_none(ctx: Any) -> None:
    assert type(ctx.Value("i").get_lock()).__name__ == "RLock"
    lock = ctx.Lock()
    for made in (ctx.Value("i", lock=lock), ctx.Array("i", 2, lock=lock)):
        assert made.get_lock() is lock
        assert made.acquire() and not made.acquire(False)
        made.release()
        with made:
            assert lock.locked()
    assert isinstance(ctx.Value("i", lock=False), ctypes.c_int)
    assert not hasattr(ctx.Array("i", 2, lock=False), "get_lock")
    for asked_for in (True, 1):
        assert type(ctx.Array("i", 2, lock=asked_for).get_lock()).__name__ == "RLock"
    for bad in (object(), 5, "lock"):
        with pytest.raises(AttributeError, match="acquire"):
            ctx.Value("i", lock=bad)
        with pytest.raises(AttributeError, match="acquire"):
            sharedctypes.synchronized(ctypes.c_int(), bad)
    with pytest.raises(ValueError, match="unrecognized"):
        sharedctypes.Value("i", look=lock)


class Plain:
    """The least that a lock may have."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def acquire(self) -> None:
        self.calls.append("acquire")

    def release(self) -> None:
        self.calls.append("release")


def test_each_access_takes_the_lock() -> None:
    lock = Plain()
    value = sharedctypes.synchronized(billiard.RawValue("i", 1), lock)
    value.value += 1
    assert value.value == 2
    assert lock.calls == ["acquire", "release"] * 3
    with pytest.raises(TypeError):
        value.value = "x"
    assert lock.calls[-1] == "release"


def test_only_ctypes_objects_can_be_synchronized() -> None:
    for bad in (None, 5, "text", object()):
        with pytest.raises(AttributeError, match="fields"):
            sharedctypes.synchronized(bad)


def test_an_access_waits_for_whoever_holds_the_lock() -> None:
    value = billiard.Value("i", 1)
    accesses: list[Callable[[], Any]] = [
        lambda: value.value,
        lambda: setattr(value, "value", 5),
        lambda: setattr(value, "value", "x"),
    ]
    for access in accesses:
        results: list[Any] = []

        def run_it(access: Any = access, results: Any = results) -> None:
            try:
                results.append(access())
            except TypeError as error:
                results.append(error)

        thread = threading.Thread(target=run_it)
        with value:
            thread.start()
            thread.join(0.05)
            assert results == []
        thread.join()
        assert value.acquire(False)
        value.release()
        assert results[0] in (1, None) or isinstance(results[0], TypeError)
    assert value.value == 5


class Meddler(ctypes.Structure):
    """Whoever gets or sets `x` finds that the lock has been released meanwhile."""

    _fields_ = (("x", ctypes.c_int),)
    lock: Any = None


def meddle(meddler: Meddler, value: int = 0) -> int:
    Meddler.lock.release()
    if value < 0:
        raise KeyError(value)
    return 7


def test_an_access_says_that_the_lock_was_not_held_at_its_end() -> None:
    value = billiard.Value(Meddler)
    Meddler.x = property(meddle, meddle)  # type: ignore[assignment]
    Meddler.lock = value.get_lock()
    for access in (
        lambda: value.x,
        lambda: setattr(value, "x", 1),
        lambda: setattr(value, "x", -1),
    ):
        with pytest.raises(AssertionError, match="not owned"):
            access()
        assert not Meddler.lock.locked()


def test_a_value_cannot_be_deleted_or_got_from_something_else() -> None:
    value = billiard.Value("i", 3)
    with pytest.raises(AttributeError, match="deleted"):
        del value.value
    assert value.value == 3
    field: Any = sharedctypes.Synchronized.value
    with pytest.raises(TypeError):
        field.__get__(value.get_obj())
    bare = sharedctypes.Synchronized.__new__(sharedctypes.Synchronized)
    accesses: list[Callable[[], Any]] = [
        lambda: bare.value,
        lambda: setattr(bare, "value", 1),
        bare.get_obj,
        bare.get_lock,
    ]
    for access in accesses:
        with pytest.raises(RuntimeError, match="__init__"):
            access()


class Number(ctypes.c_int):
    """A simple type of the user's, which starts with more than it was told."""

    def __init__(self, value: int = 1) -> None:
        ctypes.c_int.__init__(self, value + 1)


def test_the_initializer_of_a_type_is_called(ctx: Any) -> None:
    assert [ctx.Value(Number).value, ctx.Value(Number, 5).value] == [2, 6]
    with pytest.raises(TypeError):
        ctx.Value("i", 1, 2)
    with pytest.raises(TypeError, match="size"):
        ctx.Value(int)


def test_an_object_gets_one_lock_only() -> None:
    value = billiard.Value("i")
    with pytest.raises(AssertionError):
        sharedctypes.synchronized(value)


def test_a_copy_is_shared_and_separate(ctx: Any) -> None:
    point = ctx.RawValue(Point, 1, 2.0)
    other = sharedctypes.copy(point)
    run(ctx, edit_point, other)
    assert (point.x, other.x, other.y) == (1, 5, 2.0)


def edit_point(point: Any) -> None:
    point.x = 5


def test_shared_objects_cannot_be_pickled_at_other_times() -> None:
    for made in (billiard.Value("i"), billiard.Array("i", 2)):
        with pytest.raises(RuntimeError, match="inheritance"):
            pickle.dumps(made)


def test_numpy_views_an_array_in_place(ctx: Any) -> None:
    numpy = pytest.importorskip("numpy")
    numbers = billiard.Array("d", 1000)
    view = numpy.frombuffer(numbers)
    view[7] = 2.5
    assert numbers[7] == 2.5
    assert memoryview(numbers).nbytes == 8000
    run(ctx, double, [], [numbers])
    assert view[7] == 5.0


def grow(value: Any, times: int) -> None:
    for _ in range(times):
        with value.get_lock():
            value.value += 1


def test_no_increment_is_lost(ctx: Any) -> None:
    value = ctx.Value("q", 0)
    processes = [ctx.Process(target=grow, args=(value, 1000)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert value.value == 2000


def die_holding(value: Any, ready: Any) -> None:
    value.acquire()
    ready.set()
    ready.wait(0)
    billiard.Event().wait()


def test_an_access_after_the_owner_s_death_says_so_once_and_leaves_the_lock_free(ctx: Any) -> None:
    value, ready = ctx.Value("i", 3), ctx.Event()
    process = ctx.Process(target=die_holding, args=(value, ready))
    process.start()
    ready.wait()
    process.kill()
    process.join()
    with pytest.raises(OwnerDiedError):
        _ = value.value
    assert not value.get_lock().locked()
    assert value.value == 3


@pytest.mark.parametrize("cls", [sharedctypes.Synchronized, Condition, Barrier])
def test_the_garbage_collector_may_look_at_an_object_that_is_being_made(cls: Any) -> None:
    # So many that the objects' own come from the allocator, which may collect.
    dicts: list[Any] = [{} for _ in range(1000)]
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        dicts += [cls.__new__(cls) for _ in range(100)]
    finally:
        gc.set_threshold(*thresholds)
    assert len(dicts) == 1100


def test_attributes_may_be_put_on_values_and_locks() -> None:
    makers: list[Callable[[], Any]] = [
        lambda: billiard.Value("i"),
        *(billiard.Lock, billiard.RLock, billiard.Semaphore),
    ]
    for make in makers:
        made = make()
        made.note = made  # so that only the garbage collector can free it
        gone = weakref.ref(made)
        assert vars(made) == {"note": made}
        del made
        gc.collect()
        assert gone() is None


def test_what_a_context_makes_is_what_the_classes_make(ctx: Any) -> None:
    for made in (ctx.Lock(), ctx.RLock()):
        called = type(made)(ctx=ctx)
        assert repr(made) == repr(called)
        assert (made.kind, made.maxvalue) == (called.kind, called.maxvalue)
        with pytest.raises(RuntimeError, match="already"):
            made.__init__()
    with pytest.raises(TypeError):
        _core.new_lock(int)  # type: ignore[type-var]


def test_a_context_calls_what_has_been_put_in_the_place_of_a_class(ctx: Any) -> None:
    for module, name, args in [
        (synchronize, "Lock", ()),
        (synchronize, "RLock", ()),
        (sharedctypes, "Value", ("i", 1)),
        (sharedctypes, "Synchronized", ()),
    ]:
        with patch.object(module, name) as other:
            made = ctx.Value("i", 1) if name == "Synchronized" else getattr(ctx, name)(*args)
        assert made is other.return_value
        assert other.call_count == 1


AT_EXIT = """
import billiard, os
from billiard.sharedctypes import Synchronized

class Last:
    def __init__(self):
        lock = billiard.Lock()
        value, empty = billiard.Value("i", 5, lock=lock), Synchronized.__new__(Synchronized)
        self.write = os.write
        self.calls = [
            lambda: lock.acquire(True, 0.01),
            lambda: lock.acquire(True, 0.01),
            lock.release,
            lock.release,
            lambda: value.value,
            lambda: delattr(value, "value"),
            lambda: empty.value,
            empty.get_obj,
        ]

    def __del__(self):
        for call in self.calls:
            try:
                outcome = repr(call())
            except BaseException as exc:
                outcome = type(exc).__name__
            self.write(1, outcome.encode() + b" ")

last = Last()
"""


def test_locks_and_values_can_be_used_while_the_interpreter_ends(tmp_path: Path) -> None:
    done = run_file(tmp_path, AT_EXIT)
    expected = "True False None ValueError 5 AttributeError RuntimeError RuntimeError"
    assert done.stdout.split() == expected.split()


def test_nothing_is_left_of_what_is_dropped() -> None:
    def make_and_drop(times: int) -> None:
        for _ in range(times):
            billiard.Lock()
            billiard.RLock()
            billiard.Value("i", 1).value += 1
            billiard.Array("i", 4)[0] = 1

    def offsets() -> int:
        return max(heap.BufferWrapper(8).offset for _ in range(3))

    make_and_drop(100)
    gc.collect()
    tracemalloc.start()
    try:
        before, highest = tracemalloc.get_traced_memory()[0], offsets()
        make_and_drop(2500)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
        assert offsets() == highest
    finally:
        tracemalloc.stop()
