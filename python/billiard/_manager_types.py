"""The proxies of `SyncManager`'s types. Origin: multiprocessing."""

from __future__ import annotations

import time
import types

from ._manager_proxies import _MODULE, BaseProxy, MakeProxyType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self


class IteratorProxy(BaseProxy):
    """Proxy of an iterator or a generator."""

    __module__ = _MODULE
    _exposed_ = ("__next__", "send", "throw", "close")

    def __iter__(self) -> Self:
        return self

    def __next__(self, *args: Any) -> Any:
        return self._callmethod("__next__", args)

    def send(self, *args: Any) -> Any:
        """`generator.send`."""
        return self._callmethod("send", args)

    def throw(self, *args: Any) -> Any:
        """`generator.throw`."""
        return self._callmethod("throw", args)

    def close(self, *args: Any) -> Any:
        """`generator.close`."""
        return self._callmethod("close", args)


class AcquirerProxy(BaseProxy):
    """Proxy of a lock or a semaphore."""

    __module__ = _MODULE
    _exposed_: tuple[str, ...] = ("acquire", "release")

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Any:
        """Acquire it; whether that succeeded within `timeout` seconds."""
        return self._callmethod("acquire", (blocking,) if timeout is None else (blocking, timeout))

    def release(self) -> Any:
        """Release it."""
        return self._callmethod("release")

    def __enter__(self) -> Any:
        return self._callmethod("acquire")

    def __exit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
        self._callmethod("release")


class ConditionProxy(AcquirerProxy):
    """Proxy of a condition."""

    __module__ = _MODULE
    _exposed_ = ("acquire", "release", "wait", "notify", "notify_all")

    def wait(self, timeout: float | None = None) -> Any:
        """Wait to be notified, for up to `timeout` seconds; whether it was."""
        return self._callmethod("wait", (timeout,))

    def notify(self, n: int = 1) -> Any:
        """Wake `n` of those that wait."""
        return self._callmethod("notify", (n,))

    def notify_all(self) -> Any:
        """Wake all that wait."""
        return self._callmethod("notify_all")

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until `predicate()` is true; its last value. It runs here, not in the server."""
        end = None if timeout is None else time.monotonic() + timeout
        left = None
        while not (result := predicate()):
            if end is not None:
                left = end - time.monotonic()
                if left <= 0:
                    break
            self.wait(left)
        return result


class EventProxy(BaseProxy):
    """Proxy of an event."""

    __module__ = _MODULE
    _exposed_ = ("is_set", "set", "clear", "wait")

    def is_set(self) -> Any:
        """Whether it is set."""
        return self._callmethod("is_set")

    def set(self) -> Any:
        """Set it."""
        return self._callmethod("set")

    def clear(self) -> Any:
        """Clear it."""
        return self._callmethod("clear")

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for it for up to `timeout` seconds; whether it is set."""
        return self._callmethod("wait", (timeout,))


class BarrierProxy(BaseProxy):
    """Proxy of a barrier."""

    __module__ = _MODULE
    _exposed_ = ("__getattribute__", "wait", "abort", "reset")

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the others; a number that each party gets a different one of."""
        return self._callmethod("wait", (timeout,))

    def abort(self) -> Any:
        """Break it: those that wait get `BrokenBarrierError`."""
        return self._callmethod("abort")

    def reset(self) -> Any:
        """Make it as new."""
        return self._callmethod("reset")

    @property
    def parties(self) -> Any:
        """How many have to wait for it to open."""
        return self._callmethod("__getattribute__", ("parties",))

    @property
    def n_waiting(self) -> Any:
        """How many do."""
        return self._callmethod("__getattribute__", ("n_waiting",))

    @property
    def broken(self) -> Any:
        """Whether it is broken."""
        return self._callmethod("__getattribute__", ("broken",))


class NamespaceProxy(BaseProxy):
    """Proxy of a namespace: attributes without a leading underscore are the referent's."""

    __module__ = _MODULE
    _exposed_ = ("__getattribute__", "__setattr__", "__delattr__")

    def __getattr__(self, key: str) -> Any:
        if key[0] == "_":
            return object.__getattribute__(self, key)
        return object.__getattribute__(self, "_callmethod")("__getattribute__", (key,))

    def __setattr__(self, key: str, value: Any) -> None:
        if key[0] == "_":
            return object.__setattr__(self, key, value)
        object.__getattribute__(self, "_callmethod")("__setattr__", (key, value))
        return None

    def __delattr__(self, key: str) -> None:
        if key[0] == "_":
            return object.__delattr__(self, key)
        object.__getattribute__(self, "_callmethod")("__delattr__", (key,))
        return None


class ValueProxy(BaseProxy):
    """Proxy of a value."""

    __module__ = _MODULE
    _exposed_ = ("get", "set")

    def get(self) -> Any:
        """The value."""
        return self._callmethod("get")

    def set(self, value: Any) -> Any:
        """Set the value."""
        return self._callmethod("set", (value,))

    value = property(get, set)
    __class_getitem__: Any = classmethod(types.GenericAlias)


BaseListProxy = MakeProxyType(
    "BaseListProxy",
    (
        *("__add__", "__contains__", "__delitem__", "__getitem__", "__len__", "__mul__"),
        *("__reversed__", "__rmul__", "__setitem__", "append", "count", "extend", "index"),
        *("insert", "pop", "remove", "reverse", "sort", "__imul__"),
    ),
)


class ListProxy(BaseListProxy):  # type: ignore[misc, valid-type]
    """Proxy of a list."""

    __module__ = _MODULE

    def __iadd__(self, value: Any) -> Self:
        self._callmethod("extend", (value,))
        return self

    def __imul__(self, value: Any) -> Self:
        self._callmethod("__imul__", (value,))
        return self

    __class_getitem__: Any = classmethod(types.GenericAlias)


_BaseDictProxy = MakeProxyType(
    "DictProxy",
    (
        *("__contains__", "__delitem__", "__getitem__", "__iter__", "__len__", "__setitem__"),
        *("clear", "copy", "get", "has_key", "items", "keys", "pop", "popitem", "setdefault"),
        *("update", "values"),
    ),
)
_BaseDictProxy._method_to_typeid_ = {"__iter__": "Iterator"}


class DictProxy(_BaseDictProxy):  # type: ignore[misc, valid-type]
    """Proxy of a dict; iterates over its keys."""

    __module__ = _MODULE
    __class_getitem__: Any = classmethod(types.GenericAlias)


ArrayProxy = MakeProxyType("ArrayProxy", ("__len__", "__getitem__", "__setitem__"))

BasePoolProxy = MakeProxyType(
    "PoolProxy",
    (
        *("apply", "apply_async", "close", "imap", "imap_unordered", "join", "map"),
        *("map_async", "starmap", "starmap_async", "terminate"),
    ),
)
BasePoolProxy._method_to_typeid_ = {
    "apply_async": "AsyncResult",
    "map_async": "AsyncResult",
    "starmap_async": "AsyncResult",
    "imap": "Iterator",
    "imap_unordered": "Iterator",
}


class PoolProxy(BasePoolProxy):  # type: ignore[misc, valid-type]
    """Proxy of a pool; leaving its block terminates it."""

    __module__ = _MODULE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._callmethod("terminate")
