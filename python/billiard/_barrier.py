"""`synchronize.Barrier`, in a file of its own: it is one of `threading.Barrier`, and that module is
not imported before somebody wants one."""

from __future__ import annotations

import threading

from . import _core, context, heap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .context import BaseContext


class Barrier(_core.Barrier, threading.Barrier):
    """A point that `parties` processes or threads reach together (origin: multiprocessing).

    One of them calls `action` before all go on. `timeout` in seconds is that of `wait` if it
    gives none. A broken barrier raises `threading.BrokenBarrierError`.
    """

    __module__ = "billiard.synchronize"

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        ctx: BaseContext | None = None,
    ) -> None:
        _core.Barrier.__init__(self, parties, action, timeout)

    def __getstate__(self) -> Any:
        context.assert_spawning(self)
        return self.parties, self._action, self._timeout, heap.lend(self._block)

    def __setstate__(self, state: Any) -> None:
        parties, action, timeout, lent = state
        self._adopt(heap.borrow(lent), parties, action, timeout)

    @property
    def _count(self) -> int:
        return self.n_waiting

    def __repr__(self) -> str:
        cls = type(self)
        where = f"<{cls.__module__}.{cls.__qualname__} at {id(self):#x}: "
        if self.broken:
            return where + "broken>"
        return where + f"waiters={self.n_waiting}/{self.parties}>"
