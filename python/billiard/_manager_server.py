"""The server of a manager: a thread per connection, a table of shared objects.

```
 accepter ──► handle_request, one thread per connection ──┬─ one request to the server, then closed
              (authentication comes first)                └─ accept_connection ──► serve_client:
                                                             requests to shared objects, until EOF

 id_to_obj[ident]       (object, exposed methods, method -> type id)
 id_to_refcount[ident]  references that clients own; at 0 both entries go
 id_to_local_proxy_obj  weak: referents that proxies inside other referents hold (`hold`)
```

The server is process-local and serves in one process only; a forked child of it has no part in it.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref

from . import process, util
from ._manager_proxies import _MODULE, listener_client
from ._manager_wire import OURS, OURS_SUFFIX, Token, for_any_peer
from .connection import wait_for_resources
from .reduction import ForkingPickler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar

    #: object, exposed methods, method -> type id
    _Entry = tuple[Any, Any, Any]

#: what a thread need not have acquired to release it; for the others see `_release_owned`
_RELEASED_BY_ANYBODY = (type(threading.Lock()), threading.Semaphore)


def all_methods(obj: object) -> list[str]:
    """The names of the callable attributes of `obj`.

    `dir()` may know an attribute that is not there yet, such as the outcome of an unfinished job.
    """
    return [name for name in dir(obj) if callable(getattr(obj, name, None))]


def public_methods(obj: object) -> list[str]:
    """Those of `all_methods` without a leading underscore."""
    return [name for name in all_methods(obj) if name[0] != "_"]


def _traceback() -> str:
    from traceback import format_exc

    return format_exc()


class _Held:
    """What the proxies inside referents share: as long as it lives, its referent does."""

    __slots__ = ("__weakref__", "entry")

    def __init__(self, entry: _Entry) -> None:
        self.entry = entry


class _Served(Exception):
    """Raised where a connection has been served to its end, and nothing is left to answer."""


class Server:
    """Serves the objects of a manager. Origin: multiprocessing.

    `registry` maps type ids to (callable, exposed, method_to_typeid, proxytype). Raises `TypeError`
    for an `authkey` that is not bytes, `OSError` for an `address` that cannot be listened at.
    """

    __module__ = _MODULE
    public: ClassVar[list[str]] = [
        "shutdown",
        "create",
        "accept_connection",
        "get_methods",
        "debug_info",
        "number_of_objects",
        "dummy",
        "incref",
        "decref",
    ]

    def __init__(
        self, registry: dict[str, Any], address: Any, authkey: bytes, serializer: str
    ) -> None:
        if not isinstance(authkey, bytes):
            raise TypeError(f"authkey must be bytes, not {type(authkey).__name__}")
        self.registry = registry
        self.authkey = process.AuthenticationString(authkey)
        self._serializer = serializer
        # Authentication is left to the connection's own thread: a slow client holds up nobody.
        self.listener = listener_client[serializer][0](address=address, backlog=128)
        self.address = self.listener.address

        self.id_to_obj: dict[str, _Entry] = {"0": (None, (), None)}
        self.id_to_refcount: dict[str, int] = {}
        self.id_to_local_proxy_obj: weakref.WeakValueDictionary[str, _Held] = (
            weakref.WeakValueDictionary()
        )
        # Re-entrant: a garbage collection under it may run finalizers that come back here.
        self.mutex = threading.RLock()
        #: may be set before anybody waits for it, by who sees the parent die
        self.stop_event = threading.Event()
        #: of a serving thread: proxies that its last answer carried out of the server
        self._answer = threading.local()

    # ---- threads ----

    def serve_forever(self) -> None:
        """Serve until a client asks for `shutdown`; ends with `SystemExit`."""
        process.current_process()._manager_server = self  # type: ignore[attr-defined]
        try:
            threading.Thread(target=self.accepter, daemon=True).start()
            self.stop_event.wait()
        except (KeyboardInterrupt, SystemExit):
            util.info("the server was interrupted")
        finally:
            if sys.stdout != sys.__stdout__:
                util.debug("resetting stdout, stderr")
                sys.stdout = sys.__stdout__
                sys.stderr = sys.__stderr__
            sys.exit(0)

    def accepter(self) -> None:
        """Accept connections; a thread for each."""
        while not self.stop_event.is_set():
            try:
                conn = self.listener.accept()
            except OSError as exc:
                wait_for_resources(exc)
                continue
            try:
                threading.Thread(target=self.handle_request, args=(conn,), daemon=True).start()
            except RuntimeError as exc:  # no thread left
                util.info("cannot serve a client: %s", exc)
                conn.close()

    def handle_request(self, c: Any) -> None:
        """Serve a new connection: authenticate it, answer its request, close it."""
        try:
            self._handle_request(c)
        except _Served:
            util.debug("connection served")
        except OSError as exc:
            util.info("lost a client: %s", exc)
        finally:
            c.close()

    def _handle_request(self, c: Any) -> None:
        from . import connection

        try:
            # Within its time limit, and of the connection itself where `c` wraps one.
            connection._authenticate(
                getattr(c, "_conn", c),
                self.authkey,
                connection.deliver_challenge,
                connection.answer_challenge,
            )
        except Exception as exc:
            util.info("a client was refused: %s", exc)  # and is told nothing
            return
        request = None
        try:
            request = for_any_peer(c, self._serializer).recv()
            _, funcname, args, kwds = request
            if funcname not in self.public:
                raise AssertionError(f"{funcname!r} unrecognized")
            result = getattr(self, funcname)(c, *args, **kwds)
        except _Served:
            raise
        except BaseException:
            msg: tuple[str, Any] = ("#TRACEBACK", _traceback())
        else:
            msg = ("#RETURN", result)
        try:
            c.send(msg)
        except Exception as exc:
            util.info("failure to send %r, the answer to %r: %s", msg, request, exc)
            if not isinstance(exc, OSError):
                c.send(("#TRACEBACK", _traceback()))

    def serve_client(self, conn: Any) -> None:
        """Answer requests to shared objects until the client closes the connection."""
        name = threading.current_thread().name
        util.debug("starting server thread to service %r", name)
        recv, send = conn.recv, conn.send
        acquired: list[Any] = []
        try:
            while not self.stop_event.is_set():
                try:
                    request = recv()
                except EOFError:
                    util.debug("got EOF -- exiting thread serving %r", name)
                    return
                except OSError as exc:
                    util.info("lost the connection that %r serves: %s", name, exc)
                    return
                except Exception:  # a message that cannot be unpickled
                    msg: tuple[str, Any] = ("#TRACEBACK", _traceback())
                else:
                    msg = self._answer_to(conn, request, acquired)
                # The client has the last answer: it has taken the references that it wanted.
                self._answer.escaped = []
                try:
                    try:
                        send(msg)
                    except OSError:
                        self._take_back(request, msg)
                        raise
                    except Exception:
                        send(("#UNSERIALIZABLE", _traceback()))
                except Exception as exc:
                    util.info("exception in thread serving %r: %s", name, exc)
                    util.info(" ... message was %r", msg)
                    return
                request = msg = None  # type: ignore[assignment]  # large ones go now
        finally:
            _release_owned(acquired)

    def _answer_to(self, conn: Any, request: Any, acquired: list[Any]) -> tuple[str, Any]:
        methodname = obj = None
        try:
            ident, methodname, args, kwds = request
            obj, exposed, method_to_typeid = self._entry(ident)
            if methodname not in exposed:
                raise AttributeError(
                    f"method {methodname!r} of {type(obj)!r} object is not in exposed={exposed!r}"
                )
            function = getattr(obj, methodname)
            try:
                result = function(*args, **kwds)
            except BaseException as exc:  # SystemExit is for who called, not for this thread
                if self._serializer == "xmlrpclib":  # it would turn an exception into a dict
                    return "#TRACEBACK", _traceback()
                return _as_error(exc)
            if methodname == "acquire" and hasattr(obj, "_is_owned") and obj not in acquired:
                acquired.append(obj)
            typeid = method_to_typeid and method_to_typeid.get(methodname)
            if typeid:
                rident, rexposed = self.create(conn, typeid, result)
                token = _PlainToken(typeid=typeid, address=self.address, id=rident)
                return "#PROXY", (rexposed, token)
            return "#RETURN", result
        except AttributeError:
            fallback = self.fallback_mapping.get(methodname)  # type: ignore[arg-type]
            if fallback is None:
                return "#TRACEBACK", _traceback()
            try:
                return "#RETURN", fallback(self, conn, ident, obj, *args, **kwds)
            except Exception:
                return "#TRACEBACK", _traceback()
        except Exception:
            return "#TRACEBACK", _traceback()

    def _take_back(self, request: Any, msg: tuple[str, Any]) -> None:
        """Undo what a client that has died while it waited will never know it got."""
        from queue import Queue

        kind, result = msg
        if kind != "#RETURN":
            return
        ident, methodname, _, _ = request
        obj = self._entry(ident)[0]
        if methodname == "get" and type(obj) is Queue:
            with obj.mutex:
                obj.queue.appendleft(result)
                obj.not_empty.notify()
        elif result and methodname == "acquire" and isinstance(obj, _RELEASED_BY_ANYBODY):
            obj.release()
        elif result and methodname == "wait" and isinstance(obj, threading.Condition):
            obj.notify()

    # ---- what every shared object answers ----

    def fallback_getvalue(self, conn: Any, ident: str, obj: Any) -> Any:
        """The object itself, which the client gets a copy of."""
        return obj

    def fallback_str(self, conn: Any, ident: str, obj: Any) -> str:
        """`str(obj)`."""
        return str(obj)

    def fallback_repr(self, conn: Any, ident: str, obj: Any) -> str:
        """`repr(obj)`."""
        return repr(obj)

    fallback_mapping: ClassVar[dict[str, Callable[..., Any]]] = {
        "__str__": fallback_str,
        "__repr__": fallback_repr,
        "#GETVALUE": fallback_getvalue,
    }

    # ---- requests to the server: `public` ----

    def dummy(self, c: Any) -> str:
        """Tell that the server lives, and that it is ours."""
        return OURS

    def debug_info(self, c: Any) -> str:
        """A text with the shared objects and their reference counts."""
        with self.mutex:
            return "\n".join(
                f"  {ident}:       refcount={self.id_to_refcount[ident]}\n"
                f"    {str(self.id_to_obj[ident][0])[:75]}"
                for ident in sorted(self.id_to_refcount)
            )

    def number_of_objects(self, c: Any) -> int:
        """How many shared objects clients own references to."""
        return len(self.id_to_refcount)

    def shutdown(self, c: Any) -> None:
        """End the server."""
        try:
            util.debug("manager received shutdown message")
            c.send(("#RETURN", None))
        except Exception:
            util.info("the client that asked for shutdown has gone:\n%s", _traceback())
        finally:
            self.stop_event.set()

    def create(
        self, c: Any, typeid: str, /, *args: Any, **kwds: Any
    ) -> tuple[str, tuple[str, ...]]:
        """Make a shared object; its id and exposed methods. The caller owns one reference."""
        maker, exposed, method_to_typeid, _ = self.registry[typeid]
        if maker is not None:
            # Not under the mutex: it may use proxies of this very server.
            obj = maker(*args, **kwds)
        elif len(args) == 1 and not kwds:
            obj = args[0]
        else:
            raise ValueError("Without callable, must have one non-keyword argument")
        if exposed is None:
            exposed = public_methods(obj)
        if method_to_typeid is not None:
            if not isinstance(method_to_typeid, dict):
                raise TypeError(f"method_to_typeid must be a dict, not {method_to_typeid!r}")
            exposed = [*exposed, *method_to_typeid]

        # A string: xmlrpc has 32-bit integers only.
        ident = f"{id(obj):x}"
        util.debug("%r callable returned object with id %r", typeid, ident)
        with self.mutex:
            self.id_to_obj[ident] = (obj, set(exposed), method_to_typeid)
            self.id_to_refcount[ident] = self.id_to_refcount.get(ident, 0) + 1
        return ident, tuple(exposed)

    def get_methods(self, c: Any, token: Token) -> tuple[str, ...]:
        """The exposed methods of the object that `token` names."""
        return tuple(self._entry(token.id)[1])

    def accept_connection(self, c: Any, name: str) -> None:
        """Serve this connection, for the client called `name`, until it closes."""
        ours = name.endswith(OURS_SUFFIX)
        threading.current_thread().name = name.removesuffix(OURS_SUFFIX)
        c.send(("#RETURN", OURS))
        self.serve_client(c if ours else for_any_peer(c, self._serializer))
        raise _Served

    def incref(self, c: Any, ident: str) -> None:
        """Count one more reference."""
        with self.mutex:
            if ident not in self.id_to_refcount:
                # No client has it; a proxy in another referent may.
                self.id_to_obj[ident] = self._entry(ident)
                self.id_to_refcount[ident] = 0
            self.id_to_refcount[ident] += 1

    def decref(self, c: Any, ident: str) -> None:
        """Count one reference less; the object goes with the last."""
        with self.mutex:
            left = self.id_to_refcount[ident] - 1
            if left > 0:
                self.id_to_refcount[ident] = left
                return
            del self.id_to_refcount[ident]
            entry = self.id_to_obj.pop(ident)
        util.debug("disposing of obj with id %r", ident)
        del entry  # outside the mutex: its end may run anything

    # ---- nested objects ----

    def _entry(self, ident: str) -> _Entry:
        entry = self.id_to_obj.get(ident)
        if entry is None:
            held = self.id_to_local_proxy_obj.get(ident)
            if held is None:
                raise KeyError(f"{ident}: no such object in this manager; it has been released")
            entry = held.entry
        return entry

    def hold(self, ident: str) -> object:
        """What keeps the object `ident`, for a proxy that lives in this server."""
        with self.mutex:
            held = self.id_to_local_proxy_obj.get(ident)
            if held is None:
                held = self.id_to_local_proxy_obj[ident] = _Held(self._entry(ident))
            return held

    def escaping(self, proxy: Any) -> None:
        """Keep `proxy`, which is being sent, until its receiver has taken a reference."""
        if hasattr(self._answer, "escaped"):  # else not a serving thread
            self._answer.escaped.append(proxy)


def _PlainToken(**fields: Any) -> Any:
    """A token that any peer can unpickle, CPython's without billiard included."""
    from types import SimpleNamespace

    return SimpleNamespace(**fields)


def _as_error(exc: BaseException) -> tuple[str, Any]:
    """The answer for what a method raised: the exception, if it survives the journey."""
    if type(exc).__module__ not in ("builtins", "_queue", "threading"):
        try:
            ForkingPickler.loads(ForkingPickler.dumps(exc))
        except Exception:
            return "#TRACEBACK", _traceback()
    return "#ERROR", exc


def _release_owned(objects: list[Any]) -> None:
    """Release what this thread's client left acquired and nobody else can release: RLocks."""
    for obj in objects:
        while obj._is_owned():
            obj.release()


# ---- shared memory ----


class _SharedMemoryTracker:
    """The names of shared-memory segments; they are unlinked with it."""

    def __init__(self, name: str, segment_names: list[str] | None = None) -> None:
        self.shared_memory_context_name = name
        self.segment_names = [] if segment_names is None else segment_names

    def register_segment(self, segment_name: str) -> None:
        """Track a segment."""
        util.debug("register segment %r in pid %d", segment_name, os.getpid())
        self.segment_names.append(segment_name)

    def destroy_segment(self, segment_name: str) -> None:
        """Unlink a segment and track it no more."""
        from .shared_memory import SharedMemory

        util.debug("destroy segment %r in pid %d", segment_name, os.getpid())
        self.segment_names.remove(segment_name)
        segment = SharedMemory(segment_name)
        segment.close()
        segment.unlink()

    def unlink(self) -> None:
        """Unlink every segment."""
        for segment_name in self.segment_names[:]:
            try:
                self.destroy_segment(segment_name)
            except FileNotFoundError:
                util.info("segment %r was unlinked by somebody else", segment_name)

    def __del__(self) -> None:
        self.unlink()

    def __getstate__(self) -> tuple[str, list[str]]:
        return self.shared_memory_context_name, self.segment_names

    def __setstate__(self, state: tuple[str, list[str]]) -> None:
        self.__init__(*state)  # type: ignore[misc]


class SharedMemoryServer(Server):
    """A server that unlinks the segments it was told of when it ends. Origin: multiprocessing."""

    __module__ = _MODULE
    public: ClassVar[list[str]] = [
        *Server.public,
        "track_segment",
        "release_segment",
        "list_segments",
    ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        address = self.address
        if isinstance(address, bytes):
            address = os.fsdecode(address)
        self.shared_memory_context = _SharedMemoryTracker(f"shm_{address}_{os.getpid()}")
        util.debug("SharedMemoryServer started by pid %d", os.getpid())

    def create(
        self, c: Any, typeid: str, /, *args: Any, **kwargs: Any
    ) -> tuple[str, tuple[str, ...]]:
        """As in `Server`; proxies marked `_shared_memory_proxy` get the tracker."""
        if hasattr(self.registry[typeid][-1], "_shared_memory_proxy"):
            kwargs["shared_memory_context"] = self.shared_memory_context
        return super().create(c, typeid, *args, **kwargs)

    def shutdown(self, c: Any) -> None:
        """Unlink all segments and end the server."""
        self.shared_memory_context.unlink()
        super().shutdown(c)

    def track_segment(self, c: Any, segment_name: str) -> None:
        """Unlink this segment when the server ends."""
        self.shared_memory_context.register_segment(segment_name)

    def release_segment(self, c: Any, segment_name: str) -> None:
        """Unlink this segment now."""
        self.shared_memory_context.destroy_segment(segment_name)

    def list_segments(self, c: Any) -> list[str]:
        """The names of the segments tracked."""
        return self.shared_memory_context.segment_names
