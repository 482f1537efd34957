"""What travels between a manager's server and its clients, and errors that come back.

```
 client                                    server
 (ident, method, args, kwds)  ───────────► looks ident up, calls, answers one of
                              ◄─────────── ('#RETURN', value)
                                           ('#ERROR', exception)            raised by the method
                                           ('#PROXY', (exposed, token))     the value stays there
                                           ('#TRACEBACK', text)             raised by the server
                                           ('#UNSERIALIZABLE', text)
```

It is multiprocessing's protocol, and so a peer may be CPython without billiard, which cannot
unpickle `billiard.managers.ListProxy`. Two peers of ours tell each other at the start of a
connection what they are: the client by a suffix of its name, the server by its answer. To any other
peer, proxies and tokens are sent as `multiprocessing.managers`' own classes; what comes from it
under those names is read as ours.
"""

from __future__ import annotations

import io
from _pickle import Unpickler
from _pickle import loads as _loads

from .reduction import ForkingPickler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol, Self

    class Connection(Protocol):
        """What managers need of a connection, whatever its serializer."""

        def send(self, obj: Any, /) -> None: ...
        def recv(self) -> Any: ...
        def close(self) -> None: ...


#: what a server of ours answers to 'accept_connection' and 'dummy' (CPython's answers None)
OURS = "billiard"
#: what a client of ours appends to its name
OURS_SUFFIX = "|" + OURS

_THEIRS = "multiprocessing.managers"


class Token:
    """Names a shared object: its type id, its manager's address, and its id there."""

    __module__ = "billiard.managers"
    __slots__ = ("address", "id", "typeid")

    def __init__(self, typeid: str, address: Any, id: str) -> None:
        self.typeid, self.address, self.id = typeid, address, id

    def __getstate__(self) -> tuple[str, Any, str]:
        return self.typeid, self.address, self.id

    def __setstate__(self, state: tuple[str, Any, str]) -> None:
        self.typeid, self.address, self.id = state

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}"
            f"(typeid={self.typeid!r}, address={self.address!r}, id={self.id!r})"
        )


class RemoteError(Exception):
    """The server of a manager failed; the text is its traceback."""

    __module__ = "billiard.managers"

    def __str__(self) -> str:
        line = "-" * 75
        return f"\n{line}\n{self.args[0]}{line}"


def dispatch(
    c: Connection, id: str | None, methodname: str, args: Any = (), kwds: Mapping[str, Any] = {}
) -> Any:
    """Send one request over `c` and return the answer, or raise the error that it is."""
    c.send((id, methodname, args, kwds))
    kind, result = c.recv()
    if kind == "#RETURN":
        return result
    try:
        raise convert_to_error(kind, result)
    finally:
        del result  # the traceback refers to this frame


def convert_to_error(kind: str, result: Any) -> BaseException:
    """The exception that an answer stands for."""
    if kind == "#ERROR":
        assert isinstance(result, BaseException)
        return result
    if kind in ("#TRACEBACK", "#UNSERIALIZABLE"):
        if not isinstance(result, str):
            raise TypeError(f"{kind} carries {result!r}, not a string")
        if kind == "#UNSERIALIZABLE":
            result = f"Unserializable message: {result}\n"
        return RemoteError(result)
    return ValueError(f"Unrecognized message type {kind!r}")


# ---- peers that are not ours ----


def _as_theirs(obj: Any) -> Any:
    """The reduction of a proxy or a token of ours to multiprocessing's classes."""
    import multiprocessing.managers

    theirs: Any = multiprocessing.managers

    if isinstance(obj, Token):
        return theirs.Token, obj.__getstate__()
    _, (maker, token, serializer, kwds) = obj.__reduce__()
    known = None
    if maker.__module__ == Token.__module__:
        known = getattr(theirs, maker.__name__, None)
    if known is None:
        # A type of proxy that they do not have; an automatic one has the same methods.
        known, kwds = theirs.AutoProxy, kwds | {"exposed": obj._exposed_}
    return theirs.RebuildProxy, (known, token, serializer, kwds)


class _Pickler(ForkingPickler):
    def reducer_override(self, obj: Any) -> Any:
        from ._manager_proxies import BaseProxy

        return _as_theirs(obj) if isinstance(obj, (Token, BaseProxy)) else NotImplemented


class _Unpickler(Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if module == _THEIRS:
            from . import managers

            if hasattr(managers, name):
                return getattr(managers, name)
        return super().find_class(module, name)


def loads(data: bytes) -> Any:
    """Unpickle what a peer of either kind sent."""
    if _THEIRS.encode() in data:
        return _Unpickler(io.BytesIO(data)).load()
    return _loads(data)


def dumps(obj: Any) -> bytes:
    """Pickle for a peer that need not have billiard."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(obj)
    return buffer.getvalue()


class ForeignConnection:
    """A connection to a peer that is not ours."""

    _dumps, _loads = staticmethod(dumps), staticmethod(loads)

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.send_bytes, self.recv_bytes = connection.send_bytes, connection.recv_bytes

    def send(self, obj: Any) -> None:
        """Send `obj` so that a peer without billiard can read it."""
        self.send_bytes(dumps(obj))

    def recv(self) -> Any:
        """Receive; multiprocessing's proxies arrive as ours."""
        return loads(self.recv_bytes())

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def for_any_peer(connection: Any, serializer: str) -> Any:
    """`connection`, so that either kind of peer can be talked to; xmlrpclib has one kind only."""
    return ForeignConnection(connection) if serializer == "pickle" else connection


def client_name() -> str:
    """What a client of ours calls itself: its process, its thread, and that it is ours."""
    import threading

    from .process import current_process

    name: str = current_process().name
    thread = threading.current_thread()
    if thread is not threading.main_thread():
        name += "|" + thread.name
    return name + OURS_SUFFIX


def explain(exc: BaseException, address: Any) -> BaseException:
    """The same error, saying that it is about the manager at `address`."""
    if isinstance(exc, EOFError) and not exc.args:
        exc.args = (f"the manager at {address!r} has closed the connection: it is gone",)
    elif isinstance(exc, OSError):
        exc.add_note(f"The manager at {address!r} cannot be reached: it is gone, or never was.")
    return exc
