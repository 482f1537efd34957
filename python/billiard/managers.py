"""Managers: objects in a server process, and proxies for them in any number of others.

Origin: multiprocessing, whose protocol it is: either package's managers can be connected to from
the other, over TCP and Unix sockets. `_manager_wire` draws the protocol, `_manager_server` and
`_manager_proxies` are its two ends, `_manager_types` has the proxies of `SyncManager`.
"""

from __future__ import annotations

import os
import threading

from . import connection, pool, process, reduction, util

# Part of what is public here is only used elsewhere.
from ._manager_proxies import (  # noqa: F401
    AutoProxy,
    BaseProxy,
    MakeProxyType,
    ProcessLocalSet,
    RebuildProxy,
    State,
    adopt,
    listener_client,
)
from ._manager_server import Server, SharedMemoryServer, all_methods, public_methods  # noqa: F401
from ._manager_types import (  # noqa: F401
    AcquirerProxy,
    ArrayProxy,
    BarrierProxy,
    BaseListProxy,
    BasePoolProxy,
    ConditionProxy,
    DictProxy,
    EventProxy,
    IteratorProxy,
    ListProxy,
    NamespaceProxy,
    PoolProxy,
    ValueProxy,
)
from ._manager_wire import (  # noqa: F401
    OURS,
    RemoteError,
    Token,
    convert_to_error,
    dispatch,
    explain,
    for_any_peer,
)
from .context import _default_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    import array
    from collections.abc import Callable, Iterable, Mapping
    from queue import Queue
    from typing import Any, ClassVar, Self

    from . import shared_memory

__all__ = ["BaseManager", "BaseProxy", "SharedMemoryManager", "SyncManager", "Token"]

get_context = _default_context.get_context

# ---- what pickles differently between processes ----


def reduce_array(a: array.array[Any]) -> tuple[type[array.array[Any]], tuple[str, bytes]]:
    """How arrays were pickled by 4.3.2; they know how to do it themselves."""
    return type(a), (a.typecode, a.tobytes())


def rebuild_as_list(obj: Iterable[Any]) -> tuple[type[list[Any]], tuple[list[Any]]]:
    """How the views of a dict are pickled: as lists."""
    return list, (list(obj),)


view_types: list[type] = [type({}.items()), type({}.keys()), type({}.values())]

for _type in view_types:
    reduction.register(_type, rebuild_as_list)
del _type


class BaseManager:
    """Starts a server process, or connects to one, and makes proxies for objects in it.

    `address`: where the server listens; by default a socket in a private directory. `authkey`
    (bytes): the key both sides must know, by default the process's own. `serializer`: "pickle" or
    "xmlrpclib". `ctx`: the context whose processes are used. `shutdown_timeout` (seconds): how long
    the server gets to end by itself, and again after SIGTERM, before it is killed.

    The server ends with `shutdown()`, with the block, with this object, or with this process,
    however that dies.
    """

    _registry: ClassVar[dict[str, tuple[Any, Any, Any, Any]]] = {}
    _Server = Server

    def __init__(
        self,
        address: Any = None,
        authkey: bytes | None = None,
        serializer: str = "pickle",
        ctx: Any = None,
        *,
        shutdown_timeout: float = 1.0,
    ) -> None:
        if authkey is None:
            authkey = process.current_process().authkey
        if serializer not in listener_client:
            raise ValueError(f"serializer {serializer!r} is none of {sorted(listener_client)}")
        self._address = address  # not the final one, if there is a choice left
        self._authkey = process.AuthenticationString(authkey)
        self._state = State()
        self._state.value = State.INITIAL
        self._serializer = serializer
        self._Listener, self._Client = listener_client[serializer]
        self._ctx = ctx or get_context()
        self._shutdown_timeout = shutdown_timeout
        self._process: Any = None
        #: whether the server is ours, and not CPython's; None until it was asked
        self._ours: bool | None = None

    def __reduce__(self) -> Any:
        return type(self).from_address, (self._address, self._authkey, self._serializer)

    @classmethod
    def from_address(cls, address: Any, authkey: bytes, serializer: str) -> Self:
        """A manager for the server at `address`; what a pickled manager becomes."""
        manager = cls(address, authkey, serializer)
        manager._state.value = State.STARTED
        return manager

    def _check_initial(self) -> None:
        from .exceptions import ProcessError  # it is multiprocessing's, which is dear to import

        if self._state.value == State.STARTED:
            raise ProcessError("Already started server")
        if self._state.value == State.SHUTDOWN:
            raise ProcessError("Manager has shut down")

    def get_server(self) -> Server:
        """A server for this process: call its `serve_forever()`."""
        self._check_initial()
        return self._Server(self._registry, self._address, self._authkey, self._serializer)

    def connect(self) -> None:
        """Use the server that listens at `address`. Raises `OSError` or `AuthenticationError`."""
        self._ours = self._request("dummy") == OURS
        self._state.value = State.STARTED

    def start(
        self, initializer: Callable[..., object] | None = None, initargs: Iterable[Any] = ()
    ) -> None:
        """Start the server process, which calls `initializer(*initargs)` first.

        What the initializer raises, or the listening, is raised here; the cause is a `RemoteError`
        with the traceback.
        """
        self._check_initial()
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")

        # Every connection needs it: a forked server has it from here.
        import hmac as hmac

        reader, writer = connection.Pipe(duplex=False)
        with reader:
            with writer:
                self._process = self._ctx.Process(
                    target=type(self)._run_server,
                    args=(
                        *(self._registry, self._address, self._authkey, self._serializer),
                        *(writer, initializer, initargs),
                    ),
                )
                ident = ":".join(str(i) for i in self._process._identity)
                self._process.name = f"{type(self).__name__}-{ident}"
                self._process.start()
            try:
                answer = reader.recv()
            except EOFError:
                self._process.join()
                raise EOFError(
                    f"the manager's process ended with {self._process.exitcode} before it served"
                ) from None
            except BaseException:  # an interrupt: nobody would end it any more
                self._process.kill()
                self._process.join()
                raise
        if isinstance(answer, _Failure):
            self._process.join()
            raise answer.error()
        self._address = answer
        self._ours = True

        self._state.value = State.STARTED
        self.shutdown = util.Finalize(
            self,
            type(self)._finalize_manager,
            args=(self._process, self._address, self._authkey, self._state, self._Client),
            kwargs={"shutdown_timeout": self._shutdown_timeout},
            exitpriority=0,
        )

    @classmethod
    def _run_server(
        cls,
        registry: dict[str, Any],
        address: Any,
        authkey: bytes,
        serializer: str,
        writer: Any,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        """What the server process runs."""
        import signal

        # The terminal's Ctrl-C is for the program, which then shuts its manager down.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A directory of its own, not the parent's: it is gone when this process is.
        process.current_process()._config["tempdir"] = None
        with writer:
            try:
                if initializer is not None:
                    initializer(*initargs)
                server = cls._Server(registry, address, authkey, serializer)
            except Exception as exc:
                writer.send(_Failure(exc))
                return
            writer.send(server.address)
        threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
        util.info("manager serving at %r", server.address)
        server.serve_forever()

    def _request(
        self, methodname: str, args: tuple[Any, ...] = (), kwds: Mapping[str, Any] = {}
    ) -> Any:
        """One request to the server."""
        try:
            conn = self._Client(self._address, authkey=self._authkey)
            try:
                peer = conn if self._ours else for_any_peer(conn, self._serializer)
                return dispatch(peer, None, methodname, args, kwds)
            finally:
                conn.close()
        except (OSError, EOFError) as exc:
            raise explain(exc, self._address) from None

    def _create(self, typeid: str, /, *args: Any, **kwds: Any) -> tuple[Token, tuple[str, ...]]:
        """Have the server make an object; its token and exposed methods."""
        if self._state.value == State.INITIAL:
            raise AssertionError("server not yet started")
        if self._state.value == State.SHUTDOWN:
            raise AssertionError("server has shut down")
        id, exposed = self._request("create", (typeid, *args), kwds)
        return Token(typeid, self._address, id), exposed

    def join(self, timeout: float | None = None) -> None:
        """Wait for up to `timeout` seconds for the server process to end, if this started one."""
        if self._process is not None:
            self._process.join(timeout)
            if not self._process.is_alive():
                self._process = None

    def _debug_info(self) -> Any:
        """A text with the shared objects and their reference counts."""
        return self._request("debug_info")

    def _number_of_objects(self) -> Any:
        """How many objects are shared."""
        return self._request("number_of_objects")

    def __enter__(self) -> Self:
        if self._state.value == State.INITIAL:
            self.start()
        if self._state.value == State.SHUTDOWN:
            self._check_initial()
        return self

    def __exit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
        # A server that was only connected to is somebody else's.
        if "shutdown" in self.__dict__:
            self.shutdown()

    @staticmethod
    def _finalize_manager(
        process: Any,
        address: Any,
        authkey: bytes,
        state: State,
        _Client: Any,
        shutdown_timeout: float = 1.0,
    ) -> None:
        """End the server process: ask, SIGTERM, SIGKILL."""
        if process.is_alive():
            util.info("sending shutdown message to manager")
            try:
                conn = _Client(address, authkey=authkey)
                try:
                    dispatch(conn, None, "shutdown")
                finally:
                    conn.close()
            except Exception as exc:
                util.info("the manager did not take it: %s", exc)
            process.join(timeout=shutdown_timeout)
            if process.is_alive():
                util.info("manager still alive, trying to `terminate()` it")
                process.terminate()
                process.join(timeout=shutdown_timeout)
                if process.is_alive():
                    util.info("manager still alive after terminate, killing it")
                    process.kill()
                    process.join()
        state.value = State.SHUTDOWN
        if process.exitcode != 0:
            _remove_socket(address)
        local = BaseProxy._address_to_local.pop(address, None)
        if local is not None:
            # Other threads' connections go with their threads or proxies.
            conn = local[0].__dict__.pop("connection", None)
            if conn is not None:
                conn.close()

    @property
    def address(self) -> Any:
        """Where the server listens."""
        return self._address

    @classmethod
    def register(
        cls,
        typeid: str,
        callable: Callable[..., Any] | None = None,
        proxytype: Any = None,
        exposed: Iterable[str] | None = None,
        method_to_typeid: dict[str, str] | None = None,
        create_method: bool = True,
    ) -> None:
        """Add a type of shared objects to this class.

        `callable` makes the object, in the server. `proxytype` makes the proxy, by default
        `AutoProxy`. `exposed`: the methods that may be called; by default the proxy type's
        `_exposed_`, or all public ones. `method_to_typeid`: methods whose results stay in the
        server, with the type id of the proxy that is returned. `create_method`: whether managers
        get a method called `typeid`.
        """
        if "_registry" not in cls.__dict__:
            cls._registry = cls._registry.copy()
        if proxytype is None:
            proxytype = AutoProxy
        exposed = exposed or getattr(proxytype, "_exposed_", None)
        method_to_typeid = method_to_typeid or getattr(proxytype, "_method_to_typeid_", None)
        for names in (method_to_typeid or {}).items():
            for name in names:
                if type(name) is not str:
                    raise AssertionError(f"{name!r} is not a string")
        cls._registry[typeid] = (callable, exposed, method_to_typeid, proxytype)

        if create_method:

            def create(self: BaseManager, *args: Any, **kwds: Any) -> Any:
                util.debug("requesting creation of a shared %r object", typeid)
                token, exposed = self._create(typeid, *args, **kwds)
                return adopt(
                    *(proxytype, token, self._serializer, self, self._authkey, exposed),
                    request=self._request,
                )

            create.__name__ = typeid
            create.__qualname__ = f"{cls.__qualname__}.{typeid}"
            setattr(cls, typeid, create)


class _Failure:
    """Sent in place of an address: why there will be none."""

    def __init__(self, exc: Exception) -> None:
        from traceback import format_exc

        self.text = format_exc()
        try:
            self.pickled = bytes(reduction.ForkingPickler.dumps(exc))
        except Exception:
            self.pickled = b""

    def error(self) -> Exception:
        """What `start` raises."""
        cause = RemoteError(self.text)
        try:
            exc = reduction.ForkingPickler.loads(self.pickled)
        except Exception:
            return cause
        exc.__cause__ = cause
        return exc  # type: ignore[no-any-return]


def _end_with_parent(server: Server) -> None:
    """A thread of the server process: stop serving when the process that started it has died."""
    parent = process.parent_process()
    if parent is not None:
        parent.join()
        server.stop_event.set()


def _remove_socket(address: Any) -> None:
    """Remove the socket of a server that was killed, and its private directory."""
    if isinstance(address, str) and not address.startswith("\0"):
        directory = os.path.dirname(address)
        try:
            os.unlink(address)
            if os.path.basename(directory).startswith("pymp-"):
                os.rmdir(directory)
        except OSError as exc:
            util.info("the socket of a killed manager: %s", exc)


# ---- the types of SyncManager ----


class Namespace:
    """Attributes, given as keyword arguments."""

    def __init__(self, **kwds: Any) -> None:
        self.__dict__.update(kwds)

    def __repr__(self) -> str:
        shown = sorted(f"{k}={v!r}" for k, v in self.__dict__.items() if not k.startswith("_"))
        return f"{type(self).__name__}({', '.join(shown)})"


class Value:
    """A box for one value; neither `typecode` nor `lock` is enforced."""

    def __init__(self, typecode: object, value: Any, lock: object = True) -> None:
        self._typecode = typecode
        self._value = value

    def get(self) -> Any:
        """The value."""
        return self._value

    def set(self, value: Any) -> None:
        """Set the value."""
        self._value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._typecode!r}, {self._value!r})"

    value = property(get, set)


def Array(typecode: str, sequence: Iterable[Any], lock: object = True) -> array.array[Any]:
    """An `array.array`; `lock` is ignored."""
    from array import array

    return array(typecode, sequence)


def _queue(maxsize: int = 0) -> Queue[Any]:
    from queue import Queue

    return Queue(maxsize)


class SyncManager(BaseManager):
    """A manager of containers, and of synchronization primitives between threads of its server.

    `billiard.Manager()` returns a started one.
    """


SyncManager.register("Queue", _queue)
SyncManager.register("JoinableQueue", _queue)
SyncManager.register("Event", threading.Event, EventProxy)
SyncManager.register("Lock", threading.Lock, AcquirerProxy)
SyncManager.register("RLock", threading.RLock, AcquirerProxy)
SyncManager.register("Semaphore", threading.Semaphore, AcquirerProxy)
SyncManager.register("BoundedSemaphore", threading.BoundedSemaphore, AcquirerProxy)
SyncManager.register("Condition", threading.Condition, ConditionProxy)
SyncManager.register("Barrier", threading.Barrier, BarrierProxy)
SyncManager.register("Pool", pool.Pool, PoolProxy)
SyncManager.register("list", list, ListProxy)
SyncManager.register("dict", dict, DictProxy)
SyncManager.register("Value", Value, ValueProxy)
SyncManager.register("Array", Array, ArrayProxy)
SyncManager.register("Namespace", Namespace, NamespaceProxy)
# what methods of PoolProxy and of DictProxy return
SyncManager.register("Iterator", proxytype=IteratorProxy, create_method=False)
SyncManager.register("AsyncResult", create_method=False)


class SharedMemoryManager(BaseManager):
    """A manager whose server unlinks the shared memory that was made through it.

    Origin: multiprocessing.
    """

    _Server = SharedMemoryServer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from . import resource_tracker

        # The server and this process are to have the same one.
        resource_tracker.ensure_running()
        super().__init__(*args, **kwargs)

    def SharedMemory(self, size: int) -> shared_memory.SharedMemory:
        """A new segment of `size` bytes; it is unlinked with the manager."""
        from .shared_memory import SharedMemory

        segment = SharedMemory(None, create=True, size=size)
        self._track(segment)
        return segment

    def ShareableList(self, sequence: Iterable[Any]) -> shared_memory.ShareableList:
        """A new list in a segment that is unlinked with the manager."""
        from .shared_memory import ShareableList

        shared = ShareableList(sequence)
        self._track(shared.shm)
        return shared

    def _track(self, segment: shared_memory.SharedMemory) -> None:
        try:
            self._request("track_segment", (segment.name,))
        except BaseException:
            segment.unlink()
            raise
