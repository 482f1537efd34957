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
        #: how many more hold it than may: so many releases give nothing back
        self._excess = 0

    def grow(self) -> None:
        """Let one more hold it."""
        with self._cond:
            self._initial_value += 1
            self._give(1)

    def shrink(self) -> None:
        """Let one less hold it: if none is free, the next release frees none. Does not wait."""
        with self._cond:
            self._initial_value -= 1
            if self._value:
                self._value -= 1
            else:
                self._excess += 1

    def release(self, n: int = 1) -> None:
        """Give ``n`` back; what nobody holds is not given back."""
        with self._cond:
            held = self._initial_value - self._value + self._excess
            if n > 0 and held > 0:
                self._give(min(n, held))

    def clear(self) -> None:
        """Give everything back that is held, so that nobody waits any longer."""
        with self._cond:
            self._excess = 0
            self._give(self._initial_value - self._value)

    def _give(self, n: int) -> None:
        settled = min(n, self._excess)
        self._excess -= settled
        self._value += n - settled
        self._cond.notify(n - settled)
