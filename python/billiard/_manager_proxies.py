"""Proxies: objects here whose methods run on an object in a manager's server.

```
 proxy ──┐
 proxy ──┼─ _tls ── one connection per thread and manager ──► a thread of the server ── referents
 proxy ──┘
```

A proxy in a client owns one reference to its referent, which the server counts; it is given back
when the proxy dies. A proxy that was put *into* a referent lives in the server and is not counted:
it holds its referent directly (`Server.hold`), so that nested objects, cycles of them included, are
garbage-collected like any other. Proxies are process-local; a forked child takes references of its
own and opens its own connections.
"""

from __future__ import annotations

import types
from functools import partial

from . import connection, process, util
from ._manager_wire import (
    OURS,
    ForeignConnection,
    Token,
    client_name,
    convert_to_error,
    dispatch,
    explain,
    for_any_peer,
)
from .context import get_spawning_popen
from .reduction import ForkingPickler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, ClassVar

_MODULE = "billiard.managers"  # where all of this is public, and pickled from


class State:
    """Where a manager is in its life."""

    __module__ = _MODULE
    __slots__ = ("value",)
    INITIAL = 0
    STARTED = 1
    SHUTDOWN = 2

    value: int


#: serializer -> (Listener, Client). A server accepts at once, or it is stuck.
listener_client: dict[str, tuple[Any, Any]] = {
    "pickle": (connection.Listener, partial(connection.Client, patient=False)),
    "xmlrpclib": (connection.XmlListener, partial(connection.XmlClient, patient=False)),
}

#: the keys of the managers that this process has proxies of, by address: a proxy that arrives in a
#: message brings no key (4.3.2 took the process's own, which need not be the manager's)
_authkeys: dict[Any, bytes] = {}


class ProcessLocalSet(set[str]):
    """A set that is empty in a forked child, and wherever it is pickled to."""

    __module__ = _MODULE

    def __init__(self) -> None:
        util.register_after_fork(self, lambda obj: obj.clear())

    def __reduce__(self) -> tuple[type[ProcessLocalSet], tuple[()]]:
        return type(self), ()


def _local_server() -> Any:
    """The server that this process is, if it is one."""
    return getattr(process.current_process(), "_manager_server", None)


def _key(address: Any) -> Any:
    return tuple(address) if isinstance(address, list) else address


def _as_is(obj: Any) -> Any:
    return obj


def _stages(conn: Any) -> tuple[Callable[..., Any], ...]:
    """How to encode a request for `conn`, send it, receive the answer, and decode that."""
    if type(conn) is connection.Connection:
        return ForkingPickler.dumps, conn.send_bytes, conn._recv_pickle, ForkingPickler.loads
    if type(conn) in (ForeignConnection, connection.ConnectionWrapper):
        return conn._dumps, conn.send_bytes, conn.recv_bytes, conn._loads
    return _as_is, conn.send, conn.recv, _as_is


class BaseProxy:
    """What every proxy inherits. Origin: multiprocessing.

    `token` names the referent. Methods of a subclass call `_callmethod`. Errors of a lost manager
    are `EOFError` or `OSError`, at once, and say which manager; a wrong key is
    `AuthenticationError`; a failure of the server itself is `RemoteError` with its traceback.
    """

    __module__ = _MODULE
    _address_to_local: ClassVar[dict[Any, tuple[Any, ProcessLocalSet]]] = {}
    _mutex = util.ForkAwareThreadLock()
    _exposed_: tuple[str, ...]
    _isauto = False
    _close: util.Finalize

    def __init__(
        self,
        token: Token,
        serializer: str,
        manager: Any = None,
        authkey: bytes | None = None,
        exposed: Iterable[str] | None = None,
        incref: bool = True,
        manager_owned: bool = False,
    ) -> None:
        address = _key(token.address)
        with BaseProxy._mutex:
            local = BaseProxy._address_to_local.get(address)
            if local is None:
                local = util.ForkAwareLocal(), ProcessLocalSet()
                BaseProxy._address_to_local[address] = local
        # the connection of this thread, and the ids that this process owns references to
        self._tls: Any = local[0]
        self._idset = local[1]
        self._token = token
        self._id = token.id
        self._manager = manager
        #: type id -> registration, to make proxies of what methods return; outlives a fork
        self._registry: dict[str, Any] = {} if manager is None else manager._registry
        self._serializer = serializer
        self._Client = listener_client[serializer][1]

        if authkey is None and manager is not None:
            authkey = manager._authkey
        if authkey is None:
            authkey = _authkeys.get(address)
        if authkey is None:
            authkey = process.current_process().authkey
        self._authkey = process.AuthenticationString(authkey)

        self._owned_by_manager = manager_owned
        #: in the server, what keeps the referent
        self._held: object = None
        if manager_owned:
            self._held = _local_server().hold(self._id)
        elif incref:
            self._incref()
        util.register_after_fork(self, BaseProxy._after_fork)

    # ---- talking to the server ----

    def _request(self, methodname: str, args: tuple[Any, ...]) -> Any:
        """One request to the server itself, on a connection of its own."""
        try:
            conn = self._Client(self._token.address, authkey=self._authkey)
            try:
                return dispatch(conn, None, methodname, args)
            finally:
                conn.close()
        except (OSError, EOFError) as exc:
            raise explain(exc, self._token.address) from None

    def _connect(self) -> Any:
        """Open a connection for this thread."""
        util.debug("making connection to manager")
        try:
            conn = self._Client(self._token.address, authkey=self._authkey)
            try:
                ours = dispatch(conn, None, "accept_connection", (client_name(),)) == OURS
            except BaseException:
                conn.close()
                raise
        except (OSError, EOFError) as exc:
            raise explain(exc, self._token.address) from None
        return conn if ours else for_any_peer(conn, self._serializer)

    def _callmethod(
        self, methodname: str, args: tuple[Any, ...] = (), kwds: Mapping[str, Any] = {}
    ) -> Any:
        """Call a method of the referent; a copy of its result, or a proxy for it."""
        # Out of reach while it is in use: a signal handler that calls as well gets another one.
        tls = self._tls.__dict__
        conn = tls.pop("connection", None)
        if conn is None:
            conn = self._connect()
        encode, send, receive, decode = _stages(conn)
        in_step = True  # no answer is under way that the next request could take for its own
        try:
            request = encode((self._id, methodname, args, kwds))
            in_step = False
            send(request)
            answer = receive()
            in_step = True
            kind, result = decode(answer)
        except (OSError, EOFError) as exc:
            if in_step:
                raise  # what is in the answer
            raise explain(exc, self._token.address) from None
        finally:
            # The server has what this thread acquired with the connection: it stays the same one.
            superfluous = conn
            if in_step:
                superfluous, tls["connection"] = tls.get("connection"), conn
            if superfluous is not None:
                superfluous.close()

        if kind == "#RETURN":
            return result
        if kind == "#PROXY":
            return self._make_proxy(*result)
        try:
            raise convert_to_error(kind, result)
        finally:
            del result  # the traceback refers to this frame

    def _make_proxy(self, exposed: tuple[str, ...], token: Any) -> Any:
        """The proxy for a result that stayed in the server."""
        # Reachable for us is the address that we have, whatever the server calls itself.
        token = Token(token.typeid, self._token.address, token.id)
        registry = self._registry or _default_registry()
        proxytype = registry[token.typeid][-1] if token.typeid in registry else AutoProxy
        return adopt(
            proxytype, token, self._serializer, self._manager, self._authkey, exposed, self._request
        )

    def _getvalue(self) -> Any:
        """A copy of the referent."""
        return self._callmethod("#GETVALUE")

    # ---- the reference ----

    def _incref(self) -> None:
        """Take a reference, to be given back when this proxy dies."""
        self._request("incref", (self._id,))
        util.debug("INCREF %r", self._id)
        self._own()

    def _own(self) -> None:
        """From now on this proxy has a reference to give back."""
        self._idset.add(self._id)
        _authkeys[_key(self._token.address)] = self._authkey
        state = self._manager and self._manager._state
        self._close = util.Finalize(
            self,
            BaseProxy._decref,
            args=(self._token, self._authkey, state, self._tls, self._idset, self._Client),
            exitpriority=10,
        )

    @staticmethod
    def _decref(
        token: Token, authkey: bytes, state: State | None, tls: Any, idset: set[str], _Client: Any
    ) -> None:
        """Give a reference back; with the last one, this thread's connection goes."""
        idset.discard(token.id)
        if state is None or state.value == State.STARTED:
            try:
                util.debug("DECREF %r", token.id)
                conn = _Client(token.address, authkey=authkey)
                try:
                    dispatch(conn, None, "decref", (token.id,))
                finally:
                    conn.close()
            except Exception as exc:
                util.debug("... decref failed %s", exc)
        else:
            util.debug("DECREF %r -- manager already shutdown", token.id)

        if not idset and hasattr(tls, "connection"):
            util.debug("no more proxies here, closing the connection")
            tls.connection.close()
            del tls.connection

    def _after_fork(self) -> None:
        self._manager = None
        self._held = None
        self._owned_by_manager = False
        try:
            self._incref()
        except Exception as exc:  # the manager may have gone
            util.info("incref failed: %s", exc)

    # ---- the object itself ----

    def __reduce__(self) -> Any:
        kwds: dict[str, Any] = {}
        if get_spawning_popen() is not None:
            kwds["authkey"] = self._authkey
        if self._owned_by_manager:
            # It is on its way out of the server: the referent has to wait for its receiver.
            _local_server().escaping(self)
        if self._isauto:
            kwds["exposed"] = self._exposed_
            return RebuildProxy, (AutoProxy, self._token, self._serializer, kwds)
        return RebuildProxy, (type(self), self._token, self._serializer, kwds)

    def __deepcopy__(self, memo: object) -> Any:
        return self._getvalue()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} object, typeid {self._token.typeid!r} at {id(self):#x}>"

    def __str__(self) -> str:
        """The referent's representation, or our own if that cannot be had."""
        try:
            return str(self._callmethod("__repr__"))
        except Exception:
            return repr(self)[:-1] + "; '__str__()' failed>"


def proxies_among(value: object, depth: int = 3) -> list[BaseProxy]:
    """The proxies in `value` and in the containers in it, down to `depth`."""
    if isinstance(value, BaseProxy):
        return [value]
    if type(value) is dict:
        value = (*value, *value.values())
    if depth and type(value) in (tuple, list, set, frozenset):
        inner = (proxies_among(item, depth - 1) for item in value)  # type: ignore[attr-defined]
        return [proxy for found in inner for proxy in found]
    return []


def _default_registry() -> dict[str, Any]:
    from .managers import SyncManager

    return SyncManager._registry


def RebuildProxy(func: Callable[..., Any], token: Token, serializer: str, kwds: Any) -> Any:
    """What a pickled proxy is unpickled with; a nested one, where the server itself does it."""
    server = _local_server()
    if server is not None and server.address == token.address:
        kwds["manager_owned"] = True
    incref = kwds.pop("incref", True) and not getattr(
        process.current_process(), "_inheriting", False
    )
    return func(token, serializer, incref=incref, **kwds)


def adopt(
    proxytype: Any,
    token: Token,
    serializer: str,
    manager: Any,
    authkey: bytes,
    exposed: Iterable[str],
    request: Callable[[str, tuple[str]], Any],
) -> Any:
    """A proxy for an object that the server has just made, with one reference counted for us.

    Our own types of proxies take that reference over. Other makers of proxies need not know of
    that: theirs takes another one, and `request` gives the first back.
    """
    known = proxytype is AutoProxy or (
        isinstance(proxytype, type)
        and issubclass(proxytype, BaseProxy)
        and proxytype.__init__ is BaseProxy.__init__
        and proxytype._incref is BaseProxy._incref
    )
    if known:
        proxy = proxytype(token, serializer, manager, authkey, exposed, incref=False)
        proxy._own()
        return proxy
    proxy = proxytype(token, serializer, manager=manager, authkey=authkey, exposed=exposed)
    request("decref", (token.id,))
    return proxy


# ---- making types of proxies ----


def _forward(name: str) -> Callable[..., Any]:
    def method(self: BaseProxy, *args: Any, **kwds: Any) -> Any:
        return self._callmethod(name, args, kwds)

    method.__name__ = method.__qualname__ = name
    return method


def MakeProxyType(
    name: str,
    exposed: Iterable[str],
    _cache: dict[tuple[str, tuple[str, ...]], type[BaseProxy]] = {},  # noqa: B006  a cache
) -> Any:
    """A type of proxy with the methods named in `exposed`; the same one for the same arguments."""
    exposed = tuple(exposed)
    made = _cache.get((name, exposed))
    if made is None:
        members: dict[str, Any] = {method: _forward(method) for method in exposed}
        members |= {"__module__": _MODULE, "_exposed_": exposed}
        made = _cache[name, exposed] = type(name, (BaseProxy,), members)
    return made


def AutoProxy(
    token: Token,
    serializer: str,
    manager: Any = None,
    authkey: bytes | None = None,
    exposed: Iterable[str] | None = None,
    incref: bool = True,
    manager_owned: bool = False,
) -> Any:
    """A proxy with the public methods of its referent, which the server is asked for."""
    if authkey is None and manager is not None:
        authkey = manager._authkey
    if authkey is None:
        authkey = _authkeys.get(_key(token.address)) or process.current_process().authkey

    if exposed is None:
        conn = listener_client[serializer][1](token.address, authkey=authkey)
        try:
            # In a form that a peer without billiard can read.
            plain = types.SimpleNamespace(typeid=token.typeid, address=token.address, id=token.id)
            exposed = dispatch(conn, None, "get_methods", (plain,))
        finally:
            conn.close()
        assert exposed is not None

    proxy = MakeProxyType(f"AutoProxy[{token.typeid}]", exposed)(
        token,
        serializer,
        manager=manager,
        authkey=authkey,
        incref=incref,
        manager_owned=manager_owned,
    )
    proxy._isauto = True
    return proxy
