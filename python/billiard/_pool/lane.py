"""A worker's end of a pool with a native drive: tasks come out of it, results go in.

``Worker.inq`` and ``Worker.outq`` are both this one object. ``Worker.workloop`` has the tasks run
by ``PoolLane.serve``, in Rust; a loop in Python can use :meth:`Lane.get` and :meth:`Lane.put` as
the queues that they replace.
"""

from __future__ import annotations

import os

from .. import _core
from ..reduction import DupFd
from . import wire
from .constants import ACK, DEATH, READY, TASK, UNFIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ReadyCounter:
    """How many outcomes a worker has reported, with the look of a shared value."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    @property
    def value(self) -> int:
        """The number at the moment, or in the end."""
        return self._lane.done


class Lane:
    """See the top of this file. Shared by the pool's process and one worker.

    :param lane: the shared memory.
    """

    #: What is written stays readable when the writer has died: it need not wait for its reader.
    outlives_writer = True
    #: The pool wants to know when the worker is ready, and why it could not become so.
    announces = True

    def __init__(self, lane: _core.PoolLane) -> None:
        self.shared = lane
        self.index: int = lane.index
        self._lifeline: int = _core.lifeline()

    def __getstate__(self) -> tuple[Any, ...]:
        index, *fds = self.shared.fds()
        return (index, *map(DupFd, fds), DupFd(self._lifeline))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.index, *fds, lifeline = state
        self.shared = _core.PoolLane.open(self.index, *(fd.detach() for fd in fds))
        self._lifeline = lifeline.detach()

    def fileno(self) -> int:
        """The descriptor of the worker's memory."""
        return self.shared.fds()[2]

    def let_go(self) -> None:
        """In the pool's process: the worker has ended. What it sent may still be in its memory."""
        self._done = self.shared.done
        del self.shared

    @property
    def done(self) -> int:
        """How many outcomes the worker has reported."""
        shared = getattr(self, "shared", None)
        return self._done if shared is None else shared.done

    def hold_lifeline(self) -> None:
        """In the worker: die when the pool's process is gone, whatever a task is doing."""
        _core.hold_lifeline(self._lifeline)
        os.close(self._lifeline)

    def announce(self) -> None:
        """In the worker: it is ready for tasks."""
        self.shared.announce()

    def get(self, timeout: float | None = None) -> Any:
        """Wait for a task, as the message that workers get; None: there will be no more."""
        call = self.shared.get(wire)
        if call is None:
            return None
        task, func, args, kwargs = call
        return TASK, (task, None, func, args, kwargs)

    def put(self, message: Any) -> None:
        """Send a message of a worker.

        :raises Exception: its outcome cannot be pickled; nothing has been sent.
        """
        kind, args = message
        if kind == READY:
            task, _, (success, value), _ = args
            self.shared.put(wire, task, success, value)
        elif kind != ACK:  # that was said when the task was taken
            self.shared.send(wire, message, kind in (DEATH, UNFIT))
