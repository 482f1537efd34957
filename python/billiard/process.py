"""Process objects: what the parent holds of a child, and what the child runs.

```
              start()                    the child ends
  initial ─────────────► started ─────────────────────────► stopped ──┐
     │  _popen is None      _popen.poll() is None     _popen.poll()   │ close()
     └────────────────────────────── close() ─────────────────────────┴──► closed
```

`_popen` is the start method's part (`popen_fork`, `popen_spawn_posix`, `popen_forkserver`). All
state here is process-local; a child forgets its parent's children (`_bootstrap`).
"""

from __future__ import annotations

import itertools
import os
import sys

from . import _core, _standin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _weakrefset import WeakSet
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from .popen_fork import Popen

try:
    #: where the program was started; None if that directory was gone already
    ORIGINAL_DIR: str | None = os.path.abspath(os.getcwd())
except OSError:
    ORIGINAL_DIR = None

__all__ = ["BaseProcess", "Process", "active_children", "current_process", "parent_process"]


def current_process() -> BaseProcess:
    """The object of the process that asks (origin: multiprocessing)."""
    return _current_process


def parent_process() -> BaseProcess | None:
    """The process that started this one; None in the main process (origin: multiprocessing).

    Of the object `pid`, `name`, `is_alive()`, `join(timeout)` and `sentinel` can be used.
    """
    global _parent_process
    me = _current_process
    if _parent_process is None and me._parent_pid is not None:
        from ._parent import ParentProcess

        _parent_process = ParentProcess(me._parent_name, me._parent_pid, me._parent_start)
    return _parent_process


def _set_current_process(process: BaseProcess) -> None:
    global _current_process
    _current_process = process
    # Code that asks multiprocessing gets the same answer; if it is imported later, see _standin.
    theirs: Any = sys.modules.get("multiprocessing.process")
    if theirs is not None:
        theirs._current_process = process


def _cleanup() -> None:
    """Reap the children that have ended."""
    for process in list(_children):
        popen = process._popen
        if popen is not None and popen.poll() is not None:
            _children.discard(process)


def active_children(_cleanup: Callable[[], None] = _cleanup) -> list[BaseProcess]:
    """The living children of this process; reaps the others (origin: multiprocessing)."""
    try:
        _cleanup()
    except TypeError:
        return []  # the interpreter is going down, and has taken our globals
    return list(_children)


def _maybe_flush(stream: Any) -> None:
    """Flush a standard stream, if there is one and it can be flushed."""
    try:  # noqa: SIM105  (contextlib is dear to import)
        stream.flush()
    except (AttributeError, OSError, NotImplementedError, ValueError):
        pass


def _print_error(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(text + "\n")
        _maybe_flush(sys.stderr)


def _before_start() -> None:
    """What has to be there before a process has children."""
    if "billiard.util" not in sys.modules:  # an import that does nothing is work for a fork, too
        # At exit it terminates and joins them.
        from . import util as util
    if _children:
        _cleanup()
    if "billiard.shared_memory" in sys.modules:
        # What the child may make there has to outlive it: a program has one tracker.
        from . import resource_tracker

        resource_tracker.ensure_running()


def start_all(processes: Iterable[BaseProcess]) -> None:
    """Start several processes; returns when all of them exist (origin: ours).

    As calling `start` of each, but the fork server gets all its requests at once, and forks follow
    each other without work in between that the next would have to copy: many processes take hardly
    longer than one. If some cannot be started the others are, and the first error is raised.
    """
    from ._launch import start_all

    start_all(list(processes))


class BaseProcess:
    """An activity that runs in a process of its own (origin: multiprocessing).

    `target(*args, **kwargs)` is called there, unless a subclass overrides `run`. `name` defaults to
    the class's name with a number; `daemon` to the creating process's own setting. A daemonic
    process is terminated when its parent exits; unlike multiprocessing's it may have children.
    Process-local: only the process that made it may start and join it.
    """

    #: the method whose contexts make this class; None: whatever the default is
    _start_method: str | None = None
    #: in a child of the fork server, which is not the kernel's child of its parent
    _parent_start: int | None = None
    _name: str
    #: those of a manager's proxies that the child was given
    _proxies: Iterable[object] = ()

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:
        raise NotImplementedError("BaseProcess has no start method; use the Process of a context")

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        daemon: bool | None = None,
        **_kw: Any,
    ) -> None:
        if group is not None:
            raise AssertionError("group argument must be None for now")
        number = next(_process_counter)
        self._identity: tuple[int, ...] = (*_current_process._identity, number)
        self._config: dict[str, Any] = _current_process._config.copy()
        self._parent_pid: int | None = os.getpid()
        self._parent_name = _current_process._name
        self._popen: Popen | None = None
        self._closed = False
        self._target = target
        self._args = tuple(args)
        self._kwargs = dict(kwargs)
        if not name:
            path = number if len(self._identity) == 1 else ":".join(map(str, self._identity))
            name = f"{type(self).__name__}-{path}"
        self._name = name
        if daemon is not None:
            self.daemon = daemon
        self._controlled_termination = False

    def _check_closed(self) -> None:
        if self._closed:
            raise ValueError("process object is closed")

    def _started(self, verb: str) -> Popen:
        """The start method's part, if this is a child that was started and is not closed."""
        self._check_closed()
        if self._popen is None:
            raise AssertionError(f"can only {verb} a started process")
        return self._popen

    def _check_parent(self, verb: str) -> None:
        if self._parent_pid != os.getpid():
            raise AssertionError(f"can only {verb} a child process")

    def run(self) -> None:
        """What the process does: calls `target`. To be overridden in subclasses."""
        if self._target:
            self._target(*self._args, **self._kwargs)

    def start(self) -> None:
        """Start the process; returns as soon as it exists.

        The target and its arguments are let go afterwards, so that they do not live here as long
        as this object does. Raises `AssertionError` the second time and in another process,
        `OSError` (with errno) if the system has no room for one more process or descriptor, and
        whatever pickling raises if the start method has to pickle what it cannot.
        """
        if self._closed or self._popen is not None or self._parent_pid != os.getpid():
            self._check_startable()
        _before_start()
        self._became(self._Popen(self))

    def _check_startable(self) -> None:
        self._check_closed()
        if self._popen is not None:
            raise AssertionError("cannot start a process twice")
        if self._parent_pid != os.getpid():
            raise AssertionError("can only start a process object created by current process")

    def _became(self, popen: Popen) -> None:
        """It has started."""
        self._popen = popen
        managers: Any = sys.modules.get("billiard._manager_proxies")
        if managers is not None:
            # The child takes its own references to a manager's objects when it gets to run, and
            # they must not be gone by then.
            self._proxies = managers.proxies_among((self._args, self._kwargs))
        self._target, self._args, self._kwargs = None, (), {}
        _children.add(self)

    def close(self) -> None:
        """Release what the object holds; it cannot be used afterwards (origin: multiprocessing).

        Raises `ValueError` while the process runs.
        """
        if self._popen is not None:
            if self._popen.poll() is None:
                raise ValueError(
                    "Cannot close a process while it is still running. "
                    "You should first call join() or terminate()."
                )
            self._popen.close()
            self._popen = None
            _children.discard(self)
        self._closed = True

    def terminate(self) -> None:
        """Send SIGTERM, or the signal that `REMAP_SIGTERM` names (origin: billiard)."""
        self._started("terminate").terminate()

    def kill(self) -> None:
        """Send SIGKILL (origin: multiprocessing)."""
        self._started("kill").kill()

    def terminate_controlled(self) -> None:
        """`terminate()`, and tell the pool that this end was meant (origin: billiard)."""
        self._controlled_termination = True
        self.terminate()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the process has ended, at most `timeout` seconds."""
        if self._closed or self._popen is None or self._parent_pid != os.getpid():
            self._check_closed()
            self._check_parent("join")
        popen = self._popen or self._started("join")
        if popen.wait(timeout) is not None:
            _children.discard(self)
            self._proxies = ()
            # The object stays usable: callers read the exit code next. Many that are only kept
            # in a list hold no descriptors; one that somebody has stays what it is.
            if not popen.sentinel_is_lent:
                popen.close()

    def is_alive(self) -> bool:
        """Whether the process has been started and has not ended yet."""
        self._check_closed()
        if self is _current_process:
            return True
        self._check_parent("test")
        return self._is_alive()

    def _is_alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def name(self) -> str:
        """For people to read; need not be unique."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        if not isinstance(name, str):
            raise AssertionError("name must be a string")
        self._name = name

    @property
    def daemon(self) -> bool:
        """Whether the process is terminated when its parent exits. To be set before the start."""
        daemonic: bool = self._config.get("daemon", False)
        return daemonic

    @daemon.setter
    def daemon(self, daemonic: bool) -> None:
        if self._popen is not None:
            raise AssertionError("process has already started")
        self._config["daemon"] = daemonic

    @property
    def authkey(self) -> AuthenticationString:
        """The key that connections and managers of this process's family prove to have."""
        key: AuthenticationString = self._config["authkey"]
        return key

    @authkey.setter
    def authkey(self, authkey: bytes) -> None:
        self._config["authkey"] = AuthenticationString(authkey)

    @property
    def exitcode(self) -> int | None:
        """The exit status; -N if signal N ended the process; None before it has ended."""
        self._check_closed()
        return None if self._popen is None else self._popen.poll()

    @property
    def ident(self) -> int | None:
        """The process number; None before the start."""
        self._check_closed()
        if self is _current_process:
            return os.getpid()
        return None if self._popen is None else self._popen.pid

    pid = ident

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process ends.

        For `connection.wait`, `select`, `poll` and `epoll`. It stays open until `close()`, or as
        long as this object lives. Raises `ValueError` before the start.
        """
        self._check_closed()
        if self._popen is None:
            raise ValueError("process not started")
        return self._popen.lend_sentinel()

    # The names that these had in the multiprocessing of Python 2.7; Celery reads some.

    @property
    def _counter(self) -> itertools.count[int]:
        return _process_counter

    @property
    def _children(self) -> set[BaseProcess]:
        return _children

    @property
    def _authkey(self) -> AuthenticationString:
        return self.authkey

    @property
    def _daemonic(self) -> bool:
        return self.daemon

    @property
    def _tempdir(self) -> str | None:
        return self._config.get("tempdir")

    def __repr__(self) -> str:
        if self is _current_process:
            status = "started"
        elif self._closed:
            status = "closed"
        elif self._parent_pid != os.getpid():
            status = "unknown"
        elif self._popen is None:
            status = "initial"
        else:
            code = self._popen.poll()
            if code is None:
                status = "started"
            else:
                if "_exitcode_to_name" not in globals():
                    _make_exitcode_to_name()
                status = f"stopped[{_exitcode_to_name.get(code, code)}]" if code else "stopped"
        daemon = " daemon" if self.daemon else ""
        return f"<{type(self).__name__}({self._name}, {status}{daemon})>"

    # ---- in the child ----

    def _bootstrap(self) -> int:
        """Run the whole of the process; returns its exit status.

        Called in the child, by the start method. Nothing gets out of here but `os._exit`.
        """
        # After a fork, each function that is called and each object that is touched is memory that
        # has to be copied. Therefore nothing is called here that would find nothing to do.
        exitcode = 0
        try:
            self._enter()
            self.run()
        except BaseException as exc:
            exitcode = self._exit_status_of(exc)
        try:
            _leave()
        except BaseException as exc:
            at_end = self._exit_status_of(exc)
            exitcode = exitcode or at_end
        util = _util()
        if util is not None and util._logger is not None:
            util.info("process %s exiting with exitcode %d", os.getpid(), exitcode)
        _maybe_flush(sys.stdout)
        _maybe_flush(sys.stderr)
        return exitcode

    def _exit_status_of(self, exc: BaseException) -> int:
        """What a process exits with that ends with `exc`; reports what went wrong."""
        if isinstance(exc, SystemExit):
            if exc.code is None:
                return 0
            if isinstance(exc.code, int):
                return exc.code
            _print_error(str(exc.code))
            return 1
        util = _util()
        if util is not None:
            util.error("Process %s", self._name, exc_info=True)
        import traceback

        _print_error(f"Process {self._name}:\n{traceback.format_exc().rstrip()}")
        return 1

    def _enter(self) -> None:
        """Make this process the one that it is for: forget the parent's state."""
        global _born, _children, _current_process, _parent_process, _process_counter
        if self._start_method is not None:
            _force_start_method(self._start_method)
        _born = os.getpid()
        _process_counter = itertools.count(1)
        # Held until the after-fork callbacks have run: their objects may hang on these.
        inherited = _children, _current_process
        _children = set()
        _replace_stdin()
        _parent_process = None
        there = sys.modules.get("multiprocessing")
        if there is None:
            _current_process = self
            stand_in = _standin._stand_in
            if stand_in is None:  # not forked
                stand_in = _standin.prepared(current_process)
            sys.modules["multiprocessing"] = stand_in
        else:
            _set_current_process(self)
            if there is _standin._stand_in:
                _standin.renew_lock()
        threading: Any = sys.modules.get("threading")
        if threading is not None:
            # Inherited from the parent where the thread was forked.
            threading._main_thread._native_id = threading.get_native_id()
        util = sys.modules.get("billiard.util") or _util()
        if util is not None:
            if util._finalizer_registry:
                util._finalizer_registry.clear()
            if util._afterfork_registry.data or "multiprocessing.util" in sys.modules:
                util._run_after_forkers()
            if util._logger is not None:
                util.info("child process %s calling self.run()", self.pid)
        del inherited


#: what children have as standard input, its descriptor, and which file that is
_no_input: Any = None
_no_input_fd = -1
_no_input_file: tuple[int, int] | None = None


def _make_no_input() -> None:
    """Make the standard input of children, unless it is there.

    A parent that forks does it for its children: to make it costs more than their other
    preparations together.
    """
    global _no_input, _no_input_fd, _no_input_file
    if _no_input is not None:
        try:
            if _core.file_identity(_no_input_fd) == _no_input_file:
                return
        except OSError:
            pass  # somebody has closed all descriptors
    _no_input_fd = os.open(os.devnull, os.O_RDONLY)
    _no_input_file = _core.file_identity(_no_input_fd)
    # Open to the end, without a warning that it is.
    _no_input = open(_no_input_fd, encoding="utf-8", closefd=False)  # noqa: SIM115


def _replace_stdin() -> None:
    """Children do not read what is meant for the program."""
    global _no_input
    if sys.stdin is not None and sys.stdin is _no_input:
        if not _no_input.closed:
            return
        _no_input = None  # the parent had it, and has closed it
    if sys.stdin is not None:
        try:
            try:
                # Closes all of it, and is a third of the work.
                sys.stdin.buffer.raw.close()  # type: ignore[union-attr]
            except AttributeError:
                sys.stdin.close()
            if _no_input is None:
                _make_no_input()
            sys.stdin = _no_input
        except (OSError, ValueError):
            pass


def _util() -> Any:
    """`billiard.util`, if there can be anything in its registries, or in multiprocessing's."""
    util = sys.modules.get("billiard.util")
    if util is None and "multiprocessing.util" in sys.modules:
        from . import util
    return util


def _leave() -> None:
    """The end of a child: wait for its threads and children, run its finalizers."""
    threading: Any = sys.modules.get("threading")
    if threading is not None and (len(threading._active) != 1 or threading._threading_atexits):
        threading._shutdown()
    util = _util()
    if util is not None and (
        util._finalizer_registry
        or _children
        or util._logger is not None
        or "multiprocessing.util" in sys.modules
    ):
        util._exit_function()


class AuthenticationString(bytes):
    """A key that is only ever pickled into a process that is being started."""

    def __reduce__(self) -> tuple[type[AuthenticationString], tuple[bytes]]:
        from .context import get_spawning_popen

        if get_spawning_popen() is None:
            raise TypeError(
                "Pickling an AuthenticationString object is disallowed for security reasons"
            )
        return AuthenticationString, (bytes(self),)


class _MainProcess(BaseProcess):
    """The process that the user started."""

    def __init__(self) -> None:
        self._identity = ()
        self._name = "MainProcess"
        self._parent_pid = None
        self._popen = None
        self._closed = False
        self._config = {"authkey": AuthenticationString(os.urandom(32)), "semprefix": "/mp"}

    def close(self) -> None:
        """Does nothing: there is no end of it to wait for."""


#: the last process on the way here that billiard made
_born = -1
_parent_process: BaseProcess | None = None
_current_process: BaseProcess = _MainProcess()
_process_counter = itertools.count(1)
_children: set[BaseProcess] = set()

Process = BaseProcess


#: sets the start method of the default context (`context` imports this module, and puts it here)
_force_start_method: Any = None

#: the names that `repr` has for the exit codes of killed processes; made when they are asked for
_exitcode_to_name: dict[int, str]


def _make_exitcode_to_name() -> None:
    global _exitcode_to_name
    import _signal  # type: ignore[import-not-found]  # the enums of `signal` are dear

    _exitcode_to_name = {
        -number: name
        for name, number in vars(_signal).items()
        if name.startswith("SIG") and "_" not in name
    }


def _find_dangling() -> WeakSet[BaseProcess]:
    """Every process object alive, for tests that look for leaks."""
    import gc
    from _weakrefset import WeakSet

    objects = gc.get_objects()
    return WeakSet(thing for thing in objects if issubclass(type(thing), BaseProcess))


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "_exitcode_to_name":
            _make_exitcode_to_name()
            return _exitcode_to_name
        if name == "_dangling":
            return _find_dangling()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
