"""Connections between the threads of one process: two queues where sockets would be.

What is received is the object that was sent, not a copy. Origin: multiprocessing.dummy.connection.
"""

from __future__ import annotations

from queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

__all__ = ["Client", "Listener", "Pipe"]

families = [None]


class Listener:
    """Accepts what `Client(listener.address)` connects. `address` and `family` are ignored."""

    def __init__(self, address: object = None, family: object = None, backlog: int = 1) -> None:
        self._backlog_queue: Queue[tuple[Queue[Any], Queue[Any]]] | None = Queue(backlog)

    def accept(self) -> Connection:
        """Wait for a client; the connection to it."""
        if self._backlog_queue is None:
            raise OSError(9, "Listener is closed")
        return Connection(*self._backlog_queue.get())

    def close(self) -> None:
        """Accept no more."""
        self._backlog_queue = None

    @property
    def address(self) -> Queue[tuple[Queue[Any], Queue[Any]]] | None:
        """What `Client` takes; None when closed."""
        return self._backlog_queue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def Client(address: Queue[tuple[Queue[Any], Queue[Any]]]) -> Connection:
    """A connection to the listener at `address`."""
    _in: Queue[Any] = Queue()
    _out: Queue[Any] = Queue()
    address.put((_out, _in))
    return Connection(_in, _out)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Two connections that are each other's ends; both ways, whatever `duplex` says."""
    a: Queue[Any] = Queue()
    b: Queue[Any] = Queue()
    return Connection(a, b), Connection(b, a)


class Connection:
    """One end. `send` and `recv`, and the same as `send_bytes` and `recv_bytes`."""

    def __init__(self, _in: Queue[Any], _out: Queue[Any]) -> None:
        self._out = _out
        self._in = _in
        self.send = self.send_bytes = _out.put
        self.recv = self.recv_bytes = _in.get

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether something can be received within `timeout` seconds (None: however long)."""
        if timeout is not None and timeout <= 0.0:
            return self._in.qsize() > 0
        # not_empty's lock is the queue's own: look without the methods that would take it.
        with self._in.not_empty:
            return self._in.not_empty.wait_for(lambda: bool(self._in._qsize()), timeout)

    def close(self) -> None:
        """Nothing to release."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
