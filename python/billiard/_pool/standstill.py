"""What other threads must not be in the middle of when the pool forks.

A lock that a thread holds at the fork is held for ever in the child, which does not have that
thread: a worker that wants it hangs, and its task with it. The pool replaces workers at instants of
its own, soon after something has happened and the program's threads are busy with it. So it is the
pool that has to look.

```
 supervisor                                                                         at most
 ──────────────────────────────────────────────────────────────────────────────────────────
 waits until no thread imports                                                      5 s
 waits until who called `terminate_job` has had time to tell others                 50 ms
 ┌► flushes sys.stdout and sys.stderr, which waits for who writes there
 │  runs the hooks before forks
 │  takes the locks, which are: the result handler's turn (a callback runs),
 │       those of `logging` and its handlers (a record is written)
 │    all free ───► forks, lets them go at once ───► runs the hooks after forks
 │    one is not ─► lets the others go, runs the hooks as after a fork that failed
 └────── waits for that one                                                         1 s
```

Nothing but the drive's ``maintenance`` is held while anything is waited for. A callback or a record
that takes too long is given up, and not waited for again: it may itself want the worker. Whoever
else has workers made chooses the instant, and waits for imports alone. Locks that the threads of
the program hold otherwise are beyond our knowledge.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic, sleep

from ..popen_fork import flush_standard_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: seconds that a fork waits for other threads to end their imports
IMPORT_PATIENCE = 5.0
#: seconds that forks wait for callbacks and log records
PATIENCE = 1.0
#: seconds until a worker is forked in place of one whose job has been terminated
TERMINATED_GRACE = 0.05
#: seconds between two looks, and how long the result handler lets forks go first
PAUSE = 0.002


def wait_for_imports() -> None:
    """Let other threads come to the end of imports: a module would be half made in the child."""
    from _frozen_importlib import _module_locks  # type: ignore[attr-defined]

    me, deadline = threading.get_ident(), monotonic() + IMPORT_PATIENCE
    while any(
        lock is not None and lock.owner not in (None, me)
        for lock in [reference() for reference in list(_module_locks.values())]
    ):
        if monotonic() > deadline:
            return
        sleep(PAUSE)


class Turn:
    """What the result handler holds while it handles a message."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        #: forks wait for it: they are next, however many messages are to come
        self.is_wanted = False
        #: who has it has been waited for in vain, or waits for forks
        self.is_given_up = False
        self._holder: int | None = None

    def __enter__(self) -> None:
        if self.is_wanted:
            sleep(PAUSE)
        self.lock.acquire()
        self._holder = threading.get_ident()

    def __exit__(self, *exc_info: object) -> None:
        self._holder = None
        self.is_given_up = False
        self.lock.release()

    def is_mine(self) -> bool:
        """Whether the calling thread has it."""
        return self._holder == threading.get_ident()

    def wait(self, deadline: float) -> None:
        """Wait until nobody has it, and have whoever is next wait a moment."""
        self.is_wanted = True
        while not self.is_given_up and monotonic() < deadline:
            if self.lock.acquire(True, PAUSE):
                self.lock.release()
                return
        self.is_given_up = True


class MaintenanceInTurn:
    """``with`` the drive's ``maintenance`` in a callback.

    Forks are made, and wait for callbacks, while it is held: they are not to wait for this one.
    """

    def __init__(self, lock: Any, turn: Turn) -> None:
        self._lock = lock
        self._turn = turn

    def __enter__(self) -> None:
        if not self._lock.acquire(False):
            self._turn.is_given_up = True
            self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


class Standstill:
    """``with standstill:`` in the supervisor around forks, which ask it for locks.

    Process-local, and of no use in a forked child. The supervisor runs no signal handlers.
    """

    def __init__(self) -> None:
        self.turn = Turn()
        #: the pool is being terminated: nothing is waited for
        self.is_over = False
        self._not_before = self._deadline = 0.0
        #: locks of `logging` that were waited for in vain, and have been held since
        self._given_up: list[Any] = []

    def note_termination(self) -> None:
        """A thread has a job terminated, and goes on with what it has to do for that."""
        self._not_before = monotonic() + TERMINATED_GRACE

    def __enter__(self) -> Standstill:
        # As it is now: others may be terminated again and again.
        not_before = self._not_before
        if monotonic() < not_before:
            while monotonic() < not_before and not self.is_over:
                sleep(PAUSE)
            flush_standard_streams()
        self._deadline = monotonic() + PATIENCE
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.turn.is_wanted = False

    def locks(self) -> list[Any]:
        """What has to be free at a fork."""
        if self.is_over:
            return []
        # Who is given up is looked at again, in case he has ended.
        self._given_up = [lock for lock in self._given_up if not is_free(lock)]
        locks = [lock for lock in locks_of_logging() if lock not in self._given_up]
        return locks if self.turn.is_given_up else [self.turn.lock, *locks]

    def wait_for(self, lock: Any) -> None:
        """One of them is not free."""
        if lock is self.turn.lock:
            self.turn.wait(self._deadline)
        elif lock.acquire(True, max(0.0, self._deadline - monotonic())):
            lock.release()
        else:
            self._given_up.append(lock)
        # Since the last time somebody may have begun to write.
        flush_standard_streams()


def locks_of_logging() -> list[Any]:
    """Those that ``logging`` makes anew in a child; first that of the module, as there."""
    logging = sys.modules.get("logging")
    renewed = getattr(logging, "_at_fork_reinit_lock_weakset", ())
    handlers = [reference() for reference in list(getattr(logging, "_handlerList", ()))]
    locks = [handler.lock for handler in handlers if handler is not None and handler in renewed]
    return [lock for lock in (getattr(logging, "_lock", None), *locks) if type(lock) is RLOCK]


def is_free(lock: Any) -> bool:
    """Whether no other thread holds it."""
    if not lock.acquire(False):
        return False
    lock.release()
    return True


RLOCK = type(threading.RLock())
