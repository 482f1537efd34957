"""What the rest of the package leans on: finalizers, after-fork callbacks, logging, exit.

```
 register_after_fork ──► _afterfork_registry ──► _run_after_forkers    first thing in a child
 Finalize ─────────────► _finalizer_registry ──► _run_finalizers ─┐
 daemons to terminate, other children to join ────────────────────┴──► _exit_function   last thing
```

Both registries belong to the process: a forked child clears the finalizers that it inherited (they
are its parent's) and runs the after-fork callbacks. `billiard 4.3.2` borrowed the registries of
`multiprocessing.util`; these are our own, so that importing billiard does not import
multiprocessing. `_stdlib` keeps the two in step where a program has both.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import weakref

from . import _core, _stdlib, process
from .compat import get_errno

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections are dear to import
    import logging
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Any, ParamSpec, TypeVar

    _P = ParamSpec("_P")
    _R = TypeVar("_R")
    _Key = tuple[int | None, int]

__all__ = [
    "SUBDEBUG",
    "SUBWARNING",
    "Finalize",
    "ForkAwareLocal",
    "ForkAwareThreadLock",
    "debug",
    "get_logger",
    "get_temp_dir",
    "info",
    "is_exiting",
    "log_to_stderr",
    "register_after_fork",
    "sub_debug",
    "sub_warning",
]

#: the options of prctl(2) under `get_pdeathsig` and `set_pdeathsig`
PR_GET_PDEATHSIG = 2
PR_SET_PDEATHSIG = 1

#: whether Unix sockets may have names that are no files (origin: multiprocessing)
abstract_sockets_supported = sys.platform == "linux"

# ---- logging ----

NOTSET = 0
SUBDEBUG = 5
DEBUG = 10
INFO = 20
SUBWARNING = 25
WARNING = 30
ERROR = 40

LOGGER_NAME = "multiprocessing"
DEFAULT_LOGGING_FORMAT = "[%(levelname)s/%(processName)s] %(message)s"

#: None until somebody asks for the logger; Celery sets it back to None
_logger: logging.Logger | None = None
_log_to_stderr = False


def _log(level: int, msg: object, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
    if _logger is not None:
        # 3: the caller of debug(), info(), ...
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 2
        _logger.log(level, msg, *args, **kwargs)


def sub_debug(msg: object, *args: object, **kwargs: Any) -> None:
    """Log at level `SUBDEBUG`, if `get_logger` was ever called."""
    _log(SUBDEBUG, msg, args, kwargs)


def debug(msg: object, *args: object, **kwargs: Any) -> None:
    """Log at level `DEBUG`, if `get_logger` was ever called."""
    _log(DEBUG, msg, args, kwargs)


def info(msg: object, *args: object, **kwargs: Any) -> None:
    """Log at level `INFO`, if `get_logger` was ever called."""
    _log(INFO, msg, args, kwargs)


def sub_warning(msg: object, *args: object, **kwargs: Any) -> None:
    """Log at level `SUBWARNING`, if `get_logger` was ever called."""
    _log(SUBWARNING, msg, args, kwargs)


def warning(msg: object, *args: object, **kwargs: Any) -> None:
    """Log at level `WARNING`, if `get_logger` was ever called."""
    _log(WARNING, msg, args, kwargs)


def error(msg: object, *args: object, **kwargs: Any) -> None:
    """Log at level `ERROR`, if `get_logger` was ever called."""
    _log(ERROR, msg, args, kwargs)


def get_logger() -> logging.Logger:
    """The logger of this package, which is multiprocessing's too (origin: multiprocessing).

    It does not propagate. Until this has been called once, the package logs nothing.
    """
    global _logger
    import logging

    if _logger is None:
        logger = logging.getLogger(LOGGER_NAME)
        logger.propagate = False
        logging.addLevelName(SUBDEBUG, "SUBDEBUG")
        logging.addLevelName(SUBWARNING, "SUBWARNING")
        # What runs at exit logs, so it has to run before logging shuts down.
        atexit.unregister(_exit_function)
        atexit.register(_exit_function)
        _logger = logger
    return _logger


def log_to_stderr(level: int | str | None = None) -> logging.Logger:
    """Make the package log to standard error, from `level` on; returns the logger."""
    global _log_to_stderr
    import logging

    logger = get_logger()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(DEFAULT_LOGGING_FORMAT))
    logger.addHandler(handler)
    if level:
        logger.setLevel(level)
    _log_to_stderr = True
    return logger


# ---- the private directory ----

#: `sun_path` holds 107 characters and a terminator
_SOCKET_PATH_MAX = 107
#: what this package appends to the directory's parent: /pymp-XXXXXXXX/listener-XXXXXXXX
_SOCKET_PATH_TAIL = 32


# tempfile and shutil are not imported for this: a manager's server would do so in every new
# process, and it takes longer than all the rest of its start.


def _random_name(prefix: str) -> str:
    """A name of `prefix` and eight more characters that nobody can guess."""
    return prefix + os.urandom(4).hex()


def _temp_bases() -> Iterator[str]:
    """Where to try to make the private directory, the best place first.

    Sockets are bound inside it, so a temporary directory with a long name comes last.
    """
    chosen = getattr(sys.modules.get("tempfile"), "tempdir", None)  # set by the program
    named = [chosen, *(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))]
    usual = ["/tmp", "/var/tmp", "/usr/tmp"]
    bases = [os.path.abspath(os.fsdecode(base)) for base in [*named, *usual] if base]
    room = _SOCKET_PATH_MAX - _SOCKET_PATH_TAIL
    bases.sort(key=lambda base: len(os.fsencode(base)) > room)
    yield from dict.fromkeys(bases)


def _make_temp_dir() -> str:
    failure: OSError | None = None
    for base in _temp_bases():
        while True:
            path = os.path.join(base, _random_name("pymp-"))
            try:
                os.mkdir(path, 0o700)
                return path
            except FileExistsError:
                continue
            except OSError as exc:
                failure = failure or exc
                break
    assert failure is not None
    raise failure


def _remove_temp_dir(tempdir: str) -> None:
    from .process import current_process

    try:
        for name in os.listdir(tempdir):
            os.unlink(os.path.join(tempdir, name))
        os.rmdir(tempdir)
    except OSError:
        import shutil  # somebody has put a directory there

        shutil.rmtree(tempdir, ignore_errors=True)
    current_process()._config["tempdir"] = None


def get_temp_dir() -> str:
    """A directory that only this user can enter; made at the first call, removed at exit.

    Origin: multiprocessing. Children started after the first call share it.
    """
    from .process import current_process

    config = current_process()._config
    tempdir: str | None = config.get("tempdir")
    if tempdir is None:
        tempdir = _make_temp_dir()
        info("created temp directory %s", tempdir)
        # Last of all: everything that has a name in it goes first.
        Finalize(None, _remove_temp_dir, args=(tempdir,), exitpriority=-100)
        config["tempdir"] = tempdir
    return tempdir


# ---- after-fork callbacks ----

_afterfork_registry: weakref.WeakValueDictionary[tuple[int, int, Callable[[Any], object]], Any] = (
    weakref.WeakValueDictionary()
)
_afterfork_counter = itertools.count()


def _run_own_after_forkers() -> None:
    # To iterate over the references calls the least: see BaseProcess._bootstrap.
    references = _afterfork_registry.data  # type: ignore[attr-defined]
    for key in sorted(references):  # begins with a number that no other has
        reference = references.get(key)
        obj = None if reference is None else reference()
        if obj is None:
            continue
        try:
            key[2](obj)
        except Exception as exc:
            info("after forker raised exception %s", exc)


def _run_after_forkers() -> None:
    """Call what `register_after_fork` registered, in order; ours, then multiprocessing's."""
    _run_own_after_forkers()
    if "multiprocessing.util" in sys.modules:
        _stdlib.after_fork()


def register_after_fork(obj: Any, func: Callable[[Any], object]) -> None:
    """Have `func(obj)` called early in every process that this one forks with `Process`.

    `obj` is kept by a weak reference: what is dead by then is not called. An exception of `func`
    is logged and goes no further. Origin: multiprocessing.
    """
    _afterfork_registry[next(_afterfork_counter), id(obj), func] = obj


# ---- finalizers ----

_finalizer_registry: dict[_Key, Finalize] = {}
_finalizer_counter = itertools.count()


class Finalize:
    """Calls `callback(*args, **kwargs)` once: when `obj` dies, when called, or at exit.

    `exitpriority`: at exit those with the highest run first, and of equals the newest; `None` does
    not run at exit. Without an `obj` a priority is needed. In a forked child the inherited ones do
    nothing. Process-local. Origin: multiprocessing.

    Raises `TypeError` for a priority that is no int, `ValueError` for neither object nor priority.
    """

    def __init__(
        self,
        obj: object,
        callback: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        exitpriority: int | None = None,
    ) -> None:
        if exitpriority is not None and not isinstance(exitpriority, int):
            raise TypeError(f"exitpriority must be an int or None, not {exitpriority!r}")
        self._weakref: weakref.ref[Any] | None = None
        if obj is not None:
            self._weakref = weakref.ref(obj, self)
        elif exitpriority is None:
            raise ValueError("exitpriority must be given where there is no object")
        self._callback: Callable[..., Any] | None = callback
        self._args: Sequence[Any] | None = args
        self._kwargs: Mapping[str, Any] | None = kwargs or {}
        self._key: _Key | None = (exitpriority, next(_finalizer_counter))
        self._pid = os.getpid()
        _finalizer_registry[self._key] = self

    # Bound as defaults: a callback may come when this module's globals are gone.
    def __call__(
        self,
        wr: object = None,
        _finalizer_registry: dict[Any, Finalize] = _finalizer_registry,
        sub_debug: Callable[..., None] = sub_debug,
        getpid: Callable[[], int] = os.getpid,
    ) -> Any:
        """Run the callback, unless it has run, was cancelled, or belongs to another process."""
        if _finalizer_registry.pop(self._key, None) is None:
            sub_debug("finalizer no longer registered")
            return None
        callback, args, kwargs = self._callback, self._args, self._kwargs
        mine = self._pid == getpid()
        self._weakref = self._callback = self._args = self._kwargs = self._key = None
        if not mine:
            sub_debug("finalizer ignored because different process")
            return None
        assert callback is not None and args is not None and kwargs is not None
        sub_debug("finalizer calling %s with args %s and kwargs %s", callback, args, kwargs)
        return callback(*args, **kwargs)

    def cancel(self) -> None:
        """Never run the callback."""
        if self._key is not None and _finalizer_registry.pop(self._key, None) is not None:
            self._weakref = self._callback = self._args = self._kwargs = self._key = None

    def still_active(self) -> bool:
        """Whether the callback is still to come."""
        return self._key in _finalizer_registry

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._key is None or (self._weakref is not None and self._weakref() is None):
            return f"<{name} object, dead>"
        parts = [f"callback={getattr(self._callback, '__name__', self._callback)}"]
        if self._args:
            parts.append(f"args={self._args}")
        if self._kwargs:
            parts.append(f"kwargs={self._kwargs}")
        if self._key[0] is not None:
            parts.append(f"exitpriority={self._key[0]}")
        return f"<{name} object, {', '.join(parts)}>"


def _run_finalizers(minpriority: int | None = None) -> None:
    """Run the finalizers that have a priority, of at least `minpriority`, highest first.

    Without `minpriority` all of them, after which the registry is empty. One that raises has its
    traceback printed and does not stop the others.
    """
    keys = [
        key
        for key in list(_finalizer_registry)
        if key[0] is not None and (minpriority is None or key[0] >= minpriority)
    ]
    keys.sort(reverse=True)
    for key in keys:
        finalizer = _finalizer_registry.get(key)
        if finalizer is not None:
            sub_debug("calling %s", finalizer)
            try:
                finalizer()
            except Exception:
                import traceback

                traceback.print_exc()
    if minpriority is None:
        _finalizer_registry.clear()


# ---- exit ----

_exiting = False
#: seconds that a daemonic child gets to die of SIGTERM before it is killed
_DAEMON_GRACE = 5.0


def is_exiting() -> bool:
    """Whether the process is shutting down."""
    return _exiting or _exiting is None


def _end_children() -> None:
    """Terminate the daemonic children, wait for the others."""
    # What was forked behind our back (`os.fork`) has inherited a list of somebody else's children.
    me = os.getpid()
    children = [child for child in process.active_children() if child._parent_pid == me]
    daemons = [child for child in children if child.daemon]
    for child in daemons:
        info("calling terminate() for daemon %s", child.name)
        child.terminate()
    for child in daemons:
        child.join(_DAEMON_GRACE)
        if child.is_alive():
            info("daemon %s outlived SIGTERM, killing it", child.name)
            child.kill()
    for child in children:
        info("calling join() for process %s", child.name)
        child.join()


def _exit_function() -> None:
    """What a process does last; at exit of the main one, from the bootstrap of a child."""
    global _exiting
    if _exiting:
        return
    _exiting = True
    if _logger is not None:
        info("process shutting down")
        debug('running all "atexit" finalizers with priority >= 0')
    if _finalizer_registry:
        _run_finalizers(0)
    if process._children:
        _end_children()
    if _logger is not None:
        debug('running the remaining "atexit" finalizers')
    if _finalizer_registry:
        _run_finalizers()
    _stdlib.at_exit()


# threading is imported above, so that its own exit handler comes first.
atexit.register(_exit_function)


def _cleanup_tests() -> None:
    """Run the finalizers and end the program's helper processes: for the end of a test run."""
    import gc

    _run_finalizers()
    helpers = {"forkserver": "_forkserver", "resource_tracker": "_resource_tracker"}
    for module, helper in helpers.items():
        if loaded := sys.modules.get(f"{__package__}.{module}"):
            getattr(loaded, helper)._stop()
    gc.collect()


# ---- fork-aware objects ----


class ForkAwareThreadLock:
    """A thread lock that is free in a forked child, whoever held it. Process-local."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release
        register_after_fork(self, ForkAwareThreadLock._at_fork_reinit)

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.__exit__(kind, value, traceback)


class ForkAwareLocal(threading.local):
    """A thread-local that is empty in a forked child, and wherever it is pickled to."""

    def __init__(self) -> None:
        register_after_fork(self, lambda obj: obj.__dict__.clear())

    def __reduce__(self) -> tuple[type[ForkAwareLocal], tuple[()]]:
        return type(self), ()


# ---- the interpreter, the kernel ----


def _args_from_interpreter_flags() -> list[str]:
    """The command-line options that give a new interpreter the settings of this one."""
    flags = sys.flags
    letters = {
        "O": flags.optimize,
        "d": flags.debug,
        "B": flags.dont_write_bytecode,
        "S": flags.no_site,
        "v": flags.verbose,
        "b": flags.bytes_warning,
        "q": flags.quiet,
    }
    if flags.isolated:
        letters["I"] = 1
    else:
        letters |= {
            "E": flags.ignore_environment,
            "s": flags.no_user_site,
            "P": int(flags.safe_path),
        }
    args = ["-" + letter * count for letter, count in letters.items() if count > 0]

    # -b and -X dev come with warning options of their own, which would otherwise pile up.
    implied = []
    if flags.bytes_warning:
        implied.append(("error" if flags.bytes_warning > 1 else "default") + "::BytesWarning")
    if flags.dev_mode:
        implied.append("default")
    for option in sys.warnoptions:
        if option in implied:
            implied.remove(option)
        else:
            args.append("-W" + option)

    extra: dict[str, str | bool] = dict(sys._xoptions)
    if flags.dev_mode:
        extra["dev"] = True
    for name, value in extra.items():
        args += ["-X", name if value is True else f"{name}={value}"]
    return args


def get_pdeathsig() -> int:
    """The signal that this process gets when its parent dies, 0 for none (prctl)."""
    return _core.get_pdeathsig()


def set_pdeathsig(sig: int) -> None:
    """Have `sig` sent to this process when its parent dies; 0 for no signal (prctl).

    "Parent" is the *thread* that made this process. A fork clears the setting. Raises `OSError`
    for a number that is no signal. Origin: billiard.
    """
    _core.set_pdeathsig(sig)


def _eintr_retry(func: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: call again as long as it ends with EINTR."""
    import errno
    import functools

    @functools.wraps(func)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        while True:
            try:
                return func(*args, **kwargs)
            except OSError as exc:
                if get_errno(exc) != errno.EINTR:
                    raise

    return wrapped


_stdlib.install()
