"""Pickling for other processes: reducers of our own, functions by value, descriptors.

```
 ForkingPickler.dumps(obj)
   1. the C pickler, with the registered reducers
   2. refused (a lambda, a closure, a local function or class)? cloudpickle, with the same reducers;
      what the child can import still goes by name
   3. refused again? the error of 1
```
"""

from __future__ import annotations

import functools
import io
import os
import sys
from _pickle import Pickler, PicklingError
from _pickle import loads as _loads
from copyreg import dispatch_table as _copyreg_dispatch_table
from types import FunctionType, MethodType

from . import context
from .exceptions import SoftTimeLimitExceeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from typing import IO, Any, ClassVar, Protocol

    class _DetachableFd(Protocol):
        def detach(self) -> int: ...

    class _HasFileno(Protocol):
        def fileno(self) -> int: ...


__all__ = [
    "DupFd",
    "ForkingPickler",
    "dump",
    "recv_handle",
    "recvfds",
    "register",
    "send_handle",
    "sendfds",
]

#: whether descriptors can be passed between processes
HAVE_SEND_HANDLE = True

#: what the C pickler raises for functions and classes that have no importable name
_REFUSALS = (PicklingError, AttributeError)


class ForkingPickler(Pickler):
    """The C pickler with the reducers of this package (origin: multiprocessing)."""

    _extra_reducers: ClassVar[dict[type, Callable[[Any], Any]]] = {}
    _copyreg_dispatch_table = _copyreg_dispatch_table
    dispatch_table: dict[type, Callable[[Any], Any]]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.dispatch_table = self._dispatch_table()

    @classmethod
    def _dispatch_table(cls) -> dict[type, Callable[[Any], Any]]:
        # Importing socket here would make everybody pay for it; who has a socket has paid.
        if "socket" in sys.modules:
            _register_socket()
        table = cls._copyreg_dispatch_table | cls._extra_reducers
        if context.get_spawning_popen() is not None:
            from . import _stdlib

            table |= _stdlib.reducers(cls._extra_reducers)
        return table

    @classmethod
    def register(cls, type: type, reduce: Callable[[Any], Any]) -> None:
        """Have objects of exactly `type` pickled as `reduce(obj)` says (as `copyreg.pickle`)."""
        cls._extra_reducers[type] = reduce

    @classmethod
    def dumps(cls, obj: object, protocol: int | None = None) -> memoryview:
        """Pickle `obj`; functions and classes without an importable name go by value.

        Raises what the plain pickler raised if it cannot be done in either way.
        """
        popen: Any = context.get_spawning_popen()
        fds = getattr(popen, "_fds", [])
        mark = len(fds)
        buffer = io.BytesIO()
        try:
            if cls is ForkingPickler:
                # what our __init__ does, for half the price of making an object of a subclass
                pickler = Pickler(buffer, protocol)
                pickler.dispatch_table = cls._dispatch_table()
            else:
                pickler = cls(buffer, protocol)
            dump_into(pickler, obj)
        except _REFUSALS as refusal:
            del fds[mark:]
            try:
                return dumps_by_value(cls, obj, protocol, refusal)
            except BaseException:
                del fds[mark:]
                raise
        # Not a view of the file, which could not be closed if it were collected with the view.
        return memoryview(buffer.getvalue())

    @classmethod
    def loadbuf(cls, buf: io.BytesIO, protocol: int | None = None) -> Any:
        """Unpickle what is in a `BytesIO` (origin: billiard)."""
        return cls.loads(buf.getbuffer())

    loads = _loads


register = ForkingPickler.register

if "billiard.sharedctypes" in sys.modules:  # which does not import this before it has to
    ForkingPickler._extra_reducers |= sys.modules["billiard.sharedctypes"]._reducers


def dump_into(pickler: Pickler, obj: object) -> None:
    """Have `pickler` pickle `obj`; if it fails, no descriptor waits to be fetched."""
    before = _last_shared()
    try:
        pickler.dump(obj)
    except BaseException:
        if _last_shared() > before:
            from . import resource_sharer

            for _, seen in pickler.memo.copy().values():
                if type(seen) is resource_sharer.DupFd:
                    seen._withdraw(before)
        raise


def _last_shared() -> int:
    """The number of the last descriptor that other processes may fetch from this one."""
    sharer = sys.modules.get("billiard.resource_sharer")
    return sharer._resource_sharer._key if sharer is not None else 0


def dump(obj: object, file: IO[bytes], protocol: int | None = None) -> None:
    """Pickle `obj` into `file` as `ForkingPickler.dumps` does; all of it or nothing."""
    file.write(ForkingPickler.dumps(obj, protocol))


def _importable(obj: Any) -> bool:
    """Whether another process can find this function or class by its name."""
    name = getattr(obj, "__qualname__", None)
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    if module is None or name is None or "<locals>" in name:
        return False
    if module is sys.modules["__main__"]:
        from . import spawn

        if not spawn._children_import_main():
            return False
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj


def dumps_by_value(
    cls: type[ForkingPickler], obj: object, protocol: int | None, refusal: BaseException
) -> memoryview:
    """Pickle through cloudpickle what was refused; raises `refusal` if that does not do either."""
    import cloudpickle  # type: ignore[import-untyped]

    # cloudpickle's table has entries that change what an object is (an open file becomes a copy of
    # its contents). What the plain pickler refuses stays refused.
    table = {
        kind: reduce
        for kind, reduce in cloudpickle.Pickler.dispatch_table.items()
        if kind not in (io.TextIOWrapper, memoryview)
    }
    table |= cls._dispatch_table()

    class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
        # The C pickler looks at the class for this when it is made.
        dispatch_table = table

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, (FunctionType, type)) and _importable(obj):
                return NotImplemented
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    pickler = ByValue(buffer, protocol)
    try:
        dump_into(pickler, obj)
    except SoftTimeLimitExceeded:
        raise  # that is not the object's fault
    except Exception:
        raise refusal from None
    return memoryview(buffer.getvalue())


# ---- descriptors ----


def sendfds(sock: socket.socket, fds: Iterable[int]) -> None:
    """Send descriptors over a Unix socket, with their number (modulo 256) in one byte."""
    import array
    import socket

    numbers = array.array("i", fds)
    sock.sendmsg([bytes([len(numbers) % 256])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])


def recvfds(sock: socket.socket, size: int) -> list[int]:
    """Receive up to `size` descriptors that `sendfds` sent, close-on-exec.

    Raises `EOFError` if the other side has hung up, `RuntimeError` if it sent something else.
    """
    import array
    import socket

    numbers = array.array("i")
    message, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize * size))
    if not message and not ancillary:
        raise EOFError
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    for fd in numbers:
        os.set_inheritable(fd, False)
    if not message or not ancillary or len(numbers) % 256 != message[0]:
        for fd in numbers:
            os.close(fd)
        raise RuntimeError("received something other than descriptors")
    return list(numbers)


def send_handle(conn: _HasFileno, handle: int, destination_pid: int | None) -> None:
    """Send a descriptor over a connection to a process of this machine."""
    import socket

    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sendfds(sock, [handle])


def recv_handle(conn: _HasFileno) -> int:
    """Receive a descriptor that `send_handle` sent."""
    import socket

    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return recvfds(sock, 1)[0]


def DupFd(fd: int) -> _DetachableFd:
    """Something picklable whose `detach()` gives a duplicate of `fd` in the other process.

    Into a process that is being started descriptors are inherited; to others a thread of this
    process hands them out when they are asked for (`resource_sharer`).
    """
    popen: Any = context.get_spawning_popen()
    if popen is not None:
        detachable: _DetachableFd = popen.DupFd(popen.duplicate_for_child(fd))
        return detachable
    from . import resource_sharer

    return resource_sharer.DupFd(fd)


# ---- reducers ----


def _reduce_method(method: MethodType) -> Any:
    return getattr, (method.__self__, method.__func__.__name__)


def _reduce_method_descriptor(descriptor: Any) -> Any:
    return getattr, (descriptor.__objclass__, descriptor.__name__)


def _reduce_partial(partial: functools.partial[Any]) -> Any:
    return _rebuild_partial, (partial.func, partial.args, partial.keywords or {})


def _rebuild_partial(
    func: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]
) -> functools.partial[Any]:
    return functools.partial(func, *args, **keywords)


register(MethodType, _reduce_method)
register(type(list.append), _reduce_method_descriptor)
register(type(int.__add__), _reduce_method_descriptor)
register(functools.partial, _reduce_partial)


def _register_socket() -> None:
    socket_class = getattr(sys.modules["socket"], "socket", None)
    if socket_class is not None:
        ForkingPickler._extra_reducers.setdefault(socket_class, _reduce_socket)


def _reduce_socket(sock: socket.socket) -> Any:
    return _rebuild_socket, (DupFd(sock.fileno()), sock.family, sock.type, sock.proto)


def _rebuild_socket(fd: _DetachableFd, family: int, type: int, proto: int) -> socket.socket:
    import socket

    return socket.socket(family, type, proto, fileno=fd.detach())
