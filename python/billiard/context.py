"""Contexts: the whole interface of the package, bound to one start method.

A context is a factory that knows every module; it imports each when it is first asked for one of
its objects. `billiard.X` is `_default_context.X`.
"""

from __future__ import annotations

import os
import sys
from _thread import _local

from . import _core, exceptions, process
from .exceptions import Late, SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    import logging
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, ClassVar

    # As modules: in the class below the names of their classes are methods.
    from . import connection, managers, pool, queues, synchronize
    from .popen_fork import Popen

#: filled below with the public names of `DefaultContext`
__all__: list[str] = []

W_NO_EXECV = "force_execv is not supported as the billiard C extension is not installed"


if not TYPE_CHECKING:
    __getattr__ = exceptions.late_names(__name__)


class Unloaded:
    """Stands for a module of the package until something of it is first asked for: an import
    statement in each method would take longer than making a lock.

    `namespace` is that of the module that calls it `_name`.
    """

    def __init__(self, name: str, namespace: dict[str, Any]) -> None:
        self._name, self._namespace = name, namespace

    def __getattr__(self, attribute: str) -> Any:
        module = __import__(self._name, globals(), None, ["*"], 1)
        self._namespace["_" + self._name] = module
        return getattr(module, attribute)


if TYPE_CHECKING:
    from . import sharedctypes as _sharedctypes
    from . import synchronize as _synchronize
else:
    _sharedctypes = Unloaded("sharedctypes", globals())
    _synchronize = Unloaded("synchronize", globals())


class BaseContext:
    """What all contexts have (origin: multiprocessing, where nothing else is said)."""

    _name: ClassVar[str]
    Process: ClassVar[type[process.BaseProcess]]

    ProcessError = Late()
    BufferTooShort = Late()
    TimeoutError = Late()
    AuthenticationError = Late()
    TimeLimitExceeded = TimeLimitExceeded
    SoftTimeLimitExceeded = SoftTimeLimitExceeded
    WorkerLostError = WorkerLostError

    current_process = staticmethod(process.current_process)
    parent_process = staticmethod(process.parent_process)
    active_children = staticmethod(process.active_children)

    def cpu_count(self) -> int:
        """The number of processors of the machine. Raises `NotImplementedError` if unknown."""
        count = os.cpu_count()
        if count is None:
            raise NotImplementedError("cannot determine number of cpus")
        return count

    def Manager(self) -> managers.SyncManager:
        """A started manager: its methods make objects that processes share through proxies."""
        from .managers import SyncManager

        manager = SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def Pipe(
        self, duplex: bool = True, rnonblock: bool = False, wnonblock: bool = False
    ) -> tuple[connection.Connection, connection.Connection]:
        """Two connections to each other; not duplex: the first receives, the second sends.

        `rnonblock` and `wnonblock` put the ends into non-blocking mode (origin: billiard).
        """
        from .connection import Pipe

        return Pipe(duplex, rnonblock, wnonblock)

    def Lock(self, *, robust: bool = False) -> synchronize.Lock:
        """A lock between processes; `robust`: the death of its owner is noticed."""
        context, lock = self.get_context(), _synchronize.Lock
        if robust:
            return lock(ctx=context, robust=True)
        if lock is not _synchronize.OUR_LOCK:
            return lock(ctx=context)  # somebody has put another there
        return _core.new_lock(lock)

    def RLock(self) -> synchronize.RLock:
        """A lock that its owner may acquire again."""
        context, lock = self.get_context(), _synchronize.RLock
        if lock is not _synchronize.OUR_RLOCK:
            return lock(ctx=context)
        return _core.new_rlock(lock)

    def Condition(
        self, lock: synchronize.Lock | synchronize.RLock | None = None
    ) -> synchronize.Condition:
        """A condition variable, on a new `RLock` unless `lock` is given."""
        return _synchronize.Condition(lock, ctx=self.get_context())

    def Semaphore(self, value: int = 1) -> synchronize.Semaphore:
        """A semaphore that starts at `value`."""
        return _synchronize.Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value: int = 1) -> synchronize.BoundedSemaphore:
        """A semaphore that never rises above `value`."""
        return _synchronize.BoundedSemaphore(value, ctx=self.get_context())

    def Event(self) -> synchronize.Event:
        """A flag to wait for."""
        return _synchronize.Event(ctx=self.get_context())

    def Barrier(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
    ) -> synchronize.Barrier:
        """A point where `parties` processes wait for each other, `timeout` seconds at most."""
        return _synchronize.Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize: int = 0) -> queues.Queue:
        """A queue with a feeder thread, of at most `maxsize` objects (0: as many as fit)."""
        from .queues import Queue

        return Queue(maxsize, ctx=self.get_context())

    def JoinableQueue(self, maxsize: int = 0) -> queues.JoinableQueue:
        """A `Queue` with `task_done` and `join`."""
        from .queues import JoinableQueue

        return JoinableQueue(maxsize, ctx=self.get_context())

    def SimpleQueue(self) -> queues.SimpleQueue:
        """A queue that is little more than a pipe with locks."""
        from .queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context())

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        maxtasksperchild: int | None = None,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        max_restarts: int | None = None,
        max_restart_freq: float = 1,
        on_process_up: Callable[..., object] | None = None,
        on_process_down: Callable[..., object] | None = None,
        on_timeout_set: Callable[..., object] | None = None,
        on_timeout_cancel: Callable[..., object] | None = None,
        threads: bool = True,
        semaphore: Any = None,
        putlocks: bool = False,
        allow_restart: bool = False,
        **kwargs: Any,
    ) -> pool.Pool:
        """A pool of worker processes; all arguments are those of `pool.Pool` (origin: billiard).

        Without `processes`: one for each CPU that this process may really use, which can be fewer
        than `cpu_count()` (CPU affinity, quotas of control groups).
        """
        from .pool import Pool

        return Pool(
            processes,
            initializer,
            initargs,
            maxtasksperchild,
            timeout,
            soft_timeout,
            lost_worker_timeout,
            max_restarts,
            max_restart_freq,
            on_process_up,
            on_process_down,
            on_timeout_set,
            on_timeout_cancel,
            threads,
            semaphore,
            putlocks,
            allow_restart,
            context=self.get_context(),
            **kwargs,
        )

    def RawValue(self, typecode_or_type: str | type[ctypes._CDataType], *args: Any) -> Any:
        """A ctypes object in shared memory."""
        return _sharedctypes.RawValue(typecode_or_type, *args)

    def RawArray(
        self, typecode_or_type: str | type[ctypes._CDataType], size_or_initializer: Any
    ) -> Any:
        """A ctypes array in shared memory."""
        return _sharedctypes.RawArray(typecode_or_type, size_or_initializer)

    def Value(
        self, typecode_or_type: str | type[ctypes._CDataType], *args: Any, **kwargs: Any
    ) -> Any:
        """A ctypes object in shared memory with a lock (`lock=`: another one, or False)."""
        lock = kwargs.get("lock", True)
        context, value = self.get_context(), _sharedctypes.Value
        if value is not _sharedctypes.OUR_VALUE:
            return value(typecode_or_type, *args, lock=lock, ctx=context)
        return _sharedctypes.new_value(typecode_or_type, args, lock, context)

    def Array(
        self,
        typecode_or_type: str | type[ctypes._CDataType],
        size_or_initializer: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """A ctypes array in shared memory with a lock (`lock=`: another one, or False)."""
        lock = kwargs.get("lock", True)
        return _sharedctypes.Array(
            typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context()
        )

    def freeze_support(self) -> None:
        """In a frozen executable that was started as a child: be that child, and exit."""
        if getattr(sys, "frozen", False):
            from .spawn import freeze_support

            freeze_support()

    def get_logger(self) -> logging.Logger:
        """The logger of the package; until this is called, nothing is logged."""
        from .util import get_logger

        return get_logger()

    def log_to_stderr(self, level: int | str | None = None) -> logging.Logger:
        """Log to standard error, from `level` on; returns the logger."""
        from .util import log_to_stderr

        return log_to_stderr(level)

    def allow_connection_pickling(self) -> None:
        """Make connections picklable, which they are anyway."""
        from . import connection as connection

    def set_executable(self, executable: str | bytes | os.PathLike[str]) -> None:
        """The interpreter that `spawn` and `forkserver` start, instead of `sys.executable`."""
        from .spawn import set_executable

        set_executable(executable)

    def set_forkserver_preload(
        self, module_names: Iterable[str], *, on_error: str = "warn"
    ) -> None:
        """The modules that the fork server imports before it forks its first child.

        `on_error`: what becomes of one that cannot be imported, see
        `ForkServer.set_forkserver_preload`. Takes effect when a fork server is started.
        """
        from .forkserver import set_forkserver_preload

        set_forkserver_preload(module_names, on_error=on_error)

    def get_context(self, method: str | None = None) -> BaseContext:
        """The context of start method `method`, or this one. `ValueError` if there is none."""
        if method is None:
            return self
        try:
            context = _concrete_contexts[method]
        except (KeyError, TypeError):
            raise ValueError(f"cannot find context for {method!r}") from None
        context._check_available()
        return context

    def get_start_method(self, allow_none: bool = False) -> str | None:
        """The name of the start method."""
        return self._name

    def set_start_method(self, method: str | None = None, force: bool = False) -> None:
        """Only the default context can be told another method: raises `ValueError`."""
        raise ValueError("cannot set start method of concrete context")

    def forking_is_enabled(self) -> bool:
        """Whether processes are made by fork (origin: billiard, before contexts)."""
        return (self.get_start_method() or "fork") == "fork"

    def forking_enable(self, value: bool) -> None:
        """False: use `spawn` from now on (origin: billiard, before contexts)."""
        if not value:
            from ._ext import supports_exec

            if supports_exec:
                self.set_start_method("spawn", force=True)
            else:
                import warnings

                warnings.warn(RuntimeWarning(W_NO_EXECV), stacklevel=2)

    def _check_available(self) -> None:
        """Raise `ValueError` if this system cannot start processes in this way."""


class Process(process.BaseProcess):
    """A process that is started by whatever method is the default when it starts."""

    _start_method = None

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Popen:
        return _default_context.get_context().Process._Popen(process_obj)


class DefaultContext(BaseContext):
    """The context of the package itself: one start method, set once.

    ```
      unset ──── first use, or set_start_method ────► set ──── set_start_method(force=True) ──┐
        ▲                                              ▲                                      │
        └── set_start_method(None, force=True) ────────┴──────────────────────────────────────┘
    ```
    """

    Process = Process

    def __init__(self, context: BaseContext) -> None:
        self._default_context = context
        self._actual_context: BaseContext | None = None

    def get_context(self, method: str | None = None) -> BaseContext:
        """The context of `method`; without one, of the default, which is fixed by asking."""
        if method is not None:
            return super().get_context(method)
        if self._actual_context is None:
            self._actual_context = self._default_context
        return self._actual_context

    def set_start_method(  # type: ignore[override]
        self, method: str | None, force: bool = False
    ) -> None:
        """Choose the start method, once.

        Raises `RuntimeError` if it is already set or in use, `ValueError` for a method that does
        not exist. `force` changes it nevertheless; with None it makes it unset again.
        """
        if self._actual_context is not None and not force:
            raise RuntimeError("context has already been set")
        self._actual_context = None if method is None and force else self.get_context(method)

    def get_start_method(self, allow_none: bool = False) -> str | None:
        """The start method; `allow_none`: None if none is set yet, which leaves it so."""
        if self._actual_context is None:
            if allow_none:
                return None
            self._actual_context = self._default_context
        return self._actual_context._name

    def get_all_start_methods(self) -> list[str]:
        """The methods that this system has; the first is the usual default."""
        return list(_concrete_contexts)


DefaultContext.__all__ = [name for name in dir(DefaultContext) if name[0] != "_"]  # type: ignore[attr-defined]


class ForkProcess(process.BaseProcess):
    """A process that starts as a copy of its parent."""

    _start_method = "fork"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Popen:
        popen_fork: Any = sys.modules.get("billiard.popen_fork")
        if popen_fork is None:
            from . import popen_fork
        popen: Popen = popen_fork.Popen(process_obj)
        return popen


class SpawnProcess(process.BaseProcess):
    """A process in a new interpreter."""

    _start_method = "spawn"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Popen:
        from .popen_spawn_posix import Popen

        return Popen(process_obj)


class ForkServerProcess(process.BaseProcess):
    """A process that a server, which has no threads and no state of the parent's, forks."""

    _start_method = "forkserver"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> Popen:
        from .popen_forkserver import Popen

        return Popen(process_obj)


class ForkContext(BaseContext):
    """Start method `fork`."""

    _name = "fork"
    Process = ForkProcess


class SpawnContext(BaseContext):
    """Start method `spawn`."""

    _name = "spawn"
    Process = SpawnProcess


class ForkServerContext(BaseContext):
    """Start method `forkserver`."""

    _name = "forkserver"
    Process = ForkServerProcess


_concrete_contexts: dict[str, BaseContext] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}
# Code between fork and exec is not reliable on macOS, whose frameworks start threads.
_default_context = DefaultContext(
    _concrete_contexts["spawn" if sys.platform == "darwin" else "fork"]
)


def _force_start_method(method: str) -> None:
    _default_context._actual_context = _concrete_contexts[method]


process._force_start_method = _force_start_method


#: the `Popen` that this thread is pickling a process for, while it does
class _Tls(_local):
    # of the class, so that to find nothing costs no exception: every pickle asks
    spawning_popen: Popen | None = None


_tls = _Tls()


def get_spawning_popen() -> Popen | None:
    """The `Popen` that the calling thread is pickling for; None if it is not starting anything."""
    return _tls.spawning_popen


def set_spawning_popen(popen: Popen | None) -> None:
    """Say that the calling thread is pickling for `popen`, or that it is done (None)."""
    _tls.spawning_popen = popen


def assert_spawning(obj: object) -> None:
    """Raise `RuntimeError` unless the calling thread is pickling `obj` for a new process."""
    if get_spawning_popen() is None:
        raise RuntimeError(
            f"{type(obj).__name__} objects should only be shared between processes"
            " through inheritance"
        )
