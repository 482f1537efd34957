"""The interface of the package on threads: processes, locks and queues of this process alone.

Origin: multiprocessing.dummy. `Manager()` is this module, so that its names serve as a manager's.
"""

from __future__ import annotations

import sys
import threading
import weakref
from threading import Barrier, BoundedSemaphore, Event, Lock, RLock, Semaphore

from ..connection import Pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    import array
    from collections.abc import Callable, Iterable, Mapping
    from queue import Queue
    from types import ModuleType
    from typing import Any

    from ..pool import ThreadPool
    from . import connection as connection

    JoinableQueue = Queue

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Pipe",
    "Pool",
    "Process",
    "Queue",
    "RLock",
    "Semaphore",
    "active_children",
    "current_process",
    "freeze_support",
]

current_process = threading.current_thread
dict = dict
list = list


def __getattr__(name: str) -> Any:
    """What the pool, which builds on this module, need not import."""
    found: Any
    if name in ("Queue", "JoinableQueue"):
        from queue import Queue as found
    elif name == "connection":
        from importlib import import_module

        found = import_module(f"{__name__}.connection")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


# An attribute of whichever thread starts a process of ours.
_Children = weakref.WeakKeyDictionary["DummyProcess", None]


class DummyProcess(threading.Thread):
    """A thread with the interface of `Process`."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        daemon: bool | None = None,
    ) -> None:
        super().__init__(group, target, name, args, kwargs, daemon=daemon)
        self._pid = None
        self._children: _Children = weakref.WeakKeyDictionary()
        self._start_called = False
        self._parent = current_process()

    def start(self) -> None:
        """Start the thread; from the thread that made it, or `AssertionError`."""
        if self._parent is not current_process():
            raise AssertionError("can only start a process object created by current process")
        self._start_called = True
        _children_of(self._parent)[self] = None
        super().start()

    @property
    def exitcode(self) -> int | None:
        """0 once it has ended, None before."""
        return 0 if self._start_called and not self.is_alive() else None


Process = DummyProcess


def _children_of(thread: threading.Thread) -> _Children:
    try:
        return thread._children  # type: ignore[attr-defined, no-any-return]
    except AttributeError:  # a thread that is not ours
        children: _Children = weakref.WeakKeyDictionary()
        thread._children = children  # type: ignore[attr-defined]
        return children


_children_of(current_process())


def active_children() -> list[DummyProcess]:
    """The processes that this thread has started and that still run."""
    children = _children_of(current_process())
    for process in list(children):
        if not process.is_alive():
            children.pop(process, None)
    return list(children)


def freeze_support() -> None:
    """Nothing to do: there is for `billiard.freeze_support`'s callers."""


class Condition(threading.Condition):
    """`threading.Condition`, under the name that belongs here."""

    def notify_all(self) -> None:
        """Wake every thread that waits."""
        super().notify_all()


class Namespace:
    """Attributes, given as keyword arguments."""

    def __init__(self, **kwds: Any) -> None:
        self.__dict__.update(kwds)

    def __repr__(self) -> str:
        shown = sorted(f"{k}={v!r}" for k, v in self.__dict__.items() if not k.startswith("_"))
        return f"{type(self).__name__}({', '.join(shown)})"


def Array(typecode: str, sequence: Iterable[Any], lock: object = True) -> array.array[Any]:
    """An `array.array`; `lock` is ignored."""
    from array import array

    return array(typecode, sequence)


class Value:
    """A box for one value; neither `typecode` nor `lock` is enforced."""

    def __init__(self, typecode: object, value: Any, lock: object = True) -> None:
        self._typecode = typecode
        self._value = value

    def _get(self) -> Any:
        return self._value

    def _set(self, value: Any) -> None:
        self._value = value

    value = property(_get, _set)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self._typecode!r}, {self._value!r})>"


def Manager() -> ModuleType:
    """This module."""
    return sys.modules[__name__]


def shutdown() -> None:
    """What `Manager().shutdown()` calls; does nothing."""


def Pool(
    processes: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
) -> ThreadPool:
    """A `billiard.pool.ThreadPool`."""
    from ..pool import ThreadPool

    return ThreadPool(processes, initializer, initargs)
