"""ctypes objects in shared memory, with or without a lock.

```
 RawValue, RawArray ──► a ctypes object on a block of shared memory (its _wrapper, see `heap`)
 Value, Array ────────► the same behind a lock: Synchronized, SynchronizedArray, ...
```
"""

from __future__ import annotations

import ctypes
import sys
from _operator import index, mul

from . import _core, heap
from . import get_context as get_context
from .context import assert_spawning as assert_spawning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

    from .context import BaseContext
    from .reduction import ForkingPickler as ForkingPickler

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


#: how shared objects are pickled, by type
_reducers: dict[type, Any] = {}
#: their class methods `from_buffer`, their sizes in bytes, and whether they are simple values
_known: dict[type, tuple[Any, int, bool]] = {}


def __getattr__(name: str) -> Any:
    if name == "ForkingPickler":  # not imported before it is needed: it takes its time
        from .reduction import ForkingPickler

        return ForkingPickler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "ForkingPickler"]


def _type_of(typecode_or_type: Any) -> Any:
    if not isinstance(typecode_or_type, str):
        return typecode_or_type
    try:
        return typecode_to_type[typecode_or_type]
    except KeyError:
        known = "".join(typecode_to_type)
        raise TypeError(f"typecode {typecode_or_type!r} is none of {known!r}") from None


def _new_object(type_: Any) -> Any:
    """An object of that type, all zero: that is how blocks come."""
    from_buffer, size, _ = _known.get(type_) or _register(type_)
    wrapper = _core.new_block(heap.BufferWrapper, size)
    obj = from_buffer(wrapper)
    obj._wrapper = wrapper
    return obj


def new_value(typecode_or_type: Any, args: tuple[Any, ...], lock: Any, ctx: Any) -> Any:
    """What `Value` does, for a context, which always has both keywords (ours)."""
    type_ = typecode_to_type.get(typecode_or_type) or _type_of(typecode_or_type)
    # As _new_object does, and the last lines as _with_lock: two calls are a tenth of all this.
    from_buffer, size, is_simple = _known.get(type_) or _register(type_)
    wrapper = _core.new_block(heap.BufferWrapper, size)
    obj = from_buffer(wrapper)
    obj._wrapper = wrapper
    obj.__init__(*args)
    if lock is True and is_simple and Synchronized is OUR_SYNCHRONIZED:
        return _core.new_guarded(Synchronized, obj, ctx.RLock())
    return _with_lock(obj, lock, ctx)


def RawValue(typecode_or_type: Any, *args: Any) -> Any:
    """A ctypes object in shared memory, initialised with `args` (origin: multiprocessing)."""
    obj = _new_object(typecode_to_type.get(typecode_or_type) or _type_of(typecode_or_type))
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type: Any, size_or_initializer: Any) -> Any:
    """A ctypes array in shared memory (origin: multiprocessing).

    With a number: that many elements, all zero; memory is taken when they are first touched.
    Otherwise: a sequence of what they are to be.
    """
    type_ = _type_of(typecode_or_type)
    try:
        size = index(size_or_initializer)
    except TypeError:
        obj = _new_object(type_ * len(size_or_initializer))
        obj.__init__(*size_or_initializer)
        return obj
    return _new_object(type_ * size)


def Value(typecode_or_type: Any, *args: Any, **kwds: Any) -> Any:
    """`RawValue` with a lock (origin: multiprocessing).

    Keywords: `lock`, another lock than a new `RLock`, or False for none; `ctx`, the context of the
    new one. Raises AttributeError for a lock that has no `acquire`.
    """
    return _with_keywords(RawValue(typecode_or_type, *args), kwds)


def Array(typecode_or_type: Any, size_or_initializer: Any, **kwds: Any) -> Any:
    """`RawArray` with a lock (origin: multiprocessing); keywords as for `Value`."""
    return _with_keywords(RawArray(typecode_or_type, size_or_initializer), kwds)


def _with_keywords(obj: Any, kwds: dict[str, Any]) -> Any:
    lock, ctx = kwds.pop("lock", None), kwds.pop("ctx", None)
    if kwds:
        raise ValueError(f"unrecognized keyword argument(s): {list(kwds)}")
    return _with_lock(obj, lock, ctx)


def _with_lock(obj: Any, lock: Any, ctx: Any) -> Any:
    if lock is False:
        return obj
    if lock in (True, None):
        lock = (ctx or get_context()).RLock()
    elif not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return synchronized(obj, lock, ctx)


def copy(obj: Any) -> Any:
    """A copy of a ctypes object in shared memory (origin: multiprocessing)."""
    new_obj = _new_object(type(obj))
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
    if not isinstance(obj, (ctypes.Structure, ctypes.Union)):
        raise AttributeError(f"{obj!r} has no fields")
    return _class_for(type(obj))(obj, lock, ctx)


#: the classes that were made for structures and unions
class_cache: MutableMapping[Any, Any] | None = None


def _class_for(cls: Any) -> Any:
    """The class with a property for each field of a structure or union."""
    global class_cache
    if class_cache is None:
        import weakref

        class_cache = weakref.WeakKeyDictionary()
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
        return mul, self._state


def _by_name(type_: Any) -> Any:
    if issubclass(type_, ctypes.Array):
        module = sys.modules.get(type_.__module__)
        if getattr(module, type_.__name__, None) is not type_:
            return _ArrayType(type_)
    return type_


def reduce_ctype(obj: Any) -> tuple[Any, ...]:
    """How a ctypes object in shared memory is pickled; one that is not is pickled as ever."""
    wrapper = getattr(obj, "_wrapper", None)
    if wrapper is None:
        reduced: tuple[Any, ...] = obj.__reduce_ex__(2)
        return reduced
    assert_spawning(obj)
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (_by_name(obj._type_), wrapper, obj._length_)
    return rebuild_ctype, (type(obj), wrapper, None)


def rebuild_ctype(type_: Any, wrapper: heap.BufferWrapper, length: int | None) -> Any:
    """The ctypes object on that memory; an array of `length` if that is given."""
    if length is not None:
        type_ = type_ * length
    obj = (_known.get(type_) or _register(type_))[0](wrapper)
    obj._wrapper = wrapper
    return obj


def _register(type_: Any) -> tuple[Any, int, bool]:
    """Have objects of that type pickled as ours; `reduction` takes them over if it comes later.

    Returns what is to be known of the type.
    """
    size = ctypes.sizeof(type_)
    _reducers[type_] = reduce_ctype
    pickler = getattr(sys.modules.get("billiard.reduction"), "ForkingPickler", None)
    if pickler is not None:
        pickler.register(type_, reduce_ctype)
    known = _known[type_] = type_.from_buffer, size, issubclass(type_, ctypes._SimpleCData)
    return known


# ---- the objects with a lock ----


def make_property(name: str) -> Any:
    """A property that gets and sets `_obj.name` with the lock held (origin: multiprocessing)."""
    return _core.guarded_field(name)


class SynchronizedBase(_core.Guarded):
    """A ctypes object with a lock (origin: multiprocessing).

    It has the lock's methods, and the object's bytes as a buffer: numpy can view it in place.
    """

    def __init__(self, obj: Any, lock: Any = None, ctx: BaseContext | None = None) -> None:
        _core.Guarded.__init__(self, obj, lock or (ctx or get_context()).RLock())

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *args: Any) -> Any:
        return self._lock.__exit__(*args)

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


#: As `OUR_LOCK` of `synchronize`.
OUR_VALUE, OUR_SYNCHRONIZED = Value, Synchronized


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
