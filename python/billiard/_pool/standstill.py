"""What other threads must not be in the middle of when the pool forks.

A lock that a thread holds at the fork is held for ever in the child, which does not have that
thread: a worker that wants it hangs, and its task with it. The pool replaces workers at instants of
its own, soon after something has happened and the program's threads are busy with it. So it is the
pool that has to look.

```
 before a fork, in this order                                                     at most
 ──────────────────────────────────────────────────────────────────────────────────────────
 who called `terminate_job`  has had time to tell others                          0.1 s
 callbacks                   the one that runs has ended; the next one waits      1 s
 imports                     none is under way in any thread                      5 s
 sys.stdout, sys.stderr      have been flushed, which waits for who writes there
 log records                 nobody is in the middle of one; the next one waits   1 s
```

That is the supervisor's: whoever else has workers made chooses the instant, and waits for imports
alone. Nothing is held while something is waited for, but that no callback begins. What takes too
long is waited for once: a callback may itself want the worker. Locks that the threads of the
program hold otherwise are beyond our knowledge.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic, sleep

from .._at_fork import guards

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: seconds that a fork waits for other threads to end their imports
IMPORT_PATIENCE = 5.0
#: seconds that it waits for a callback, and for log records, to be at their end
PATIENCE = 1.0
#: Seconds until a worker is forked in place of one whose job has been terminated.
TERMINATED_GRACE = 0.1
#: seconds between two looks
PAUSE = 0.001


class Standstill:
    """``with standstill:`` in the supervisor around the making of workers. Process-local."""

    def __init__(self) -> None:
        #: ``with standstill.callbacks:`` around what the result handler does with one message
        self.callbacks = Callbacks()
        self._not_before = 0.0
        #: the pool is being terminated: nothing is waited for
        self.is_over = False

    def note_termination(self) -> None:
        """A thread has a job terminated, and goes on with what it has to do for that."""
        self._not_before = monotonic() + TERMINATED_GRACE

    def __enter__(self) -> None:
        RECORDS.suspend_at_forks()
        self.callbacks.suspend()
        deadline = monotonic() + PATIENCE
        while not (self._not_before <= monotonic() and self.callbacks.are_at_rest()):
            if self.is_over or monotonic() > deadline:
                self.callbacks.give_up()
                break
            sleep(PAUSE)

    def __exit__(self, *exc_info: object) -> None:
        self.callbacks.resume()
        RECORDS.resume()


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


class Callbacks:
    """Callbacks take turns with forks.

    ```
     nobody ──► a callback runs ──► nobody ──► forks are made ──► nobody
                  │ forks wait: they are next, however many callbacks are to come
                  └─ too long: forks are made, now and later, as if it did not run
    ```

    Used by two threads, neither of which runs signal handlers: result handler and supervisor.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resumed = threading.Condition(self._lock)
        self._suspended = False
        #: how many have begun and how many have ended
        self._begun = self._ended = 0
        #: the number of the last one that was waited for in vain
        self._given_up = 0

    def __enter__(self) -> None:
        with self._lock:
            while self._suspended:
                self._resumed.wait()
            self._begun += 1

    def __exit__(self, *exc_info: object) -> None:
        self._ended += 1

    def suspend(self) -> None:
        """Have no other begin until `resume`."""
        with self._lock:
            self._suspended = True

    def are_at_rest(self) -> bool:
        """Whether none runs, but for one that was given up."""
        return self._begun in (self._ended, self._given_up)

    def give_up(self) -> None:
        """Do not wait any more for the one that runs."""
        self._given_up = self._begun

    def resume(self) -> None:
        with self._lock:
            self._suspended = False
            self._resumed.notify_all()


class Records:
    """Log records: who writes one holds a lock of ``logging``, and perhaps one of a file.

    The former are free in a child, ``logging`` sees to that; the latter are not. So the locks of
    ``logging`` are held across the fork.

    One for the process. For threads that run no signal handlers.
    """

    def __init__(self) -> None:
        #: the threads whose forks are meant, and the locks that each has taken
        self._taken: dict[int, list[Any]] = {}
        #: locks that were waited for in vain, and have not been had since
        self._given_up: list[Any] = []

    def suspend_at_forks(self) -> None:
        """Have none written while this thread forks, until `resume`."""
        self._taken[threading.get_ident()] = []

    def resume(self) -> None:
        del self._taken[threading.get_ident()]

    def before_fork(self) -> None:
        taken = self._taken.get(threading.get_ident())
        if taken is None:
            return
        deadline = monotonic() + PATIENCE
        missed = self._try_all(taken)
        while any(lock not in self._given_up for lock in missed):
            if monotonic() > deadline:
                break
            # Only one is waited for, and nothing is held meanwhile: its holder may want the others.
            self.after_in_parent()
            first = next(lock for lock in missed if lock not in self._given_up)
            if first.acquire(True, max(0.0, deadline - monotonic())):
                taken.append(first)
            missed = self._try_all(taken)
        self._given_up = missed

    def _try_all(self, taken: list[Any]) -> list[Any]:
        """Take all that can be had now; those that cannot."""
        logging = sys.modules.get("logging")
        lock = getattr(logging, "_lock", None)
        missed: list[Any] = []
        self._try(lock, taken, missed)
        if lock in taken:  # it guards the set, which has those that are made anew in a child
            for handler in list(getattr(logging, "_at_fork_reinit_lock_weakset", ())):
                self._try(handler.lock, taken, missed)
        return missed

    def _try(self, lock: Any, taken: list[Any], missed: list[Any]) -> None:
        if isinstance(lock, RLOCK) and lock not in taken:
            (taken if lock.acquire(False) else missed).append(lock)

    def after_in_parent(self) -> None:
        taken = self._taken.get(threading.get_ident(), [])
        while taken:
            taken.pop().release()

    def after_in_child(self) -> None:
        self._taken.clear()


RLOCK = type(threading.RLock())
RECORDS = Records()
guards.append(RECORDS)
