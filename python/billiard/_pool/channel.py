"""The parent's side of a worker's channel, of the threads drive."""

from __future__ import annotations

import os
import threading
from collections import deque

from .._core import read, send_offset
from .log import debug
from .wire import ResultPipe, TaskPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

#: bytes asked of a channel at once: what a pipe holds
CHUNK = 1 << 16


class Task:
    """A task, encoded. Kept until a worker has accepted it: the worker may die before."""

    __slots__ = (
        "accepted",
        "condemned",
        "deaths",
        "frame",
        "hard",
        "i",
        "job",
        "size",
        "soft",
        "warned",
    )

    def __init__(self, job: int, i: int | None, frame: list[Any]) -> None:
        self.job, self.i = job, i
        self.frame = frame
        self.size = sum(map(len, frame))
        #: limits in seconds; 0: none
        self.soft: float = 0
        self.hard: float = 0
        #: when a worker began with it, monotonic seconds
        self.accepted: float | None = None
        #: its soft limit has passed and its worker has been told
        self.warned = False
        #: its outcome is decided and its worker is being ended
        self.condemned = False
        #: workers that died when this was next, perhaps of decoding it
        self.deaths = 0


class Channel:
    """The parent's view of a worker."""

    def __init__(self, worker: Any, lifetime: int = 0) -> None:
        self.worker = worker
        self.pid: int = worker.pid
        self.inq: TaskPipe = worker.inq
        self.outq: ResultPipe = worker.outq
        self.in_fd: int = worker.inqW_fd
        self.out_fd: int = worker.outqR_fd
        #: a copy: the process closes its own as soon as it is joined
        self.sentinel = os.dup(worker._popen.sentinel)
        #: held to send a signal to a task, and to see a task with a limit end
        self.lock = threading.Lock()
        #: what it has been sent and has not reported ready, in order. The first one is running or
        #: about to, the others are permitted to it as long as nobody takes them back.
        self.tasks: deque[Task] = deque()
        #: how many it has been sent in all, and how many it will do in its life (0: any number)
        self.sent = 0
        self.lifetime = lifetime
        #: how many of those that it will read have been taken back: it reports each
        self.dropping = 0
        #: its last task was a matter of an instant
        self.is_quick = False
        self.up = False
        #: a thread is handing it a task
        self.giving = False
        #: gets no more tasks
        self.retired = False
        #: has been told to exit
        self.dismissed = False
        self.over = False
        #: why it could not become ready
        self.unfit: Any = None
        #: when to kill it, monotonic seconds
        self.kill_at: float | None = None
        #: what does not fit into the pipe yet
        self.unsent: list[Any] = []
        self.incoming = Incoming(self.out_fd)

    @property
    def limited(self) -> Task | None:
        """The task that it has, if that has a limit: then it has no other."""
        task = self.tasks[0] if self.tasks else None
        return task if task is not None and (task.soft or task.hard) else None

    def give(self, task: Task) -> bool:
        """Send the only task; true if there was room for all of it."""
        self.tasks.append(task)
        self.sent += 1
        self.inq.permits.release()
        return self.write(task.frame)

    def give_ahead(self, tasks: list[Task]) -> bool:
        """Send more, all of them small; true if there was room."""
        self.tasks.extend(tasks)
        self.sent += len(tasks)
        for _ in tasks:
            self.inq.permits.release()
        return self.write([b"".join([piece for task in tasks for piece in task.frame])])

    def take_back(self, count: int) -> list[Task]:
        """Take the last tasks back, as far as they have not begun; in order."""
        taken: list[Task] = []
        while len(taken) < count and self.inq.permits.acquire(False):
            taken.insert(0, self.tasks.pop())
        self.dropping += len(taken)
        self.sent -= len(taken)
        return taken

    def write(self, frame: list[Any]) -> bool:
        """Send a frame as far as there is room; true if that was all of it."""
        self.unsent = list(frame)
        return self.flush()

    def flush(self) -> bool:
        """Send on; true if nothing is left."""
        views = self.unsent
        while views:
            try:
                sent = send_offset(self.in_fd, views[0], 0)
            except BlockingIOError:
                return False
            except OSError as exc:
                # The worker has gone; its death will be noticed by other means.
                debug("could not write to %r: %r", self.worker, exc)
                views.clear()
            else:
                if sent == len(views[0]):
                    del views[0]
                else:
                    views[0] = memoryview(views[0])[sent:]
        return True

    def close(self) -> None:
        """Close what belongs to it alone; the pipes are the exchange's to close."""
        if self.sentinel >= 0:
            os.close(self.sentinel)
            self.sentinel = -1


class Incoming:
    """Takes frames out of a non-blocking descriptor, many small ones with one read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.at_end = False
        self._buffer = memoryview(bytearray(CHUNK))
        self._rest = b""
        #: a long frame that is arriving, and how much of it has
        self._long: bytearray | None = None
        self._have = 0

    def frames(self) -> Iterator[memoryview]:
        while True:
            if self._long is not None:
                if not self._fill(self._long):
                    return
                frame, self._long = self._long, None
                yield memoryview(frame)
                continue
            try:
                got = read(self.fd, self._buffer)
            except BlockingIOError:
                return
            except OSError:
                got = 0
            if not got:
                self.at_end = True
                return
            chunk = bytes(self._buffer[:got])
            yield from self._split(self._rest + chunk if self._rest else chunk)
            if got < CHUNK and self._long is None:
                # Read dry, most likely; if not, the poller says so.
                return

    def _split(self, data: bytes) -> Iterator[memoryview]:
        view, at, end = memoryview(data), 0, len(data)
        while end - at >= 4:
            body, size = at + 4, int.from_bytes(data[at : at + 4], "big", signed=True)
            if size == -1:
                body = at + 12
                if end < body:
                    break
                size = int.from_bytes(view[at + 4 : body], "big")
            if end - body < size:
                if size > CHUNK:
                    self._long = bytearray(size)
                    self._have = end - body
                    self._long[: self._have] = view[body:]
                    at = end
                break
            yield view[body : body + size]
            at = body + size
        self._rest = data[at:]

    def _fill(self, frame: bytearray) -> bool:
        with memoryview(frame) as view:
            while self._have < len(frame):
                try:
                    got = read(self.fd, view[self._have :])
                except BlockingIOError:
                    return False
                except OSError:
                    got = 0
                if not got:
                    self.at_end = True
                    return False
                self._have += got
        return True
