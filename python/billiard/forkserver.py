"""The fork server: a process without threads that forks the children of start method `forkserver`.

```
 any process of the program                        the template, and its children
 ForkServer ── request socket (no name, inherited) ──► _core.serve_forks ──fork──► _serve_one
     │           [reply, message, socket, fds ...]          │                         │
     └───────────── pid, pidfd ◄────────────────────────────┼─────────────────────────┘
                    exit code  ◄────────────────────────────┘
```

The template is an interpreter that was started like a `spawn` child, has imported what
`set_forkserver_preload` names, and does nothing but fork. Every process of the program that holds
the clients' end of the socket may ask it; when the last of them has gone, it ends. If it has died,
the next request starts another one.
"""

from __future__ import annotations

import os
import struct
import sys

from . import _core, process, spawn, util
from .compat import spawnv_passfds as spawnv_passfds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeVar

    _R = TypeVar("_R")

__all__ = [
    "connect_to_new_process",
    "ensure_running",
    "get_inherited_fds",
    "set_forkserver_preload",
]

#: the kernel takes a few less than this many descriptors in one message
MAXFDS_TO_SEND = 256
#: what comes over the first descriptor that `connect_to_new_process` returns
SIGNED_STRUCT = struct.Struct("q")
UNSIGNED_STRUCT = struct.Struct("Q")

_SIGINT = 2
#: seconds in which a server that is being killed is gone
_MOMENT = 0.05


class ForkServer:
    """What a process knows of the program's fork server.

    Process-local. A forked child shares its parent's server, a child of the server does, too; a
    spawn child has none until it needs one.
    """

    def __init__(self) -> None:
        #: the clients' end of the request socket, and what it is, to notice if it was closed
        self._forkserver_alive_fd: int | None = None
        self._forkserver_file: tuple[int, int] | None = None
        self._forkserver_pid: int | None = None
        #: the server itself, in the process that has started it
        self._forkserver: _core.Child | None = None
        self._inherited_fds: list[int] | None = None
        #: guards all of the above
        self._lock = util.ForkAwareThreadLock()
        self._preload_modules: Sequence[str] = ["__main__"]
        self._preload_on_error = "warn"

    def set_forkserver_preload(
        self, modules_names: Iterable[str], *, on_error: str = "warn"
    ) -> None:
        """Name the modules that the next server imports; `__main__` means the main module.

        `on_error`: what becomes of one that cannot be imported. "warn" gives a `RuntimeWarning`
        that names it, "ignore" nothing, and the children do without; "fail" ends the server with
        the exception, and a start with `ConnectionResetError`.

        Raises `TypeError` for anything but a list of strings, `ValueError` for another `on_error`.
        Origin: multiprocessing.
        """
        if on_error not in ("ignore", "warn", "fail"):
            raise ValueError(f"on_error must be 'ignore', 'warn' or 'fail', not {on_error!r}")
        if isinstance(modules_names, (str, bytes)):
            raise TypeError("module_names must be a list of strings, not one string")
        names = list(modules_names)
        if not all(type(name) is str for name in names):
            raise TypeError("module_names must be a list of strings")
        self._preload_modules = names
        self._preload_on_error = on_error

    def get_inherited_fds(self) -> list[int] | None:
        """The descriptors that came with this process; None if it is no child of the server."""
        return self._inherited_fds

    def connect_to_new_process(self, fds: Sequence[int]) -> tuple[int, int]:
        """Have a process forked that gets `fds`; returns two descriptors (origin: multiprocessing).

        From the first `read_signed` gives the pid, and once more the exit code. To the second the
        caller writes the pickled preparation data and process object. Raises `ValueError` for more
        descriptors than fit into a message.
        """
        data_r, data_w = os.pipe()
        try:
            [status_r] = self._ask([(data_r, fds)], _core.ForkRequest.detach)
            if isinstance(status_r, OSError):
                raise status_r
            return status_r, data_w
        except BaseException:
            os.close(data_w)
            raise
        finally:
            os.close(data_r)

    def _start_children(
        self, orders: Sequence[tuple[bytes, Sequence[int]]]
    ) -> list[_core.Child | OSError]:
        """Have a process forked for each (message, descriptors), all in one round trip.

        Returns the processes in that order; in the place of one that could not be forked, why.
        """
        return self._ask(orders, _core.ForkRequest.child)

    def _ask(
        self,
        orders: Sequence[tuple[bytes | int, Sequence[int]]],
        finish: Callable[[_core.ForkRequest], _R],
    ) -> list[_R | OSError]:
        """Send a request for each order (message or where to read it, descriptors), `finish` each.

        If the server dies before it has forked, another one is asked: who gets no reply has no
        child.
        """
        for _, fds in orders:
            if len(fds) + 2 > _core.MAX_REQUEST_FDS:
                raise ValueError(
                    f"too many fds: a process gets {_core.MAX_REQUEST_FDS - 2} at most through "
                    f"the fork server, not {len(fds)}"
                )
        import errno

        gone = "The fork server has ended, and its successor has as well"
        results: list[_R | OSError] = [OSError(errno.ECONNRESET, gone) for _ in orders]
        pending = list(range(len(orders)))
        for _ in range(2):
            server, file = self._client()
            requests: list[_core.ForkRequest | OSError] = []
            try:
                for i in pending:
                    try:
                        requests.append(self._send(server, *orders[i]))
                    except OSError as exc:
                        requests.append(exc)
            finally:
                os.close(server)
            left = []
            for i, request in zip(pending, requests, strict=True):
                try:
                    if isinstance(request, OSError):
                        raise request
                    results[i] = finish(request)
                except ConnectionError:
                    left.append(i)
                except OSError as exc:
                    results[i] = exc
            pending = left
            if not pending:
                break
            if self._outlives(file, _MOMENT):
                # It drops a request only if it could not even take it.
                for i in pending:
                    text = "The fork server has no descriptors left"
                    results[i] = OSError(errno.EMFILE, text)
                break
        return results

    @staticmethod
    def _send(server: int, data: bytes | int, fds: Sequence[int]) -> _core.ForkRequest:
        if isinstance(data, int):
            return _core.ForkRequest(server, [data, server, *fds])
        file = _core.memory_file(data)
        try:
            return _core.ForkRequest(server, [file, server, *fds])
        finally:
            os.close(file)

    def _client(self) -> tuple[int, tuple[int, int]]:
        """A client's end of a server that lives, for the caller to close, and what file it is.

        Not our own descriptor: another thread may find the server dead and close it any time.
        """
        with self._lock:
            self._have_one()
            assert self._forkserver_alive_fd is not None and self._forkserver_file is not None
            return os.dup(self._forkserver_alive_fd), self._forkserver_file

    def _outlives(self, file: tuple[int, int], grace: float) -> bool:
        """Whether the server with the clients' end `file` lives, and will `grace` seconds from now.

        The one that there is now may be its successor.
        """
        with self._lock:
            return self._forkserver_file == file and self._is_running(grace)

    def _is_running(self, grace: float = 0.0) -> bool:
        """Whether there is a server that lives, and will `grace` seconds from now."""
        fd = self._forkserver_alive_fd
        if fd is None:
            return False
        try:
            if _core.file_identity(fd) != self._forkserver_file:
                return False  # somebody has closed it, and the number is another file's now
        except OSError:
            return False
        # It never sends anything: what there is to read is the end.
        return not _core.poll_readable(fd, grace)

    def ensure_running(self) -> None:
        """Start a server unless there is one that lives (origin: multiprocessing).

        To be called from any process of the program.
        """
        with self._lock:
            self._have_one()

    def _have_one(self) -> None:
        if not self._is_running():
            self._forget()
            self._start()

    def _forget(self) -> None:
        """Let go of a server that has died, or whose socket was closed behind our back."""
        fd, file = self._forkserver_alive_fd, self._forkserver_file
        self._forkserver_alive_fd = self._forkserver_file = self._forkserver_pid = None
        if fd is not None:
            try:
                if _core.file_identity(fd) == file:
                    os.close(fd)
            except OSError:
                pass
        if self._forkserver is not None:
            self._forkserver.wait()
            self._forkserver.close()
            self._forkserver = None

    def _start(self) -> None:
        arguments: dict[str, Any] = {}
        if self._preload_modules:
            data = spawn.get_preparation_data("ignore")
            arguments = {
                name: data[key]
                for name, key in (
                    ("sys_path", "sys_path"),
                    ("main_path", "init_main_from_path"),
                    ("main_name", "init_main_from_name"),
                )
                if key in data
            }
            arguments["on_error"] = self._preload_on_error
        # What this program uses of the package its children use, too.
        arguments["modules"] = [name for name in sys.modules if name.startswith("billiard.")]
        clients, template = _core.request_sockets()
        try:
            code = (
                "from billiard.forkserver import main; "
                f"main({template}, -1, {list(self._preload_modules)!r}, **{arguments!r})"
            )
            command = [spawn.get_executable(), *util._args_from_interpreter_flags(), "-c", code]
            self._forkserver = _core.spawn(
                os.fsencode(command[0]), [os.fsencode(word) for word in command], [template]
            )
        except BaseException:
            os.close(clients)
            raise
        finally:
            os.close(template)
        self._adopt(clients)
        self._forkserver_pid = self._forkserver.pid

    def _adopt(self, clients: int) -> None:
        """Be a client through the descriptor `clients`."""
        self._forkserver_alive_fd = clients
        self._forkserver_file = _core.file_identity(clients)

    def _stop(self) -> None:
        """End the server, if nobody else uses it, and wait for it. For tests."""
        with self._lock:
            self._forget()


def main(
    listener_fd: int,
    alive_r: int,
    preload: Sequence[str],
    main_path: str | None = None,
    sys_path: list[str] | None = None,
    main_name: str | None = None,
    modules: Sequence[str] = (),
    on_error: str = "warn",
) -> None:
    """Be the template: import `preload`, then fork for whoever asks through `listener_fd`.

    `alive_r` has no meaning any more: that all clients have gone shows on the socket itself.
    `modules` are this package's own; for `on_error` see `set_forkserver_preload`.
    """
    os.set_inheritable(listener_fd, False)
    if sys_path is not None:
        sys.path[:] = sys_path
    # The first thing that a child does is to unpickle.
    for name in ("_pickle", *modules):
        __import__(name)
    for name in preload:
        try:
            if name != "__main__":
                __import__(name)
            elif main_path is not None or main_name is not None:
                _preload_main(main_path, main_name)
        except Exception as exc:
            if on_error == "fail":
                raise
            if on_error == "ignore":
                continue
            import warnings

            text = f"the fork server could not preload {name!r}: {type(exc).__name__}: {exc}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    process._replace_stdin()
    # ^C is for the program, and for the children; it is they who then let go of the template.
    import _signal  # type: ignore[import-not-found]

    interrupt = _signal.signal(_SIGINT, _signal.SIG_IGN)
    _freeze()
    fds = _core.serve_forks(listener_fd)
    if fds is None:
        sys.exit()
    status = 1
    try:
        _signal.signal(_SIGINT, interrupt)
        status = _serve_one(fds)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        process._maybe_flush(sys.stderr)
        os._exit(status & 0xFF)


def _preload_main(main_path: str | None, main_name: str | None) -> None:
    current: Any = process.current_process()
    current._inheriting = True
    try:
        if main_name is not None:
            spawn._fixup_main_from_name(main_name)
        elif main_path is not None:
            spawn.import_main_path(main_path)
    finally:
        del current._inheriting


def _freeze() -> None:
    """Keep the collector of the children off what they share with the template."""
    import gc

    gc.collect()
    gc.freeze()


def __unpack_fds(
    child_r: int, child_w: int | None, alive: int, stfd: int | None, *inherited: int
) -> tuple[int, int | None, int, int | None, tuple[int, ...]]:
    return child_r, child_w, alive, stfd, inherited


def _serve_one(fds: list[int]) -> int:
    """Be the child that a client has asked for; returns the exit status."""
    # The reply has been sent, and the tracker travels in the message.
    child_r, _, alive, _, inherited = __unpack_fds(fds[0], None, fds[1], None, *fds[2:])
    _forkserver._adopt(alive)
    _forkserver._inherited_fds = list(inherited)
    return spawn._main(child_r)


def _read(fd: int, number: struct.Struct) -> int:
    data = b""
    while len(data) < number.size:
        chunk = os.read(fd, number.size - len(data))
        if not chunk:
            raise EOFError("unexpected EOF")
        data += chunk
    value: int = number.unpack(data)[0]
    return value


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def read_signed(fd: int) -> int:
    """Read what `write_signed` wrote. Raises `EOFError` if there is no more."""
    return _read(fd, SIGNED_STRUCT)


def write_signed(fd: int, n: int) -> None:
    """Write a number of 64 bits with its sign."""
    _write(fd, SIGNED_STRUCT.pack(n))


def read_unsigned(fd: int) -> int:
    """Read what `write_unsigned` wrote. Raises `EOFError` if there is no more."""
    return _read(fd, UNSIGNED_STRUCT)


def write_unsigned(fd: int, n: int) -> None:
    """Write a number of 64 bits."""
    _write(fd, UNSIGNED_STRUCT.pack(n))


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
connect_to_new_process = _forkserver.connect_to_new_process
set_forkserver_preload = _forkserver.set_forkserver_preload
