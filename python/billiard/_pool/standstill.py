"""What other threads must not be in the middle of when the pool forks.

A lock that a thread holds at the fork is held for ever in the child, which does not have that
thread: a worker that wants it hangs, and its task with it. The pool forks at instants of its own,
soon after something has happened and the program's threads are busy with it. So it is the pool that
has to look.

```
 before a fork, in this order                                                    at most
 ─────────────────────────────────────────────────────────────────────────────────────────
 imports       of all threads: until they have ended                             5 s
 callbacks     the result handler begins with no other; the one that runs ends   1 s
 log records   the locks of `logging` and of its handlers are taken: nobody      1 s
               writes a record, and what it goes to is not in use
 sys.stdout, sys.stderr      are flushed, which waits for who writes to them
```

What takes longer is not waited for: a callback may itself want the worker. Locks that the threads
of the program hold otherwise are beyond our knowledge.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Seconds that a fork waits for other threads to end their imports; and between two looks.
IMPORT_PATIENCE = 5.0
IMPORT_PAUSE = 0.002
#: seconds that it waits for a callback, and for log records, to be at their end
PATIENCE = 1.0

RLOCK = type(threading.RLock())


class Standstill:
    """``with standstill:`` around forks. Process-local; a forked child has no use for it.

    One thread at a time; the drive's lock ``maintenance`` sees to that.
    """

    def __init__(self) -> None:
        #: ``with standstill.callbacks:`` around what the result handler does with one message
        self.callbacks = Callbacks()
        self._records = Records()

    def __enter__(self) -> None:
        wait_for_imports()
        self.callbacks.suspend(PATIENCE)
        try:
            # After the callbacks: they may log.
            self._records.suspend(PATIENCE)
        except BaseException:
            self.callbacks.resume()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self._records.resume()
        self.callbacks.resume()


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
        sleep(IMPORT_PAUSE)


class Callbacks:
    """Callbacks take turns with forks.

    ```
     nobody ──► a callback runs ──► nobody ──► forks are made ──► nobody
                  │ a fork waits: it is the next, however many callbacks are to come
                  └─ too long: forks are made all the same, the next callback waits for them
    ```
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        #: the thread that runs a callback
        self._caller: int | None = None
        self._suspended = False

    def __enter__(self) -> None:
        with self._lock:
            while self._suspended:
                self._changed.wait()
            self._caller = threading.get_ident()

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._caller = None
            if self._suspended:
                self._changed.notify_all()

    def suspend(self, patience: float) -> None:
        """Have no other begin until `resume`, and wait for the one that runs, so many seconds."""
        # A callback that has workers started is in the middle of nothing that they would miss.
        bystanders = (None, threading.get_ident())
        with self._lock:
            self._suspended = True
            try:
                self._changed.wait_for(lambda: self._caller in bystanders, patience)
            except BaseException:
                self._suspended = False
                self._changed.notify_all()
                raise

    def resume(self) -> None:
        with self._lock:
            self._suspended = False
            self._changed.notify_all()


class Records:
    """Log records: nobody writes one while the locks of ``logging`` are held here.

    The child finds these locks free: ``logging`` sees to it.
    """

    def __init__(self) -> None:
        self._taken: list[Any] = []

    def suspend(self, patience: float) -> None:
        """Take the locks, as far as that takes no more than so many seconds."""
        logging = sys.modules.get("logging")
        deadline = monotonic() + patience
        try:
            # As there: first the lock of the module, which guards the set.
            if self._take(getattr(logging, "_lock", None), deadline):
                # Only these are made anew in a child.
                for handler in list(getattr(logging, "_at_fork_reinit_lock_weakset", ())):
                    self._take(handler.lock, deadline)
        except BaseException:
            self.resume()
            raise

    def _take(self, lock: Any, deadline: float) -> bool:
        if not isinstance(lock, RLOCK) or not lock.acquire(True, max(0.0, deadline - monotonic())):
            return False
        self._taken.append(lock)
        return True

    def resume(self) -> None:
        while self._taken:
            self._taken.pop().release()
