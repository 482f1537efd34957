"""What the native drive consists of, beside itself: its view of workers and of sequences."""

from __future__ import annotations

from ..einfo import ExceptionInfo
from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .. import _core
    from .native import NativeDrive

#: A sequence is read ahead until so many tasks wait for a slot, or large calls of so many bytes are
#: under way: it may be endless, its items large.
WAITING_TASKS = 256
LARGE_BYTES = 1 << 22


class Side:
    """One side of the engine, under the names of the queue that other drives have there.

    ``Pool._inqueue`` and ``Pool._outqueue``.
    """

    _reader = _writer = _rlock = _wlock = None

    def __init__(self, put: Callable[[Any], object], empty: Callable[[], bool]) -> None:
        self.put = put
        self.empty = empty

    def close(self) -> None:
        """Nothing to close."""


class Member:
    """The drive's view of a worker."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.pid: int = worker.pid
        self.index: int = worker.inq.index
        #: gets no more tasks
        self.retired = False
        #: has been told to exit
        self.dismissed = False
        #: says that it is about to exit
        self.leaving = False
        #: has ended, and all that it sent has been read
        self.over = False
        #: what it was at when it ended: number of the task, job, number in the job
        self.lost: tuple[int, int | None, int | None] | None = None
        #: why it could not become ready
        self.unfit: ExceptionInfo | None = None


class LostTask:
    """A task of a caller whose worker has died, with as much of a job as hooks look at."""

    def __init__(self, engine: _core.PoolEngine, task: int) -> None:
        self._engine = engine
        self._task = task
        self._job = wire.new_job()

    def ready(self) -> bool:
        return False

    def accepted(self) -> bool:
        return True

    def _set(self, i: int | None, outcome: tuple[bool, Any]) -> None:
        self._engine.settle(self._task, outcome[1])

    _abandon = None


class SequenceTasks:
    """What the task handler is given of a sequence that the engine feeds from itself."""

    def __init__(self, drive: NativeDrive, sequence: _core.PoolSequence) -> None:
        self.drive = drive
        self.sequence = sequence

    def __iter__(self) -> Iterator[None]:
        while not self._feed():
            self.drive.check_broken()
            self.drive.engine.wait_for_room(WAITING_TASKS, LARGE_BYTES)
            yield None
        self.drive.check_broken()

    def _feed(self) -> bool:
        try:
            return self.sequence.feed(WAITING_TASKS, LARGE_BYTES)
        except BaseException:
            # An iterable's own, also if it is SystemExit: this thread has others to feed.
            self.sequence._fail(ExceptionInfo())
            return True
