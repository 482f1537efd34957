"""Connections: messages over pipes and sockets, and listening for them.

The wire format and the interface are multiprocessing's; non-blocking ends and `send_offset` are
billiard's. Framing, waiting and signals are the Rust core's business.
"""

from __future__ import annotations

import errno
import os
from io import BytesIO
from operator import index
from time import monotonic, sleep

from . import _auth, _core, exceptions, reduction, util
from ._auth import CHALLENGE as CHALLENGE
from ._auth import FAILURE as FAILURE
from ._auth import WELCOME as WELCOME
from .compat import send_offset as send_offset
from .compat import setblocking
from .reduction import ForkingPickler

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn, Protocol

    from typing_extensions import Buffer

    Address = str | bytes | tuple[str, int]

    class HasFileno(Protocol):
        def fileno(self) -> int: ...


__all__ = ["Client", "Listener", "Pipe", "wait"]

if not TYPE_CHECKING:  # BufferTooShort and AuthenticationError
    __getattr__ = exceptions.late_names(__name__)

BUFSIZE = 8192
#: seconds that the other end of a new connection gets for the handshake
CONNECTION_TIMEOUT = 20.0
# The names that they have had in multiprocessing since 3.12.
_CHALLENGE, _WELCOME, _FAILURE = CHALLENGE, WELCOME, FAILURE

#: random bytes in a challenge
MESSAGE_LENGTH = 20
#: Whether to authenticate with peers that know nothing but HMAC-MD5: CPython up to 3.11, billiard
#: up to 4.3. Set it to False to refuse them (`AuthenticationError`).
ALLOW_MD5 = True

default_family = "AF_UNIX"
families = ["AF_INET", "AF_UNIX"]


def _init_timeout(timeout: float = CONNECTION_TIMEOUT) -> float:
    return monotonic() + timeout


def _check_timeout(t: float) -> bool:
    return monotonic() > t


# --- addresses ---------------------------------------------------------------------------------


def arbitrary_address(family: str) -> Address:
    """A free address of `family` ("AF_INET" or "AF_UNIX"); `ValueError` for any other."""
    if family == "AF_INET":
        return ("localhost", 0)
    if family == "AF_UNIX":
        # The directory is this process's own and nobody else may enter it.
        return os.path.join(util.get_temp_dir(), util._random_name("listener-"))
    raise ValueError("unrecognized family")


def _validate_family(family: str) -> None:
    if family not in (*families, "AF_INET6"):
        raise ValueError(f"Family {family} is not recognized.")


def _is_abstract(address: object) -> bool:
    """Whether it is a Unix socket's name outside the file system."""
    return (isinstance(address, str) and address.startswith("\0")) or (
        isinstance(address, bytes) and address.startswith(b"\0")
    )


def address_type(address: object) -> str:
    """The family of an address: "AF_INET", "AF_UNIX", or "AF_PIPE" for the names of Windows' pipes.

    `ValueError` for anything that is no address.
    """
    if type(address) is tuple:
        return "AF_INET"
    if type(address) is str and address.startswith("\\\\"):
        return "AF_PIPE"
    if type(address) is str or _is_abstract(address):
        return "AF_UNIX"
    raise ValueError(f"address type of {address!r} unrecognized")


# --- connections -------------------------------------------------------------------------------


class _ConnectionBase:
    _handle: int | None = None

    def __init__(self, handle: int, readable: bool = True, writable: bool = True) -> None:
        handle = index(handle)
        if handle < 0:
            raise ValueError("invalid handle")
        if not readable and not writable:
            raise ValueError("at least one of `readable` and `writable` must be True")
        self._framing = _core.Framing()
        self._handle = handle
        self._readable = readable
        self._writable = writable

    def __del__(self) -> None:
        self._close()

    def _close(self, _close: Callable[[int], None] = os.close) -> None:
        # Bound early: at interpreter exit `os` may be gone. The number is forgotten before it is
        # closed: another thread may be closing too, or reading, and it is soon somebody else's.
        handle, self._handle = self._handle, None
        if handle is not None:
            self._framing.close()
            _close(handle)

    def _check_closed(self) -> None:
        if self._handle is None:
            raise OSError(errno.EBADF, "handle is closed")

    def _check_readable(self) -> None:
        if not self._readable:
            raise OSError(errno.EBADF, "connection is write-only")

    def _check_writable(self) -> None:
        if not self._writable:
            raise OSError(errno.EBADF, "connection is read-only")

    def _bad_message_length(self) -> NoReturn:
        # What follows on the stream cannot be understood any more.
        if self._writable:
            self._readable = False
        else:
            self.close()
        raise OSError(errno.EMSGSIZE, "bad message length")

    @property
    def closed(self) -> bool:
        """Whether the connection is closed."""
        return self._handle is None

    @property
    def readable(self) -> bool:
        """Whether messages can be received."""
        return self._readable

    @property
    def writable(self) -> bool:
        """Whether messages can be sent."""
        return self._writable

    def fileno(self) -> int:
        """The descriptor; `OSError` if the connection is closed."""
        self._check_closed()
        return self._handle  # type: ignore[return-value]

    def close(self) -> None:
        """Close the connection; again is allowed."""
        self._close()

    def send_bytes(self, buf: Buffer, offset: int = 0, size: int | None = None) -> None:
        """Send a message: `size` bytes (default: all) of a bytes-like object from `offset` on.

        `ValueError` if they are not within it. On a non-blocking connection `BlockingIOError` when
        there is no room; if part of the message is out by then, the rest of it goes out with the
        next message. From multiprocessing.
        """
        self._check_closed()
        self._check_writable()
        if offset == 0 and size is None and type(buf) is bytes:
            return self._send_bytes(buf)
        view = memoryview(buf)
        if view.nbytes == 0:
            view = memoryview(b"")
        elif view.itemsize > 1 or view.ndim != 1:
            view = view.cast("B")
        if offset < 0:
            raise ValueError("offset is negative")
        if offset > view.nbytes:
            raise ValueError("buffer length < offset")
        if size is None:
            size = view.nbytes - offset
        elif size < 0:
            raise ValueError("size is negative")
        elif offset + size > view.nbytes:
            raise ValueError("buffer length < offset + size")
        return self._send_bytes(view[offset : offset + size])

    def send(self, obj: Any) -> None:
        """Send an object that can be pickled. From multiprocessing; see `send_bytes`."""
        self._check_closed()
        self._check_writable()
        self._send_bytes(ForkingPickler.dumps(obj))

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive a message as bytes.

        A message longer than `maxlength` bytes, or with a length that cannot be true, raises
        `OSError`, and the connection cannot be read from any more. `EOFError` when the other end
        has been closed, `OSError` when that happened within a message. On a non-blocking
        connection `BlockingIOError` until the whole message is there. From multiprocessing.
        """
        self._check_closed()
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        return self._recv_bytes(maxlength)

    def recv_bytes_into(self, buf: Buffer, offset: int = 0) -> int:
        """Receive a message into a writable bytes-like object, from byte `offset` on.

        Returns the message's length in bytes. If there is no room for it, `BufferTooShort` has the
        message as its argument. Other errors as in `recv_bytes`. From multiprocessing.
        """
        self._check_closed()
        self._check_readable()
        if offset < 0:
            raise ValueError("negative offset")
        with memoryview(buf) as view:
            if offset > view.nbytes:
                raise ValueError("offset too large")
            received = self._framing.recv_into(self._handle, view, offset)  # type: ignore[arg-type]
        if received is None:
            self._bad_message_length()
        if isinstance(received, bytes):
            raise exceptions.BufferTooShort(received)
        return received

    def recv(self) -> Any:
        """Receive an object. From multiprocessing; errors as in `recv_bytes`."""
        return ForkingPickler.loads(self._recv_pickle())

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something to receive within `timeout` seconds (None: no limit).

        A closed other end counts: `recv` would not wait. From multiprocessing.
        """
        self._check_closed()
        self._check_readable()
        return self._poll(timeout)

    def _send_bytes(self, buf: Buffer) -> None:
        self._framing.send(self._handle, buf)  # type: ignore[arg-type]

    def _recv_bytes(self, maxsize: int | None = None) -> bytes:
        message = self._framing.recv(self._handle, maxsize)  # type: ignore[arg-type]
        if message is None:
            self._bad_message_length()
        return message

    def _recv_pickle(self) -> Buffer:
        """A message for `loads`, not to be kept: its memory serves again."""
        self._check_closed()
        self._check_readable()
        message = self._framing.recv_pickle(self._handle)  # type: ignore[arg-type]
        if message is None:
            self._bad_message_length()
        return message

    def _poll(self, timeout: float | None) -> bool:
        return _core.poll_readable(self._handle, timeout)  # type: ignore[arg-type]

    def __enter__(self) -> _ConnectionBase:
        return self

    def __exit__(self, exc_type: object, exc_value: object, exc_tb: object) -> None:
        self.close()

    def send_offset(self, buf: Buffer, offset: int) -> int:
        """Write the bytes of `buf` from `offset` on, unframed, as far as they go without waiting.

        Returns the number of bytes written; `BlockingIOError` if there was no room at all. A
        blocking connection takes them all. From billiard: Celery writes its tasks with it.
        """
        return _core.send_offset(self.fileno(), buf, offset)

    def setblocking(self, blocking: bool) -> None:
        """Make the descriptor blocking or not, in every process that shares it. From billiard."""
        setblocking(self.fileno(), blocking)


class Connection(_ConnectionBase):
    """One end of a channel: messages over a descriptor, which the connection owns.

    Process-local; the descriptor's other copies (in forked children, or where the connection was
    sent) reach the same channel.
    """

    _write = staticmethod(os.write)
    _read = staticmethod(os.read)

    def _send(self, buf: Buffer, write: Callable[[int, Any], int] = os.write) -> None:
        """Write raw bytes, all of them."""
        rest = memoryview(buf)
        while rest:
            rest = rest[write(self.fileno(), rest) :]

    def _recv(self, size: int, read: Callable[[int, int], bytes] = os.read) -> BytesIO:
        """Read raw bytes, exactly `size` of them."""
        buffer = BytesIO()
        while (left := size - buffer.tell()) > 0:
            chunk = read(self.fileno(), left)
            if not chunk and left == size:
                raise EOFError
            if not chunk:
                raise OSError(errno.EIO, "got end of file during message")
            buffer.write(chunk)
        return buffer


def Pipe(
    duplex: bool = True, rnonblock: bool = False, wnonblock: bool = False
) -> tuple[Connection, Connection]:
    """A pair of connections, each the other's opposite end.

    With `duplex` false the first only receives and the second only sends. `rnonblock` makes the
    first one non-blocking, `wnonblock` the second. From multiprocessing; the flags are billiard's.
    """
    first, second = _core.make_pipe(bool(duplex), bool(rnonblock), bool(wnonblock))
    if duplex:
        return Connection(first), Connection(second)
    return Connection(first, writable=False), Connection(second, readable=False)


# --- listening ---------------------------------------------------------------------------------


class Listener:
    """Listens for connections on a TCP or Unix socket.

    `address` defaults to an arbitrary free one of `family`, which defaults to the address's, or to
    Unix sockets. `backlog` is the number of connections that may wait to be accepted. With an
    `authkey` (bytes) both ends must show that they know it. From multiprocessing.
    """

    def __init__(
        self,
        address: Address | None = None,
        family: str | None = None,
        backlog: int = 1,
        authkey: bytes | None = None,
    ) -> None:
        if authkey is not None:
            _auth.check_authkey(authkey)
        family = family or (address_type(address) if address else default_family)
        _validate_family(family)
        self._listener: SocketListener | None = SocketListener(
            address or arbitrary_address(family), family, backlog
        )
        self._authkey = authkey

    def accept(self) -> Any:
        """Wait for a connection and return it (a `Connection`).

        With an authkey: `AuthenticationError` if the other end has another one or does not finish
        the handshake within `CONNECTION_TIMEOUT` seconds, `EOFError` or `OSError` if it hangs up.
        """
        connection = self._open_listener().accept()
        if self._authkey is not None:
            _authenticate(connection, self._authkey, deliver_challenge, answer_challenge)
        return connection

    def close(self) -> None:
        """Close the socket; a Unix socket's file is removed."""
        listener = self._listener
        if listener is not None:
            self._listener = None
            listener.close()

    def _open_listener(self) -> SocketListener:
        if self._listener is None:
            raise OSError(errno.EBADF, "listener is closed")
        return self._listener

    @property
    def address(self) -> Any:
        """The address that is being listened on."""
        return self._open_listener()._address

    @property
    def last_accepted(self) -> Any:
        """The address of the last connection accepted, or None."""
        return self._open_listener()._last_accepted

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, exc_type: object, exc_value: object, exc_tb: object) -> None:
        self.close()


def Client(
    address: Address,
    family: str | None = None,
    authkey: bytes | None = None,
    *,
    patient: bool = True,
) -> Connection:
    """A connection to the `Listener` at `address`. Errors as `Listener.accept`.

    With an authkey this waits until the other end accepts, however long that takes; only then do
    the seconds of the handshake begin. Not if `patient` is false (ours): they begin at once.
    """
    if authkey is not None:
        _auth.check_authkey(authkey)
    family = family or address_type(address)
    _validate_family(family)
    connection = SocketClient(address, family)
    if authkey is not None:
        steps = answer_challenge, deliver_challenge
        _authenticate(connection, authkey, *steps, patient=patient)
    return connection


def detach(sock: socket.socket) -> int:
    """Take the descriptor out of a socket object."""
    return sock.detach()


class SocketListener:
    """A socket that is bound to an address and listens."""

    def __init__(self, address: Address, family: str, backlog: int = 1) -> None:
        import socket

        self._socket = socket.socket(getattr(socket, family))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setblocking(True)
            self._socket.bind(address)
            self._socket.listen(backlog)
            self._address = self._socket.getsockname()
        except BaseException:
            self._socket.close()
            raise
        self._family = family
        self._last_accepted: Any = None
        self._unlink: Callable[[], object] | None = None
        if family == "AF_UNIX" and not _is_abstract(address):
            self._unlink = util.Finalize(self, _remove_file, args=(address,), exitpriority=0)

    def accept(self) -> Connection:
        """Wait for a connection; no authentication."""
        accepted, self._last_accepted = self._socket.accept()
        accepted.setblocking(True)
        return Connection(detach(accepted))

    def close(self) -> None:
        """Close the socket and remove its file."""
        try:
            self._socket.close()
        finally:
            unlink, self._unlink = self._unlink, None
            if unlink is not None:
                unlink()


def _remove_file(path: str) -> None:
    try:  # noqa: SIM105  (contextlib is dear to import)
        os.unlink(path)
    except FileNotFoundError:
        pass  # somebody was faster, or has removed the directory


def SocketClient(address: Address, family: str | None = None) -> Connection:
    """A connection to the socket at `address`; no authentication."""
    import socket

    with socket.socket(getattr(socket, family or address_type(address))) as client:
        client.setblocking(True)
        client.connect(address)
        return Connection(detach(client))


#: seconds until the next accept when the process is out of descriptors or memory
_BREATH = 0.05
_OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def wait_for_resources(exc: BaseException) -> bool:
    """Whether an `accept` failed for want of descriptors or memory; if so, after a short sleep: the
    next one would fail at once again (ours)."""
    lacking = isinstance(exc, OSError) and exc.errno in _OUT_OF
    if lacking:
        sleep(_BREATH)
    return lacking


# --- authentication ----------------------------------------------------------------------------


def deliver_challenge(
    connection: _auth.Messages, authkey: bytes, digest_name: str = "sha256"
) -> None:
    """Have the other end prove that it knows `authkey`; `AuthenticationError` if it does not."""
    _auth.deliver(connection, authkey, digest_name, MESSAGE_LENGTH, ALLOW_MD5)


def answer_challenge(connection: _auth.Messages, authkey: bytes) -> None:
    """Prove to the other end that we know `authkey`; `AuthenticationError` if it disagrees."""
    _auth.answer(connection, authkey, ALLOW_MD5)


def _create_response(authkey: bytes, message: bytes) -> bytes:
    return _auth.create_answer(authkey, message, ALLOW_MD5)


def _verify_challenge(authkey: bytes, message: bytes, response: bytes) -> None:
    _auth.check_answer(authkey, message, response, ALLOW_MD5)


def _authenticate(
    connection: Connection,
    authkey: bytes,
    *steps: Callable[[_auth.Messages, bytes], None],
    patient: bool = False,
) -> None:
    try:
        if patient:
            connection.poll(None)
        with _auth.HandshakeConnection(connection, CONNECTION_TIMEOUT) as limited:
            for step in steps:
                step(limited, authkey)
    except BaseException:
        connection.close()
        raise


# --- XML instead of pickle ---------------------------------------------------------------------


class ConnectionWrapper:
    """A connection that turns objects into bytes with `dumps` and back with `loads`."""

    def __init__(
        self, conn: Any, dumps: Callable[[Any], bytes], loads: Callable[[bytes], Any]
    ) -> None:
        self._conn = conn
        self._dumps = dumps
        self._loads = loads
        for attr in ("fileno", "close", "poll", "recv_bytes", "send_bytes"):
            setattr(self, attr, getattr(conn, attr))

    def send(self, obj: Any) -> None:
        """Send an object."""
        self._conn.send_bytes(self._dumps(obj))

    def recv(self) -> Any:
        """Receive an object."""
        return self._loads(self._conn.recv_bytes())


def _xml_dumps(obj: Any) -> bytes:
    import xmlrpc.client

    return xmlrpc.client.dumps((obj,), None, None, None, True).encode("utf-8")


def _xml_loads(s: bytes) -> Any:
    import xmlrpc.client

    (obj,), _method = xmlrpc.client.loads(s.decode("utf-8"))
    return obj


class XmlListener(Listener):
    """A listener whose connections speak XML-RPC's encoding: no code runs by receiving it."""

    def accept(self) -> ConnectionWrapper:
        """As `Listener.accept`, wrapped."""
        return ConnectionWrapper(super().accept(), _xml_dumps, _xml_loads)


def XmlClient(*args: Any, **kwds: Any) -> ConnectionWrapper:
    """As `Client`, for an `XmlListener`."""
    return ConnectionWrapper(Client(*args, **kwds), _xml_dumps, _xml_loads)


# --- waiting -----------------------------------------------------------------------------------


def wait(object_list: Iterable[int | HasFileno], timeout: float | None = None) -> list[Any]:
    """Wait until one of the objects can be read from; return the list of those that can.

    Objects are connections, sockets, descriptors (a process's sentinel) and whatever has a
    `fileno()`. After `timeout` seconds (None: no limit) the list is empty. Two objects with one
    descriptor count as one. `ValueError` for a descriptor that is not open. From multiprocessing.
    """
    return _poll(object_list, timeout)


def _poll(fds: Iterable[int | HasFileno], timeout: float | None) -> list[Any]:
    objects: dict[int, Any] = {}
    for item in fds:
        objects[index(item) if isinstance(item, int) else _fileno(item)] = item
    return [objects[fd] for fd in _core.wait_readable(list(objects), timeout)]


def _fileno(item: Any) -> int:
    try:
        fileno = item.fileno
    except AttributeError:
        return index(item)
    return index(fileno())


# --- sending connections to other processes ----------------------------------------------------


def reduce_connection(conn: Connection) -> tuple[Callable[..., Connection], tuple[Any, ...]]:
    """Pickle a connection: its descriptor travels beside the pickle."""
    df = reduction.DupFd(conn.fileno())
    return rebuild_connection, (df, conn.readable, conn.writable)


def rebuild_connection(df: Any, readable: bool, writable: bool) -> Connection:
    """The inverse of `reduce_connection`, in the receiving process."""
    return Connection(detach(df), readable, writable)


reduction.register(Connection, reduce_connection)
