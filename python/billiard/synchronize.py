"""Locks, semaphores, conditions, events and barriers that processes share.

```
 Lock, RLock, ... ──► _core.SemLock    ┐
 Condition ─────────► _core.Condition  │  words in a block of shared memory (see `heap`); the rest
 Event ─────────────► _core.Event      │  of each object is its process's own
 Barrier ───────────► _core.Barrier    ┘
```
What is called often is compiled and inherited: no Python code of ours runs between `with lock` and
the compare-and-swap. An object can be used in any process that descends from the one that made
it, whatever it was started with: forked ones inherit it, others get it in their arguments.
"""

from __future__ import annotations

import os

from . import _core, context, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from ._barrier import Barrier as Barrier
    from ._ext import ensure_SemLock as ensure_SemLock
    from .context import BaseContext

    _T = TypeVar("_T")

__all__ = ["BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]

RECURSIVE_MUTEX, SEMAPHORE = 0, 1
_INTERNAL_MUTEX, _ROBUST_MUTEX = 2, 3
#: the highest value of a semaphore
SEM_VALUE_MAX = _core.SemLock.SEM_VALUE_MAX
#: removes a named semaphore of the system; the locks here have no names
sem_unlink = _core.sem_unlink


#: what is imported when somebody asks for it
_LATE = {"Barrier": "_barrier", "ensure_SemLock": "_ext"}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        module = __import__(_LATE[name], globals(), None, ["*"], 1)
        return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


if TYPE_CHECKING:
    from . import heap as _heap
else:
    _heap = context.Unloaded("heap", globals())


class _Names:
    """Endless random names."""

    def __iter__(self) -> _Names:
        return self

    def __next__(self) -> str:
        return os.urandom(4).hex()


class SemLock(_core.SemLock):
    """What semaphores and locks have in common (origin: multiprocessing).

    `kind` is `RECURSIVE_MUTEX` or `SEMAPHORE`. `ctx` makes no difference: the object can be used
    with all start methods. Raises OSError (EINVAL) for a value out of range.
    """

    _rand = _Names()

    def __init__(
        self, kind: int, value: int, maxvalue: int, ctx: BaseContext | None = None
    ) -> None:
        _core.SemLock.__init__(self, kind, value, maxvalue)

    @property
    def _semlock(self) -> _core.SemLock:
        return self

    def locked(self) -> bool:
        """Whether it cannot be acquired at once (origin: Python 3.14)."""
        return self._is_zero()

    def _make_methods(self) -> None:
        """Nothing: the methods are there."""

    @staticmethod
    def _make_name() -> str:
        return f"{process.current_process()._config['semprefix']}-{next(SemLock._rand)}"

    @staticmethod
    def _cleanup(name: str) -> None:
        sem_unlink(name)

    def __getstate__(self) -> Any:
        context.assert_spawning(self)
        return _heap.lend(self._block), self.kind, self.maxvalue

    def __setstate__(self, state: Any) -> None:
        lent, kind, maxvalue = state
        self._adopt(_heap.borrow(lent), kind, maxvalue)

    def _owner(self) -> str:
        """Who holds it, as far as this process knows."""
        if self._is_mine():
            import threading

            name = process.current_process().name
            thread = threading.current_thread().name
            return name if thread == "MainThread" else f"{name}|{thread}"
        if self._get_value() == 1:
            return "None"
        return "SomeOtherThread" if self._count() > 0 else "SomeOtherProcess"


class Semaphore(SemLock):
    """A counter that `acquire` waits to be above zero (origin: multiprocessing)."""

    __slots__ = ()

    def __init__(self, value: int = 1, ctx: BaseContext | None = None) -> None:
        _core.SemLock.__init__(self, SEMAPHORE, value, SEM_VALUE_MAX)

    def get_value(self) -> int:
        """The counter now."""
        return self._get_value()

    def __repr__(self) -> str:
        try:
            value: object = self._get_value()
        except Exception:
            value = "unknown"
        return f"<{type(self).__name__}(value={value})>"


class BoundedSemaphore(Semaphore):
    """A semaphore that is never released above its first value (origin: multiprocessing)."""

    __slots__ = ()

    def __init__(self, value: int = 1, ctx: BaseContext | None = None) -> None:
        _core.SemLock.__init__(self, SEMAPHORE, value, value)

    def __repr__(self) -> str:
        try:
            value: object = self._get_value()
        except Exception:
            value = "unknown"
        return f"<{type(self).__name__}(value={value}, maxvalue={self.maxvalue})>"


class Lock(SemLock):
    """A lock that any process may release (origin: multiprocessing).

    A `robust` one only the process that holds it may release; if that dies, the next one to
    acquire it gets `OwnerDiedError`, and owns it.
    """

    __slots__ = ()

    def __init__(self, ctx: BaseContext | None = None, *, robust: bool = False) -> None:
        _core.SemLock.__init__(self, _ROBUST_MUTEX if robust else SEMAPHORE, 1, 1)

    def __repr__(self) -> str:
        try:
            owner = self._owner()
        except Exception:
            owner = "unknown"
        return f"<{type(self).__name__}(owner={owner})>"


class RLock(SemLock):
    """A lock that its owner may acquire again (origin: multiprocessing).

    If a process dies with it, the next one to acquire it gets `OwnerDiedError`, and owns it.
    """

    __slots__ = ()

    def __init__(self, ctx: BaseContext | None = None) -> None:
        _core.SemLock.__init__(self, RECURSIVE_MUTEX, 1, 1)

    def __repr__(self) -> str:
        try:
            owner = self._owner()
            count: object = self._count() if self._is_mine() else "nonzero"
            if owner == "None":
                count = 0
        except Exception:
            owner = count = "unknown"
        return f"<{type(self).__name__}({owner}, {count})>"


#: What contexts make without a call; what has been put in their place they call.
OUR_LOCK, OUR_RLOCK = Lock, RLock


class InternalLock(SemLock):
    """A lock of the package's own objects, which goes on to the next when its owner dies."""

    __slots__ = ()

    def __init__(self, ctx: BaseContext | None = None) -> None:
        _core.SemLock.__init__(self, _INTERNAL_MUTEX, 1, 1)

    __repr__ = Lock.__repr__


class _Number:
    """One of a condition's counters, to look at: it has the look of a semaphore."""

    def __init__(self, get: Callable[[], int]) -> None:
        self._get_value = self.get_value = get

    @property
    def _semlock(self) -> _Number:
        return self


class Condition(_core.Condition):
    """A condition variable (origin: multiprocessing).

    `lock` is a `Lock`, `RLock` or the like; by default a new `RLock`. Who is notified runs when
    the lock is free. A process that dies while it waits holds up nobody.
    """

    def __init__(self, lock: Any = None, ctx: BaseContext | None = None) -> None:
        _core.Condition.__init__(self, lock or (ctx.RLock() if ctx else RLock()))

    def __getstate__(self) -> Any:
        context.assert_spawning(self)
        return self._lock, _heap.lend(self._block)

    def __setstate__(self, state: Any) -> None:
        lock, lent = state
        self._adopt(lock, _heap.borrow(lent))

    def _make_methods(self) -> None:
        """Nothing: the methods are there."""

    # Where multiprocessing has semaphores, for those who look at their values.

    @property
    def _sleeping_count(self) -> _Number:
        return _Number(lambda: sum(self._counts()))

    @property
    def _woken_count(self) -> _Number:
        return _Number(lambda: 0)

    @property
    def _wait_semaphore(self) -> _Number:
        return _Number(lambda: self._counts()[1])

    def __repr__(self) -> str:
        try:
            waiters: object = sum(self._counts())
        except Exception:
            waiters = "unknown"
        return f"<{type(self).__name__}({self._lock}, {waiters})>"

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait until notified, and acquire it again.

        False after `timeout` seconds. AssertionError if this thread does not hold the lock.
        """
        return _core.Condition.wait(self, timeout)

    def notify(self, n: int = 1) -> None:
        """Wake up to `n` waiters as soon as the lock is free.

        Raises AssertionError if this thread does not hold the lock, ValueError if `n` is negative.
        """
        _core.Condition.notify(self, n)

    def notify_all(self) -> None:
        """Wake all waiters as soon as the lock is free; AssertionError as for `notify`."""
        _core.Condition.notify_all(self)

    def wait_for(self, predicate: Callable[[], _T], timeout: float | None = None) -> _T:
        """Wait until `predicate()` is true; its last value, after `timeout` seconds too."""
        result = predicate()
        if result:
            return result
        from time import monotonic

        end = None if timeout is None else monotonic() + timeout
        while not result:
            left = None if end is None else end - monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result


class Event(_core.Event):
    """A flag to wait for (origin: multiprocessing)."""

    def __init__(self, ctx: BaseContext | None = None) -> None:
        _core.Event.__init__(self)

    def __getstate__(self) -> Any:
        context.assert_spawning(self)
        return _heap.lend(self._block)

    def __setstate__(self, state: Any) -> None:
        self._adopt(_heap.borrow(state))

    def __repr__(self) -> str:
        state = "set" if self.is_set() else "unset"
        return f"<{type(self).__qualname__} at {id(self):#x} {state}>"
