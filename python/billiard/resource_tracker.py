"""The resource tracker: a process that unlinks what a program has left behind by name.

```
 any process of the program ──── one pipe ────► main(): what is registered; at the end of the pipe,
   REGISTER:name:type                            when all of them have ended, unlink what still is
   UNREGISTER:name:type
```

Shared memory with a name (`shared_memory`) is tracked; nothing else here has names, so a program
that does not use it has no tracker. All processes of a program share one: forked children inherit
the pipe, others are sent it. The interface is multiprocessing's.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ensure_running", "register", "unregister"]

#: bytes; a write to a pipe that is no longer is never torn, whatever the system
_LONGEST_MESSAGE = 512
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _refuse(name: str) -> None:
    raise RuntimeError("'noop' is for probes: it cannot be registered")


_CLEANUP_FUNCS: dict[str, Callable[[str], object]] = {
    "noop": _refuse,
    "dummy": lambda name: None,
    "semaphore": _core.sem_unlink,
    "shared_memory": _core.shm_unlink,
}


class ReentrantCallError(RuntimeError):
    """A finalizer called the tracker while its thread was starting it."""


class ResourceTracker:
    """What a process knows of the program's tracker.

    Process-local. A forked child inherits the pipe, and its lock is free there.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._fd: int | None = None
        self._pid: int | None = None
        self._exitcode: int | None = None
        self._child: _core.Child | None = None
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._child = self._pid = None

    def getfd(self) -> int:
        """The descriptor that leads to the tracker, which is started if need be."""
        self.ensure_running()
        assert self._fd is not None
        return self._fd

    def ensure_running(self) -> None:
        """Start the tracker, unless the program has one that lives."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise ReentrantCallError("Reentrant call into the resource tracker")
        with self._lock:
            self._have_one(stacklevel=3)

    def _have_one(self, stacklevel: int) -> None:
        if self._fd is not None:
            if self._check_alive():
                return
            self._forget()
            import warnings

            warnings.warn(
                "resource_tracker: process died unexpectedly, relaunching. "
                "Some resources might leak.",
                stacklevel=stacklevel,
            )
        self._start()

    def _start(self) -> None:
        from . import spawn, util

        reader, writer = os.pipe()
        try:
            code = f"from billiard.resource_tracker import main; main({reader})"
            command = [spawn.get_executable(), *util._args_from_interpreter_flags(), "-c", code]
            # Inherited by the tracker, which unblocks them when it is ready to ignore them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_SIGNALS)
            try:
                self._child = _core.spawn(
                    os.fsencode(command[0]), [os.fsencode(word) for word in command], [reader]
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        self._pid = self._child.pid
        self._fd = writer

    def _forget(self) -> None:
        """Let a tracker go that has ended, or that ends when nobody else has its pipe."""
        fd, self._fd = self._fd, None
        assert fd is not None
        os.close(fd)
        if self._child is not None:
            self._exitcode = self._child.wait()
            self._child.close()
        self._pid = self._child = None

    def _stop(self) -> None:
        """End the tracker, and wait for that if this process started it."""
        with self._lock:
            if self._fd is not None:
                self._forget()

    def _check_alive(self) -> bool:
        assert self._fd is not None
        try:
            os.write(self._fd, b"PROBE:0:noop\n")
        except OSError:
            return False
        return True

    def register(self, name: str, rtype: str) -> None:
        """Have the resource `name` unlinked when all processes of the program have ended.

        `rtype` is "shared_memory" or "semaphore". Raises `ValueError` for a name that is too long
        to be sent whole or has a line end in it.
        """
        self._send("REGISTER", name, rtype)

    def unregister(self, name: str, rtype: str) -> None:
        """Take back `register`."""
        self._send("UNREGISTER", name, rtype)

    def _send(self, cmd: str, name: str, rtype: str) -> None:
        message = os.fsencode(f"{cmd}:{name}:{rtype}\n")
        if len(message) > _LONGEST_MESSAGE:
            raise ValueError("msg too long")
        if "\n" in name:
            raise ValueError("a name must not have a line end in it")
        if self._lock._is_owned():  # type: ignore[attr-defined]
            if self._fd is None:
                import warnings

                warnings.warn(
                    f"the resource tracker was called while it was being started: the {rtype} "
                    f"object {name!r} might leak",
                    stacklevel=3,
                )
                return
            os.write(self._fd, message)
            return
        # With the lock: another thread may find the tracker dead, and close the descriptor.
        with self._lock:
            if self._fd is not None:
                try:
                    os.write(self._fd, message)
                    return
                except OSError:
                    pass  # the tracker has died
            self._have_one(stacklevel=4)
            assert self._fd is not None
            os.write(self._fd, message)


_resource_tracker = ResourceTracker()
ensure_running = _resource_tracker.ensure_running
register = _resource_tracker.register
unregister = _resource_tracker.unregister
getfd = _resource_tracker.getfd


def main(fd: int) -> None:
    """Be the tracker: read messages from `fd` until its other ends are all closed, and exit.

    The status is 0 if nothing was left, 1 if something was, 2 if that could not be unlinked, 3
    after a message that made no sense.
    """
    # Whatever ends the program does not end this process before its work is done.
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED_SIGNALS)
    for stream in (sys.stdin, sys.stdout):
        if stream is not None:
            stream.close()

    registered: dict[str, set[str]] = {rtype: set() for rtype in _CLEANUP_FUNCS}
    status = 0
    with open(fd, "rb") as messages:
        for line in messages:
            try:
                _obey(os.fsdecode(line.rstrip(b"\n")), registered)
            except Exception:
                status = 3
                sys.excepthook(*sys.exc_info())
    sys.exit(max(_clean_up(registered), status))


def _obey(message: str, registered: dict[str, set[str]]) -> None:
    command, _, resource = message.partition(":")
    name, _, rtype = resource.rpartition(":")
    if rtype not in registered:
        raise ValueError(
            f"Cannot register {name} for automatic cleanup: unknown resource type {rtype}"
        )
    if command == "REGISTER":
        registered[rtype].add(name)
    elif command == "UNREGISTER":
        registered[rtype].remove(name)
    elif command != "PROBE":
        raise RuntimeError(f"unrecognized command {command!r}")


def _clean_up(registered: dict[str, set[str]]) -> int:
    import warnings

    status = 0
    for rtype, names in registered.items():
        if not names:
            continue
        status = max(status, 1)
        if rtype != "dummy":
            warnings.warn(
                f"resource_tracker: There appear to be {len(names)} leaked {rtype} objects to "
                f"clean up at shutdown: {names}",
                stacklevel=1,
            )
        for name in names:
            try:
                _CLEANUP_FUNCS[rtype](name)
            except Exception as exc:
                status = 2
                warnings.warn(f"resource_tracker: {name!r}: {exc}", stacklevel=1)
    return status
