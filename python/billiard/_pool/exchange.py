"""Where tasks and results of the threads drive meet: a channel per worker, one poller.

```
 submitters ──► waiting ──┐                                       ┌──► Worker.inq ──┐
 (encode)                 ├─► dispatch: one task to one idle one ─┤                 │ worker
 poller  ─────► idle ─────┘                                       └─── Worker.outq ◄┘
    ▲                                                                    │
    └── epoll: results, room to write, deaths, the wake-up ◄─────────────┘
```

A worker has one task at most. Nothing waits behind a long task, a signal for a task cannot meet
the next one, and what a dead worker had is known. The price is a round trip per task, hidden as
long as there are enough workers.

State of a channel:

```
 starting ──UP──► idle ◄──READY── busy                 task is None: starting, idle
    │              └──dispatch──►  │                   task.accepted: ACK has come
    └──────── sentinel ────────────┴──► over           everything that it sent has been read
```

Process-local. ``waiting`` and ``idle`` are deques, whose operations are atomic: no lock is held
anywhere on the way of a task, so a signal handler may interrupt a submitter anywhere and terminate
the pool. ``Channel.lock`` is the poller's and the timeout handler's alone. A forked child closes
its copies of the descriptors, see :meth:`Exchange.abandon`.
"""

from __future__ import annotations

import os
import select
import threading
from _queue import SimpleQueue
from collections import deque
from contextlib import suppress
from time import monotonic

from ..einfo import ExceptionInfo
from .constants import ACK, READY, TASK
from .log import debug, error
from .wire import GOODBYE, ResultPipe, TaskPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

#: bytes asked of a channel at once: what a pipe holds
CHUNK = 1 << 16
#: A feeder of a sequence pauses above so many tasks (or bytes of them) that wait for a worker, and
#: goes on below half of it: the sequence may be endless, its items large.
WAITING_TASKS = 256
WAITING_BYTES = 1 << 20

#: seconds that a worker which has closed its pipe may still live
KILL_SILENT_AFTER = 1.0

#: (a message to the book) everything that a worker which has exited had sent has been read
OVER = -1

_WAKE, _RESULT, _SENTINEL, _ROOM = range(4)


class Task:
    """A task, encoded. Kept until a worker has accepted it: the worker may die before."""

    __slots__ = ("accepted", "condemned", "frame", "hard", "i", "job", "size", "soft", "warned")

    def __init__(self, job: int, i: int | None, frame: list[memoryview]) -> None:
        self.job, self.i = job, i
        self.frame = frame
        self.size = sum(map(len, frame))
        #: limits in seconds
        self.soft: float | None = None
        self.hard: float | None = None
        #: when a worker began with it, monotonic seconds
        self.accepted: float | None = None
        #: its soft limit has passed and its worker has been told
        self.warned = False
        #: its outcome is decided and its worker is being ended
        self.condemned = False


class Channel:
    """The parent's view of a worker."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.pid: int = worker.pid
        self.inq: TaskPipe = worker.inq
        self.outq: ResultPipe = worker.outq
        self.in_fd: int = worker.inqW_fd
        self.out_fd: int = worker.outqR_fd
        #: a copy: the process closes its own as soon as it is reaped
        self.sentinel = os.dup(worker.sentinel)
        self.lock = threading.Lock()
        self.task: Task | None = None
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
        self.unsent: list[memoryview] = []
        self.incoming = Incoming(self.out_fd)

    def write(self, frame: list[memoryview]) -> bool:
        """Send a frame as far as there is room; true if that was all of it."""
        self.unsent = list(frame)
        return self.flush()

    def flush(self) -> bool:
        """Send on; true if nothing is left."""
        views = self.unsent
        while views:
            try:
                sent = os.write(self.in_fd, views[0])
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
                    views[0] = views[0][sent:]
        return True

    def close(self) -> None:
        """Close every descriptor of it that this process has."""
        if self.sentinel >= 0:
            os.close(self.sentinel)
            self.sentinel = -1
        self.inq.close()
        self.outq.close()


class Incoming:
    """Takes frames out of a non-blocking descriptor, many small ones with one read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.at_end = False
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
                chunk = os.read(self.fd, CHUNK)
            except BlockingIOError:
                return
            except OSError:
                chunk = b""
            if not chunk:
                self.at_end = True
                return
            data = self._rest + chunk if self._rest else chunk
            yield from self._split(data)
            if len(chunk) < CHUNK and self._long is None:
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
                    got = os.readv(self.fd, [view[self._have :]])
                except BlockingIOError:
                    return False
                except OSError:
                    got = 0
                if not got:
                    self.at_end = True
                    return False
                self._have += got
        return True


class Exchange:
    """Hands tasks to workers and collects what they report."""

    def __init__(self, limits_of: Callable[[int], tuple[float | None, float | None]]) -> None:
        self._limits_of = limits_of
        self.channels: dict[int, Channel] = {}  # by pid
        self.waiting: deque[Task] = deque()
        self.idle: deque[Channel] = deque()
        #: messages that are not a worker's: outcomes that were decided here, None at the end
        self.inbox: deque[Any] = deque()
        #: no task will be submitted any more
        self.closed = False
        #: tasks are not wanted any more
        self.terminated = False
        #: all tasks are done, the workers are told to exit
        self.drained = False
        #: why no task can be done any more
        self.broken: ExceptionInfo | None = None
        #: called when the supervisor has something to do
        self.on_change: Callable[[], object] = lambda: None
        #: called when a task that has a limit has been accepted
        self.on_limit: Callable[[Task], object] = lambda task: None
        #: A thread that brings a task leaves a mark while it does.
        self._bringing: deque[None] = deque()
        # Bytes in `waiting`, about: threads may overwrite each other's sums.
        self._waiting_bytes = 0
        self._feeder_pauses = False
        self._room: SimpleQueue[None] = SimpleQueue()
        self._messages: deque[Any] = deque()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sources: dict[int, tuple[int, Channel | None]] = {self._wake: (_WAKE, None)}
        self._epoll.register(self._wake, select.EPOLLIN)

    # ---- tasks in ----

    def put(self, task: Any) -> None:
        """Take a task. One that cannot be pickled fails as if its worker had said so.

        :raises ValueError: the pool has been closed and is done.
        """
        kind, (job, i, func, args, kwargs) = task
        assert kind == TASK
        self._bringing.append(None)
        try:
            try:
                encoded = Task(job, i, TaskPipe.encode(job, i, (func, args, kwargs)))
            except Exception:
                self.deliver((READY, (job, i, (False, ExceptionInfo()), None)))
                return
            encoded.soft, encoded.hard = self._limits_of(job)
            if self.drained or self.terminated:
                raise ValueError("Pool not running")
            self._waiting_bytes += encoded.size
            self.waiting.append(encoded)
            self.dispatch()
            if self.broken is not None:
                self.break_down(self.broken)
        finally:
            self._bringing.pop()
        if self.closed:
            self.wake()  # it may have been this task that the end was waiting for

    def break_down(self, info: ExceptionInfo) -> None:
        """There are no workers and there will be none: fail the tasks that wait, and any later."""
        self.broken = info
        while self.waiting:
            try:
                task = self.waiting.popleft()
            except IndexError:
                break
            self.deliver((READY, (task.job, task.i, (False, info), None)))
        self.release_feeder()
        self.wake()

    def pause_feeder(self) -> None:
        """Let the feeder of a sequence wait while there are enough tasks."""
        while self._is_full(WAITING_TASKS, WAITING_BYTES):
            self._feeder_pauses = True
            if not self._is_full(WAITING_TASKS, WAITING_BYTES):
                break
            self._room.get()

    def _is_full(self, tasks: int, size: int) -> bool:
        count = len(self.waiting)
        return not self.terminated and (count > tasks or (count > 2 and self._waiting_bytes > size))

    def release_feeder(self) -> None:
        """Let the feeder go on if there is room for about as many tasks as it likes to see."""
        if self._feeder_pauses and not self._is_full(WAITING_TASKS // 2, WAITING_BYTES // 2):
            self._feeder_pauses = False
            self._room.put(None)

    def deliver(self, message: Any) -> None:
        """Have the poller return a message."""
        self.inbox.append(message)
        self.wake()

    def wake(self) -> None:
        """Have the poller look around."""
        # OSError: it has plenty to see. ValueError: it has been closed, and its number is -1.
        with suppress(OSError, ValueError):
            os.eventfd_write(self._wake, 1)

    # ---- tasks out ----

    def dispatch(self) -> None:
        """Give waiting tasks to idle workers. Any thread.

        Whoever adds to one of the two deques calls this afterwards, and it looks at both: no pair
        is left behind.
        """
        while self.waiting and self.idle:
            try:
                channel = self.idle.popleft()
            except IndexError:
                return
            try:
                task = self.waiting.popleft()
            except IndexError:
                self.idle.appendleft(channel)
                continue
            self._give(channel, task)

    def _give(self, channel: Channel, task: Task) -> None:
        # Either we see that it is retired, or whoever buries it sees that we are at it.
        channel.giving = True
        if channel.retired:
            channel.giving = False
            self.waiting.appendleft(task)
        else:
            self._waiting_bytes = self._waiting_bytes - task.size if self.waiting else 0
            channel.task = task
            if not channel.write(task.frame):
                self._sources[channel.in_fd] = (_ROOM, channel)
                self._epoll.register(channel.in_fd, select.EPOLLOUT)
            channel.giving = False
        if channel.over:
            self.on_change()

    def make_available(self, channel: Channel) -> None:
        """A worker has nothing to do."""
        if not channel.retired:
            self.idle.append(channel)
            self.dispatch()
        self.release_feeder()

    # ---- workers ----

    def attach(self, channel: Channel) -> None:
        """Listen to a worker that has just been started."""
        # The child has its own copies of its ends. Without ours, each side sees the other's death.
        channel.inq._reader.close()
        channel.outq._writer.close()
        self.channels[channel.pid] = channel
        for fd, kind in ((channel.out_fd, _RESULT), (channel.sentinel, _SENTINEL)):
            self._sources[fd] = (kind, channel)
            self._epoll.register(fd, select.EPOLLIN)

    def detach(self, channel: Channel) -> None:
        """Stop listening to a worker that is over, and close its channel."""
        self._forget(channel.out_fd, channel.in_fd, channel.sentinel)
        self.channels.pop(channel.pid, None)
        if not channel.giving:
            channel.close()
        self.wake()  # this may have been what the end was waiting for

    def _forget(self, *fds: int) -> None:
        for fd in fds:
            if self._sources.pop(fd, None):
                self._epoll.unregister(fd)

    def dismiss(self, channel: Channel) -> None:
        """Tell an idle worker to exit."""
        channel.retired = True
        if not channel.dismissed:
            channel.dismissed = True
            channel.write([memoryview(GOODBYE)])

    def take_back(self, channel: Channel) -> Task | None:
        """The task of a worker that is over, if it had begun; if not, the task waits again."""
        with channel.lock:
            task, channel.task = channel.task, None
        if task is None or task.accepted is not None:
            return task
        self._waiting_bytes += task.size
        self.waiting.appendleft(task)
        self.dispatch()
        return None

    # ---- results out ----

    def poll(self, timeout: float | None = None) -> tuple[bool, Any]:
        """Wait for a message, at most so many seconds: ``(True, message)`` or ``(False, None)``."""
        messages = self._messages
        deadline = None
        while not messages:
            if self.inbox:
                return True, self.inbox.popleft()
            if self.closed:
                # Before every wait: nothing else will tell that the last message has been handled.
                self._check_drained()
            if timeout is None:
                events = self._epoll.poll()
            else:
                deadline = deadline or monotonic() + timeout
                events = self._epoll.poll(max(0.0, deadline - monotonic()))
                if not events:
                    return False, None
            for fd, _ in events:
                kind, channel = self._sources.get(fd, (_WAKE, None))
                if channel is None:
                    self._hear()
                elif kind == _RESULT:
                    self._receive(channel)
                elif kind == _SENTINEL:
                    self._bury(channel)
                elif channel.flush():
                    self._forget(channel.in_fd)
        return True, messages.popleft()

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _receive(self, channel: Channel) -> None:
        append, pid = self._messages.append, channel.pid
        for frame in channel.incoming.frames():
            try:
                message = ResultPipe.decode(frame, pid)
            except Exception as exc:
                error("%r sent something strange: %r", channel.worker, exc)
                self._give_up_on(channel)
                break
            kind = message[0]
            if kind == READY:
                self._freed(channel)
            elif kind == ACK:
                self._begun(channel, message[1][2])
            append(message)
        if channel.incoming.at_end and channel.out_fd in self._sources:
            # A worker that has closed its end will exit, or never report anything again.
            self._forget(channel.out_fd)
            self._give_up_on(channel, KILL_SILENT_AFTER)

    def _give_up_on(self, channel: Channel, after: float = 0.0) -> None:
        channel.retired = True
        channel.kill_at = monotonic() + after
        self.on_change()

    def _begun(self, channel: Channel, accepted: float) -> None:
        task = channel.task
        if task is not None:
            task.accepted = accepted
            # It will not be sent again.
            task.frame = []
            if task.soft or task.hard:
                self.on_limit(task)

    def _freed(self, channel: Channel) -> None:
        """The worker's task is done: give it the next one before the result is looked at."""
        with channel.lock:
            task, channel.task = channel.task, None
        if task is not None and task.condemned:
            channel.retired = True
        self.make_available(channel)

    def _bury(self, channel: Channel) -> None:
        """The worker has exited: read what it left behind."""
        channel.retired = True
        self._receive(channel)
        self._forget(channel.sentinel, channel.out_fd, channel.in_fd)
        channel.kill_at = None
        self._messages.append((OVER, (channel,)))

    def _check_drained(self) -> None:
        if self.drained or self.waiting or self._bringing or self.inbox or self._messages:
            return
        channels = list(self.channels.values())
        if not any(channel.task for channel in channels):
            self.drained = True
            for channel in channels:
                if channel.up and not channel.over:
                    self.dismiss(channel)
            self.on_change()

    # ---- the end ----

    def abandon(self) -> None:
        """In a forked child: close the copies of the parent's descriptors."""
        for channel in self.channels.values():
            channel.close()
        self.close()

    def close(self) -> None:
        """Give up the descriptors, when no worker is left."""
        if self._wake >= 0:
            wake, self._wake = self._wake, -1
            self._epoll.close()
            os.close(wake)
