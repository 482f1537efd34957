"""Where tasks and results of the threads drive meet: a channel per worker, one poller.

```
 submitters ──► waiting ──┐                                       ┌──► Worker.inq ──┐
 (encode)                 ├─► dispatch: one task to one idle one ─┤                 │ worker
 poller  ─────► idle ─────┘                                       └─── Worker.outq ◄┘
    ▲                                                                    │
    └── epoll: results, room to write, deaths, the wake-up ◄─────────────┘
```

A worker whose tasks take an instant is given some ahead, so that neither side waits for the other
each time. They are its own only when it begins with them: for every task that is sent the exchange
releases a semaphore of the channel (``permits``), and the worker acquires it, or reports the task
dropped. When a worker becomes idle and nothing waits, the exchange acquires permits of others and
takes their last tasks back. So nothing waits behind a long task while another worker is idle.
A task with a time limit is alone in its channel: its signal cannot meet the next one.

State of a channel:

```
 starting ──UP──► idle ◄──READY, DROPPED (the last)── busy
    │              └───────────dispatch───────────────►│
    └───────── sentinel ───────────────────────────────┴──► over: all that it sent has been read
```

Process-local. ``waiting`` and ``idle`` are deques, whose operations are atomic: no lock is held
anywhere on the way of a task, so a signal handler may interrupt a submitter anywhere and terminate
the pool. Whoever takes a channel out of ``idle`` owns it until its task is written; busy channels
are the poller's. A forked child closes its copies of the descriptors, see :meth:`abandon`.
"""

from __future__ import annotations

import os
import select
from _queue import SimpleQueue
from collections import deque
from contextlib import nullcontext, suppress
from time import monotonic

from ..einfo import ExceptionInfo
from .channel import Channel, Task
from .constants import ACK, DROPPED, READY, TASK
from .log import error
from .wire import GOODBYE, ResultPipe, TaskPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: A feeder of a sequence pauses above so many tasks (or bytes of them) that wait for a worker, and
#: goes on below half of it: the sequence may be endless, its items large.
WAITING_TASKS = 256
WAITING_BYTES = 1 << 20
#: the same for a worker that is given tasks ahead: they must fit into its pipe
AHEAD = 32
AHEAD_BYTES = 1 << 14
#: seconds that a task of a worker which is given tasks ahead may take
QUICK = 1e-3
#: seconds that a worker which has closed its pipe may still live
KILL_SILENT_AFTER = 1.0

#: after so many deaths a task is taken to be their cause
DEADLY = 5
#: (a message to the book) everything that a worker which has exited had sent has been read
OVER = -1

_WAKE, _RESULT, _SENTINEL, _ROOM = range(4)
_NO_LOCK = nullcontext()


class Exchange:
    """Hands tasks to workers and collects what they report."""

    def __init__(self, limits_of: Callable[[int], tuple[float, float]]) -> None:
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
        #: what this process has of the workers' pipes, and those of the youngest
        self._pipes: list[tuple[TaskPipe, ResultPipe]] = []
        self._lent: tuple[Any, Any] = (None, None)
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
            if not channel.give(task):
                self._watch_room(channel)
            channel.giving = False
        if channel.over:
            self.on_change()

    def _watch_room(self, channel: Channel) -> None:
        self._sources[channel.in_fd] = (_ROOM, channel)
        self._epoll.register(channel.in_fd, select.EPOLLOUT)

    def make_available(self, channel: Channel) -> None:
        """A worker has nothing to do. The poller only."""
        if not channel.retired:
            if not self.waiting:
                self._steal()
            self.idle.append(channel)
            self.dispatch()
        self.release_feeder()

    def _steal(self) -> None:
        """Take tasks back from the worker that has most ahead of it."""
        most, ahead = None, 0
        for channel in list(self.channels.values()):
            if len(channel.tasks) - 1 > ahead and not (channel.retired or channel.dropping):
                most, ahead = channel, len(channel.tasks) - 1
        if most is not None:
            # Half of them: what runs there may well end soon.
            tasks = most.take_back((ahead + 1) // 2)
            self._waiting_bytes += sum(task.size for task in tasks)
            self.waiting.extend(tasks)

    def _refill(self, channel: Channel) -> None:
        """Give a worker that is quick enough some tasks ahead. The poller only."""
        if channel.retired or channel.unsent or channel.dropping or channel.limited:
            return
        share = min(AHEAD, len(self.waiting) // len(self.channels) + 1)
        if 2 * len(channel.tasks) > share:
            return
        share -= len(channel.tasks)
        if channel.lifetime:
            share = min(share, channel.lifetime - channel.sent)
        tasks: list[Task] = []
        size = 0
        while len(tasks) < share:
            try:
                task = self.waiting.popleft()
            except IndexError:
                break
            size += task.size
            if size > AHEAD_BYTES or task.soft or task.hard:
                self.waiting.appendleft(task)
                break
            tasks.append(task)
        if tasks:
            self._waiting_bytes = self._waiting_bytes - size if self.waiting else 0
            if not channel.give_ahead(tasks):
                self._watch_room(channel)
            self.release_feeder()

    # ---- workers ----

    def lend(self, inq: TaskPipe, outq: ResultPipe) -> None:
        """The next process that is forked is the worker that these are for."""
        self._lent = inq, outq
        self._pipes.append(self._lent)

    def take_over(self, inq: TaskPipe, outq: ResultPipe) -> None:
        """It has been started: it has its ends, and this process wants to see them closed."""
        self._lent = None, None
        inq._reader.close()
        outq._writer.close()

    def drop(self, inq: TaskPipe, outq: ResultPipe) -> None:
        """Close what is left of a pair."""
        inq.close()
        outq.close()
        self._pipes.remove((inq, outq))

    def attach(self, channel: Channel) -> None:
        """Listen to a worker that has been started."""
        self.channels[channel.pid] = channel
        for fd, kind in ((channel.out_fd, _RESULT), (channel.sentinel, _SENTINEL)):
            self._sources[fd] = (kind, channel)
            self._epoll.register(fd, select.EPOLLIN)

    def detach(self, channel: Channel) -> None:
        """Stop listening to a worker that is over, and close its channel."""
        self._forget(channel.out_fd, channel.in_fd, channel.sentinel)
        self.channels.pop(channel.pid, None)
        channel.close()
        if not channel.giving:
            self.drop(channel.inq, channel.outq)
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
            channel.write([GOODBYE])

    def inherit(self, channel: Channel, died: bool = False) -> Task | None:
        """The task that a worker had begun when it ended; the others wait again.

        :param died: the worker was not meant to end. A task that a few have died before is taken
            for begun: they may have died of decoding it, and the next would too.
        """
        begun = None
        with channel.lock:
            tasks, channel.tasks = list(channel.tasks), deque()
        if tasks:
            tasks[0].deaths += died
            if tasks[0].accepted is not None or tasks[0].deaths >= DEADLY:
                begun = tasks.pop(0)
        for task in reversed(tasks):
            self._waiting_bytes += task.size
            self.waiting.appendleft(task)
        self.dispatch()
        return begun

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
                self._done(channel, ResultPipe.finished_at(frame))
            elif kind == ACK:
                self._begun(channel, message[1][2])
            elif kind == DROPPED:
                self._dropped(channel)
                continue
            append(message)
        if channel.is_quick and channel.tasks and self.waiting:
            self._refill(channel)
        if channel.incoming.at_end and channel.out_fd in self._sources:
            # A worker that has closed its end will exit, or never report anything again.
            self._forget(channel.out_fd)
            self._give_up_on(channel, KILL_SILENT_AFTER)

    def _give_up_on(self, channel: Channel, after: float = 0.0) -> None:
        channel.retired = True
        channel.kill_at = monotonic() + after
        self.on_change()

    def _begun(self, channel: Channel, accepted: float) -> None:
        if channel.tasks:
            task = channel.tasks[0]
            task.accepted = accepted
            # It will not be sent again.
            task.frame = []
            if task.soft or task.hard:
                self.on_limit(task)

    def _done(self, channel: Channel, finished: float) -> None:
        """The worker's task is done. It gets others before the result is looked at."""
        if not channel.tasks:
            return
        task = channel.tasks[0]
        with channel.lock if channel.limited else _NO_LOCK:
            channel.tasks.popleft()
        channel.is_quick = task.accepted is not None and finished - task.accepted < QUICK
        if task.condemned or (
            channel.lifetime and channel.sent >= channel.lifetime and not channel.tasks
        ):
            channel.retired = True
        if not channel.tasks and not channel.dropping:
            self.make_available(channel)

    def _dropped(self, channel: Channel) -> None:
        """The worker has come upon a task that had been taken back."""
        channel.dropping -= 1
        if not channel.tasks and not channel.dropping:
            self.make_available(channel)

    def _bury(self, channel: Channel) -> None:
        """The worker has exited: read what it left behind."""
        channel.retired = True
        self._receive(channel)
        self._forget(channel.sentinel, channel.out_fd, channel.in_fd)
        channel.kill_at = None
        self._messages.append((OVER, (channel,)))

    def _check_drained(self) -> None:
        if self.drained or self.waiting or self._bringing:
            return
        channels = list(self.channels.values())
        if not any(channel.tasks for channel in channels):
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
        for inq, outq in self._pipes:
            # A worker closes its other ends itself.
            if inq is not self._lent[0]:
                inq.close()
                outq.close()
        self.close()

    def close(self) -> None:
        """Give up the descriptors, when no worker is left."""
        if self._wake >= 0:
            wake, self._wake = self._wake, -1
            self._epoll.close()
            os.close(wake)
