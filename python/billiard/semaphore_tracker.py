"""The semaphore tracker: a process that unlinks what a program has left behind by name.

The locks of this package have no names, so nothing here starts it; it is for code that makes named
semaphores of its own and registers them, as billiard 4.3.2 did.

```
 any process ── "REGISTER:name\\n" / "UNREGISTER:name\\n" ──► main(): names; at the end of the
                    (one pipe, shared by all)               pipe, unlink what is still registered
```
"""

from __future__ import annotations

import os
import sys

from . import _core, spawn, util
from .compat import spawnv_passfds as spawnv_passfds

__all__ = ["ensure_running", "register", "unregister"]

#: a write of this many bytes to a pipe is never torn, whatever the system
_LONGEST_NAME = 512


class SemaphoreTracker:
    """What a process knows of the program's tracker.

    Process-local; forked children share their parent's tracker, others are told of it.
    """

    def __init__(self) -> None:
        self._lock = util.ForkAwareThreadLock()
        self._fd: int | None = None
        self._tracker: _core.Child | None = None

    def getfd(self) -> int:
        """The descriptor that leads to the tracker, which is started if need be."""
        self.ensure_running()
        assert self._fd is not None
        return self._fd

    def ensure_running(self) -> None:
        """Start the tracker unless this process has one. To be called from any process."""
        with self._lock:
            if self._fd is not None:
                return
            reader, writer = os.pipe()
            try:
                code = f"from billiard.semaphore_tracker import main; main({reader})"
                flags = util._args_from_interpreter_flags()
                command = [spawn.get_executable(), *flags, "-c", code]
                self._tracker = _core.spawn(
                    os.fsencode(command[0]), [os.fsencode(word) for word in command], [reader]
                )
            except BaseException:
                os.close(writer)
                raise
            finally:
                os.close(reader)
            # It outlives us; nobody waits for it.
            self._tracker.close()
            self._fd = writer

    def register(self, name: str) -> None:
        """Have the semaphore `name` unlinked when all processes of the program have ended."""
        self._send("REGISTER", name)

    def unregister(self, name: str) -> None:
        """Take back `register`."""
        self._send("UNREGISTER", name)

    def _send(self, cmd: str, name: str) -> None:
        message = f"{cmd}:{name}\n".encode("ascii")
        if len(name) > _LONGEST_NAME:
            raise ValueError("name too long")
        if os.write(self.getfd(), message) != len(message):
            raise OSError("the semaphore tracker did not take a message")


_semaphore_tracker = SemaphoreTracker()
ensure_running = _semaphore_tracker.ensure_running
register = _semaphore_tracker.register
unregister = _semaphore_tracker.unregister
getfd = _semaphore_tracker.getfd


def main(fd: int) -> None:
    """Be the tracker: read messages from `fd` until its other ends are all closed."""
    import signal
    import warnings

    # Whatever ends the program does not end this process before its work is done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdin, sys.stdout):
        if stream is not None:
            stream.close()

    names: set[bytes] = set()
    with open(fd, "rb") as messages:
        for line in messages:
            try:
                command, _, name = line.strip().partition(b":")
                if command == b"REGISTER":
                    names.add(name)
                elif command == b"UNREGISTER":
                    names.remove(name)
                else:
                    raise RuntimeError(f"unrecognized command {command!r}")
            except Exception:
                sys.excepthook(*sys.exc_info())
    if names:
        warnings.warn(
            f"semaphore_tracker: There appear to be {len(names)} leaked semaphores to clean up "
            "at shutdown",
            stacklevel=1,
        )
    from ._core import sem_unlink

    for name in names:
        try:
            sem_unlink(name.decode("ascii"))
        except Exception as exc:
            warnings.warn(f"semaphore_tracker: {name!r}: {exc}", stacklevel=1)
