"""The semaphore that bounds how many jobs are under way."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class LaxBoundedSemaphore(threading.Semaphore):
    """A semaphore whose upper bound can move, and that ignores releases beyond it.

    :param value: how many may hold it. Origin: billiard.
    """

    __module__ = "billiard.pool"

    _cond: threading.Condition
    _value: int

    def __init__(self, value: int = 1, verbose: Any = None) -> None:
        super().__init__(value)
        self._initial_value = value

    def grow(self) -> None:
        """Let one more hold it."""
        with self._cond:
            self._initial_value += 1
            self._value += 1
            self._cond.notify()

    def shrink(self) -> None:
        """Let one less hold it. Waits until one of the holders has released it."""
        with self._cond:
            self._initial_value -= 1
        self.acquire()

    def release(self, n: int = 1) -> None:
        """Give ``n`` back; what nobody holds is not given back."""
        with self._cond:
            n = min(n, self._initial_value - self._value)
            if n > 0:
                self._value += n
                self._cond.notify(n)

    def clear(self) -> None:
        """Give everything back that is held, so that nobody waits any longer."""
        self.release(self._initial_value)
