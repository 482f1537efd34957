"""The queue of what has been submitted to a drive with a task handler."""

from __future__ import annotations

from _queue import SimpleQueue
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Submissions:
    """Sequences of tasks, in order: ``Pool._taskqueue``. Process-local."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        #: what has not been handed over completely
        self._open: deque[None] = deque()

    def put(self, item: Any) -> None:
        """Add ``(tasks, set_length)``, or None for the end."""
        self._open.append(None)
        self._queue.put(item)

    def get(self) -> Any:
        """Wait for the next item and take it out."""
        return self._queue.get()

    def task_done(self) -> None:
        """What was taken out has been handed over."""
        self._open.popleft()

    def empty(self) -> bool:
        """Whether nothing waits to be taken out."""
        return self._queue.empty()

    def qsize(self) -> int:
        """How many items wait to be taken out."""
        return self._queue.qsize()

    def busy(self) -> bool:
        """Whether something has yet to be handed over: what comes now has to queue up."""
        return bool(self._open)
