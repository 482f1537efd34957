"""ctypes objects in shared memory, with or without a lock.

```
 RawValue, RawArray ──► a ctypes object on a block of shared memory (its _wrapper, see `heap`)
 Value, Array ────────► the same behind a lock: Synchronized, SynchronizedArray, ...
```
"""

from __future__ import annotations

import ctypes
import operator
import sys
import weakref

from . import _core, heap
from . import get_context as get_context
from .context import assert_spawning as assert_spawning
from .reduction import ForkingPickler as ForkingPickler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .context import BaseContext

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

#: the typecodes of `array`, and `c` for characters
typecode_to_type: dict[str, type[Any]] = {
    "c": ctypes.c_char,
    "u": ctypes.c_wchar,
    "w": ctypes.c_wchar,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


def _type_of(typecode_or_type: Any) -> Any:
    if not isinstance(typecode_or_type, str):
        return typecode_or_type
    try:
        return typecode_to_type[typecode_or_type]
    except KeyError:
        known = "".join(typecode_to_type)
        raise TypeError(f"typecode {typecode_or_type!r} is none of {known!r}") from None


def _new_value(type_: Any) -> Any:
    """An object of that type, all zero: that is how blocks come."""
    return rebuild_ctype(type_, heap.BufferWrapper(ctypes.sizeof(type_)), None)


def RawValue(typecode_or_type: Any, *args: Any) -> Any:
    """A ctypes object in shared memory, initialised with `args` (origin: multiprocessing)."""
    obj = _new_value(_type_of(typecode_or_type))
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type: Any, size_or_initializer: Any) -> Any:
    """A ctypes array in shared memory (origin: multiprocessing).

    With a number: that many elements, all zero; memory is taken when they are first touched.
    Otherwise: a sequence of what they are to be.
    """
    type_ = _type_of(typecode_or_type)
    try:
        size = operator.index(size_or_initializer)
    except TypeError:
        obj = _new_value(type_ * len(size_or_initializer))
        obj.__init__(*size_or_initializer)
        return obj
    return _new_value(type_ * size)


def Value(typecode_or_type: Any, *args: Any, **kwds: Any) -> Any:
    """`RawValue` with a lock (origin: multiprocessing).

    Keywords: `lock`, another lock than a new `RLock`, or False for none; `ctx`, the context of the
    new one. Raises AttributeError for a lock that has no `acquire`.
    """
    lock, ctx = _options(kwds)
    obj = RawValue(typecode_or_type, *args)
    return obj if lock is False else synchronized(obj, lock, ctx=ctx)


def Array(typecode_or_type: Any, size_or_initializer: Any, **kwds: Any) -> Any:
    """`RawArray` with a lock (origin: multiprocessing); keywords as for `Value`."""
    lock, ctx = _options(kwds)
    obj = RawArray(typecode_or_type, size_or_initializer)
    return obj if lock is False else synchronized(obj, lock, ctx=ctx)


def _options(kwds: dict[str, Any]) -> tuple[Any, BaseContext | None]:
    """What `Value` and `Array` were given: the lock (None: a new one, False: none), the context."""
    lock = kwds.pop("lock", None)
    ctx = kwds.pop("ctx", None)
    if kwds:
        raise ValueError(f"unrecognized keyword argument(s): {list(kwds)}")
    if lock is True:
        lock = None
    if lock is not None and lock is not False and not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return lock, ctx


def copy(obj: Any) -> Any:
    """A copy of a ctypes object in shared memory (origin: multiprocessing)."""
    new_obj = _new_value(type(obj))
    ctypes.pointer(new_obj)[0] = obj
    return new_obj


def synchronized(obj: Any, lock: Any = None, ctx: BaseContext | None = None) -> Any:
    """A ctypes object in shared memory with a lock, by default a new `RLock` (origin:
    multiprocessing). The lock may be of any context."""
    if isinstance(obj, SynchronizedBase):
        raise AssertionError("object already synchronized")
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        if obj._type_ is ctypes.c_char:
            return SynchronizedString(obj, lock, ctx)
        return SynchronizedArray(obj, lock, ctx)
    return _class_for(type(obj))(obj, lock, ctx)


def _class_for(cls: Any) -> Any:
    """The class with a property for each field of a structure or union."""
    made = class_cache.get(cls)
    if made is None:
        names = {field[0] for base in cls.__mro__ for field in getattr(base, "_fields_", ())}
        body = {name: make_property(name) for name in sorted(names)}
        made = class_cache[cls] = type("Synchronized" + cls.__name__, (SynchronizedBase,), body)
    return made


# ---- pickling, while a child is being started ----


class _ArrayType:
    """An array type in a pickle: such types have no names to be found by."""

    def __init__(self, type_: Any) -> None:
        self._state = (_by_name(type_._type_), type_._length_)

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.mul, self._state


def _by_name(type_: Any) -> Any:
    if issubclass(type_, ctypes.Array):
        module = sys.modules.get(type_.__module__)
        if getattr(module, type_.__name__, None) is not type_:
            return _ArrayType(type_)
    return type_


def reduce_ctype(obj: Any) -> tuple[Any, ...]:
    """How a ctypes object in shared memory is pickled."""
    assert_spawning(obj)
    if isinstance(obj, ctypes.Array):
        wrapper = obj._wrapper  # type: ignore[attr-defined]
        return rebuild_ctype, (_by_name(obj._type_), wrapper, obj._length_)
    return rebuild_ctype, (type(obj), obj._wrapper, None)


def rebuild_ctype(type_: Any, wrapper: heap.BufferWrapper, length: int | None) -> Any:
    """The ctypes object on that memory; an array of `length` if that is given."""
    if length is not None:
        type_ = type_ * length
    ForkingPickler.register(type_, reduce_ctype)
    obj = type_.from_buffer(wrapper.create_memoryview())
    obj._wrapper = wrapper
    return obj


# ---- the objects with a lock ----

class_cache: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def make_property(name: str) -> Any:
    """A property that gets and sets `_obj.name` with the lock held (origin: multiprocessing)."""
    return _core.GuardedField(name)


class SynchronizedBase(_core.Guarded):
    """A ctypes object with a lock (origin: multiprocessing).

    It has the lock's methods, and the object's bytes as a buffer: numpy can view it in place.
    """

    __slots__ = ()

    def __init__(self, obj: Any, lock: Any = None, ctx: BaseContext | None = None) -> None:
        _core.Guarded.__init__(self, obj, lock or (ctx or get_context()).RLock())

    def __reduce__(self) -> tuple[Any, ...]:
        assert_spawning(self)
        return synchronized, (self._obj, self._lock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} wrapper for {self._obj}>"


class Synchronized(SynchronizedBase):
    """A simple value with a lock: each access to `value` takes it (origin: multiprocessing).

    `v.value += 1` is two accesses: hold the lock around it, `with v.get_lock()`.
    """

    __slots__ = ()

    value = make_property("value")


class SynchronizedArray(SynchronizedBase):
    """An array with a lock: each access to items takes it (origin: multiprocessing)."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._obj)

    def __getitem__(self, i: Any) -> Any:
        with self._lock:
            return self._obj[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        with self._lock:
            self._obj[i] = value

    def __getslice__(self, start: int, stop: int) -> Any:
        return self[start:stop]

    def __setslice__(self, start: int, stop: int, values: Any) -> None:
        self[start:stop] = values


class SynchronizedString(SynchronizedArray):
    """An array of characters with a lock: `value` up to the first NUL, `raw` all of it (origin:
    multiprocessing)."""

    __slots__ = ()

    value = make_property("value")
    raw = make_property("raw")
