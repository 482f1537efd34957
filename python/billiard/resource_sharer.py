"""Handing descriptors to processes that already run.

```
 DupFd(fd) here: keep a duplicate under a number ──pickled: (address, number)──► there: detach()
     a thread here, behind a listener ◄── connect, send (number, pid) ────────────────┘
                     └── the descriptor, over the same connection, once ──► there
```

The thread and the listener exist from the first `DupFd` on, until `stop()`.
"""

from __future__ import annotations

import os
import sys
import threading

from . import process, reduction, util

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .connection import Connection, Listener

    Address = Any
    Ident = tuple[Address, int]
    Send = Callable[[Connection, int], None]
    Close = Callable[[], None]

__all__ = ["DupFd", "stop"]


class DupFd:
    """A descriptor that any process of this user's, with the same authkey, may fetch once."""

    def __init__(self, fd: int) -> None:
        duplicate = os.dup(fd)

        def send(conn: Connection, pid: int) -> None:
            reduction.send_handle(conn, duplicate, pid)

        def close() -> None:
            os.close(duplicate)

        try:
            self._id = _resource_sharer.register(send, close)
        except BaseException:
            close()
            raise

    def detach(self) -> int:
        """Fetch the descriptor, which is the caller's from now on. Works once."""
        with _resource_sharer.get_connection(self._id) as conn:
            return reduction.recv_handle(conn)

    def _withdraw(self, before: int) -> None:
        """Close the duplicate, which nobody will fetch, unless its number is `before` or less."""
        if self._id[1] > before:
            _resource_sharer.withdraw(self._id)


class _ResourceSharer:
    """The thread that hands descriptors out, and what it has to hand out. Process-local: a forked
    child closes its copies and starts afresh."""

    def __init__(self) -> None:
        self._key = 0
        self._cache: dict[int, tuple[Send, Close]] = {}
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._address: Address = None
        self._thread: threading.Thread | None = None
        util.register_after_fork(self, _ResourceSharer._afterfork)

    def register(self, send: Send, close: Close) -> Ident:
        """Keep a resource; returns what `get_connection` needs to fetch it."""
        with self._lock:
            if self._address is None:
                self._start()
            self._key += 1
            self._cache[self._key] = (send, close)
            return (self._address, self._key)

    def withdraw(self, ident: Ident) -> None:
        """Close a resource that nobody will fetch."""
        _, close = self._cache.pop(ident[1], (None, None))
        if close is not None:
            close()

    @staticmethod
    def get_connection(ident: Ident) -> Connection:
        """A connection over which the resource is about to come."""
        from .connection import Client

        address, key = ident
        conn = Client(address, authkey=process.current_process().authkey)
        conn.send((key, os.getpid()))
        return conn

    def stop(self, timeout: float | None = None) -> None:
        """End the thread, waiting at most `timeout` seconds, and close what nobody has fetched."""
        from .connection import Client

        with self._lock:
            if self._address is None:
                return
            assert self._thread is not None and self._listener is not None
            conn = Client(self._address, authkey=process.current_process().authkey)
            conn.send(None)
            conn.close()
            self._thread.join(timeout)
            if self._thread.is_alive():
                util.sub_warning("_ResourceSharer thread did not stop when asked")
            self._listener.close()
            self._thread = self._address = self._listener = None
            self._close_all()

    def _close_all(self) -> None:
        for _, close in self._cache.values():
            close()
        self._cache.clear()

    def _afterfork(self) -> None:
        self._close_all()
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]
        if self._listener is not None:
            self._listener.close()
        self._thread = self._address = self._listener = None

    def _start(self) -> None:
        from .connection import Listener

        assert self._listener is None
        util.debug("starting listener and thread for sending handles")
        self._listener = Listener(authkey=process.current_process().authkey)
        self._address = self._listener.address
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        import signal

        from . import connection

        # Signals are for the threads that expect them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        assert self._listener is not None
        while True:
            try:
                with self._listener.accept() as conn:
                    # It sends at once, or it was stopped: the others are not to wait for it.
                    if not conn.poll(connection.CONNECTION_TIMEOUT):
                        continue
                    message = conn.recv()
                    if message is None:
                        return
                    key, pid = message
                    send, close = self._cache.pop(key)
                    try:
                        send(conn, pid)
                    finally:
                        close()
            except BaseException as exc:
                if not (connection.wait_for_resources(exc) or util.is_exiting()):
                    sys.excepthook(*sys.exc_info())


_resource_sharer = _ResourceSharer()
stop = _resource_sharer.stop
